//! Versions of firmware and their order.

use std::cmp::Ordering;
use std::fmt;

/// Longest version text.
const MAX: usize = 64;

/// A version: numbers separated by dots, then optionally `-` and a pre-release. `1.2` equals `1.2.0`, `1.10` is newer than
/// `1.9`, and a pre-release is older than its release (the order of semver.org). A leading `v` and anything behind `+` are
/// ignored when comparing.
#[derive(Debug, Clone)]
pub struct Version {
    text: String,
    numbers: Vec<u64>,
    pre_release: Option<String>,
}

impl Version {
    /// Reads a version.
    ///
    /// # Errors
    /// When it has no leading number, a part that is no number, characters outside `A-Z a-z 0-9 . - +`, or more than 64.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no version; use numbers separated by dots, such as 1.4.2 or 2.0.0-rc.1");
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+');
        if text.is_empty() || text.len() > MAX || !text.chars().all(legal) {
            return Err(wrong());
        }
        let body = text.strip_prefix('v').unwrap_or(text);
        let body = body.split('+').next().unwrap_or(body);
        let (numbers, pre_release) = match body.split_once('-') {
            Some((numbers, pre)) if !pre.is_empty() => (numbers, Some(pre.to_owned())),
            Some(_) => return Err(wrong()),
            None => (body, None),
        };
        let parsed: Result<Vec<u64>, _> = numbers.split('.').map(str::parse).collect();
        let mut numbers = parsed.map_err(|_| wrong())?;
        while numbers.last() == Some(&0) {
            numbers.pop();
        }
        Ok(Self { text: text.to_owned(), numbers, pre_release })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Version {}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| match (&self.pre_release, &other.pre_release) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(mine), Some(theirs)) => compare_pre_releases(mine, theirs),
        })
    }
}

fn compare_pre_releases(mine: &str, theirs: &str) -> Ordering {
    let (mut mine, mut theirs) = (mine.split('.'), theirs.split('.'));
    loop {
        let order = match (mine.next(), theirs.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(mine), Some(theirs)) => match (mine.parse::<u64>(), theirs.parse::<u64>()) {
                (Ok(mine), Ok(theirs)) => mine.cmp(&theirs),
                (Ok(_), Err(_)) => Ordering::Less,
                (Err(_), Ok(_)) => Ordering::Greater,
                (Err(_), Err(_)) => mine.cmp(theirs),
            },
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn versions_are_ordered_as_people_expect() {
        let rising = [
            "0.9",
            "1.0.0-alpha",
            "1.0.0-alpha.1",
            "1.0.0-alpha.beta",
            "1.0.0-beta.2",
            "1.0.0-beta.11",
            "1.0.0-rc.1",
            "v1.0",
            "1.0.1",
            "1.9",
            "1.10.0",
        ];
        for pair in rising.windows(2) {
            let (low, high) = (Version::parse(pair[0]).unwrap(), Version::parse(pair[1]).unwrap());
            assert!(low < high, "{low} < {high}");
        }
        assert_eq!(Version::parse("1.2").unwrap(), Version::parse("v1.2.0+build7").unwrap());
        for wrong in ["", "v", "latest", "1..2", "1.2-", "1.2 ", "1.2\n", "1.99999999999999999999999"] {
            assert!(Version::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn the_order_is_total(texts in proptest::collection::vec("[0-9]{1,3}(\\.[0-9]{1,3}){0,2}(-[a-z0-9]{1,3}(\\.[0-9]{1,2})?)?", 3)) {
            let v: Vec<Version> = texts.iter().map(|text| Version::parse(text).unwrap()).collect();
            prop_assert_eq!(v[0].cmp(&v[1]), v[1].cmp(&v[0]).reverse());
            if v[0] <= v[1] && v[1] <= v[2] {
                prop_assert!(v[0] <= v[2]);
            }
        }
    }
}
