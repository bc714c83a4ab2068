//! Durations and sizes as people write them: a number with a unit, never without.

use std::time::Duration;

const DURATION_UNITS: [(&str, u64); 8] = [
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("min", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
    ("days", 86_400_000_000_000),
];

const SIZE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Reads `500 ms`, `2s`, `1.5 s`, `1m30s`, `1 h`. The error says what to write.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let help = || {
        format!(
            "`{text}` is not a duration; write a number and a unit, such as \"500 ms\", \"2 s\", \"1m30s\" or \"1 h\""
        )
    };
    let nanos = sum(text, &DURATION_UNITS).ok_or_else(help)?;
    u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| format!("`{text}` is longer than 584 years"))
}

/// Reads `64 MiB`, `512 KiB`, `1 GB`. The error says what to write.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let help =
        || format!("`{text}` is not a size; write a number and a unit, such as \"512 KiB\", \"64 MiB\" or \"1 GB\"");
    let bytes = sum(text, &SIZE_UNITS).ok_or_else(help)?;
    u64::try_from(bytes).map_err(|_| format!("`{text}` is beyond 16 EiB"))
}

/// Writes a duration in the largest units that hold it without a remainder, such as `1m30s`.
pub fn format_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    if rest == 0 {
        return "0 s".to_owned();
    }
    let mut parts = Vec::new();
    for (unit, nanos) in [
        ("d", 86_400_000_000_000),
        ("h", 3_600_000_000_000),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
    ] {
        if rest >= nanos {
            parts.push((rest / nanos, unit));
            rest %= nanos;
        }
    }
    if rest > 0 {
        parts.push((rest / 1000, "us"));
    }
    match parts.as_slice() {
        [(n, unit)] => format!("{n} {unit}"),
        parts => parts.iter().map(|(n, unit)| format!("{n}{unit}")).collect(),
    }
}

/// Writes a size in the largest binary unit that holds it without a remainder, else in bytes.
pub fn format_size(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.iter().find(|(_, shift)| bytes > 0 && bytes.trailing_zeros() >= *shift) {
        Some((unit, shift)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} B"),
    }
}

/// Sum of `number unit` pairs; `None` when there is none, a unit is missing or unknown, or the sum is beyond 128 bits.
fn sum(text: &str, units: &[(&str, u64)]) -> Option<u128> {
    let mut rest = text.trim();
    let mut total = 0u128;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits_end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).filter(|&end| end > 0)?;
        let (number, tail) = rest.split_at(digits_end);
        let tail = tail.trim_start();
        let unit_end = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let factor = units.iter().find(|(name, _)| *name == unit)?.1;
        total = total.checked_add(times(number, factor)?)?;
        rest = tail.trim_start();
    }
    Some(total)
}

/// `number` × `factor` exactly; at most nine digits behind the point.
fn times(number: &str, factor: u64) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.len() > 9 || whole.len() > 20 {
        return None;
    }
    let whole: u128 = whole.parse().ok()?;
    let part: u128 = fraction.parse().ok()?;
    Some(whole * u128::from(factor) + part * u128::from(factor) / 10u128.pow(fraction.len() as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_need_a_unit() {
        for (text, ms) in [
            ("500 ms", 500),
            ("2s", 2_000),
            ("1.5 s", 1_500),
            ("1m30s", 90_000),
            ("1 h", 3_600_000),
            ("1h 5min", 3_900_000),
            ("0 s", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in [
            "",
            "5",
            "s",
            "5 parsecs",
            "-1 s",
            "1,5 s",
            "1..5 s",
            "5 s 3",
            "1e3 s",
            "99999999999999999999 s",
            "300000 days 300000 days",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_need_a_unit() {
        for (text, bytes) in
            [("64 MiB", 64 << 20), ("512KiB", 512 << 10), ("1 GB", 1_000_000_000), ("1.5 KiB", 1536), ("7 B", 7)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "64", "64 M", "64 mib", "GB", "99999999999 TiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(us in 0u64..10_000_000_000_000, bytes in any::<u64>()) {
            let duration = Duration::from_micros(us);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            let _ = (parse_duration(&text), parse_size(&text));
        }
    }
}
