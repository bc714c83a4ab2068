//! What the compose program says, and what it means.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Longest words that are handed on.
const MAX_WORDS: usize = 400;
/// Lines of them.
const LINES: usize = 4;
/// Values shorter than that are only left out where they stand alone: a digit is in everything.
const SHORT: usize = 4;

/// How a project stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// Every container runs and is healthy, or has done its work.
    Up(usize),
    /// Not yet: which, and why.
    Coming(String),
    /// Which is not, and why.
    Bad(String),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    #[serde(default)]
    service: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    health: String,
    #[serde(default)]
    exit_code: i64,
}

/// One JSON value per line, or one list: versions differ.
fn rows<'de, T: Deserialize<'de>>(text: &'de str) -> Option<Vec<T>> {
    let text = text.trim();
    if text.starts_with('[') {
        return serde_json::from_str(text).ok();
    }
    text.lines().filter(|line| !line.trim().is_empty()).map(|line| serde_json::from_str(line).ok()).collect()
}

/// How the containers of `ps --all --format json` stand.
pub(super) fn standing(text: &str) -> Standing {
    let Some(containers) = rows::<Container>(text) else { return Standing::Bad("`ps` cannot be read".to_owned()) };
    if containers.is_empty() {
        return Standing::Bad("it has no containers".to_owned());
    }
    let mut coming = None;
    for Container { service, state, health, exit_code } in &containers {
        match (state.as_str(), health.as_str()) {
            ("running", "unhealthy") => return Standing::Bad(format!("{service} is unhealthy")),
            ("running", "" | "healthy") => {}
            ("exited", _) if *exit_code == 0 => {}
            ("exited" | "dead", _) => return Standing::Bad(format!("{service} ended with {exit_code}")),
            ("running", health) => coming = Some(format!("{service} is {health}")),
            (state, _) => coming = Some(format!("{service} is {state}")),
        }
    }
    coming.map_or(Standing::Up(containers.len()), Standing::Coming)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    name: String,
    #[serde(default)]
    status: String,
}

/// The projects of `ls --all --format json` with their numbers of containers; `None` when it cannot be read.
pub(super) fn projects(text: &str) -> Option<BTreeMap<String, usize>> {
    // Such as `exited(1), running(2)`.
    let count = |status: &str| {
        let numbers = status.split('(').skip(1).filter_map(|rest| rest.split(')').next()?.parse::<usize>().ok());
        numbers.sum()
    };
    Some(rows::<Listed>(text)?.into_iter().map(|listed| (listed.name, count(&listed.status))).collect())
}

/// Whether this is Compose 2 or later.
pub(super) fn version(text: &str) -> Result<(), String> {
    let said: String = text.trim().chars().filter(|c| !c.is_control()).take(80).collect();
    let major = said.trim_start_matches('v').split('.').next().and_then(|major| major.parse::<u32>().ok());
    match major {
        Some(2..) => Ok(()),
        Some(_) => Err(format!("it is Compose {said}; version 2 or later is needed")),
        None => Err(format!("it does not say that it is Compose 2 or later, but \"{said}\"")),
    }
}

/// The last words of the program, without values that it was told.
pub(super) fn last_words<'a>(text: &str, values: impl Iterator<Item = &'a str>) -> String {
    let mut secrets: Vec<&str> = values.flat_map(str::lines).map(str::trim).filter(|value| !value.is_empty()).collect();
    // The longest first, so that no part of it is left.
    secrets.sort_by_key(|value| std::cmp::Reverse(value.len()));
    // Steps that went well are indented.
    let plain = |line: &&str| !line.trim().is_empty() && !line.contains("level=warning");
    let telling: Vec<&str> = text.lines().filter(plain).filter(|line| !line.starts_with(' ')).collect();
    let lines = if telling.is_empty() { text.lines().filter(plain).collect() } else { telling };
    let mut words = lines[lines.len().saturating_sub(LINES)..].join("; ");
    for secret in secrets {
        words = match secret.len() < SHORT {
            false => words.replace(secret, "***"),
            true => words.split_inclusive(' ').map(|word| if word.trim() == secret { "*** " } else { word }).collect(),
        };
    }
    let words: String = words.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let skipped = words.chars().count().saturating_sub(MAX_WORDS);
    words.chars().skip(skipped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_judged_one_by_one() {
        let one = |service: &str, state: &str, health: &str, code: i64| {
            format!(
                "{{\"Service\":\"{service}\",\"State\":\"{state}\",\"Health\":\"{health}\",\"ExitCode\":{code},\"Publishers\":null}}"
            )
        };
        let web = one("web", "running", "healthy", 0);
        for (second, wanted) in [
            (one("job", "exited", "", 0), Standing::Up(2)),
            (one("db", "running", "", 0), Standing::Up(2)),
            (one("db", "running", "starting", 0), Standing::Coming("db is starting".to_owned())),
            (one("db", "restarting", "", 1), Standing::Coming("db is restarting".to_owned())),
            (one("db", "running", "unhealthy", 0), Standing::Bad("db is unhealthy".to_owned())),
            (one("job", "exited", "", 3), Standing::Bad("job ended with 3".to_owned())),
        ] {
            assert_eq!(standing(&format!("{web}\n{second}\n")), wanted);
            assert_eq!(standing(&format!("[{web},{second}]")), wanted);
        }
        assert!(matches!(standing(""), Standing::Bad(_)));
        assert!(matches!(standing("nonsense"), Standing::Bad(_)));
    }

    #[test]
    fn projects_are_counted() {
        let text =
            r#"[{"Name":"a","Status":"exited(1), running(2)","ConfigFiles":"x"},{"Name":"b","Status":"running(1)"}]"#;
        assert_eq!(projects(text).unwrap(), BTreeMap::from([("a".to_owned(), 3), ("b".to_owned(), 1)]));
        assert_eq!(projects("[]").unwrap(), BTreeMap::new());
        assert_eq!(projects("Cannot connect"), None);
    }

    #[test]
    fn old_programs_and_other_programs_are_told() {
        for good in ["2.26.1-4\n", "v2.40.0", "5.0.1"] {
            version(good).unwrap();
        }
        assert!(version("1.29.2").unwrap_err().contains("version 2 or later"));
        assert!(version("docker: 'compose' is not a docker command").is_err());
    }

    #[test]
    fn last_words_are_short_and_hold_no_values() {
        let text = " Container a  Started\ntime=x level=warning msg=\"v\"\nfirst\ncannot pull user:s3cret-token with 7 and 17\n";
        let words = last_words(text, ["s3cret-token", "7"].into_iter());
        assert_eq!(words, "first; cannot pull user:*** with *** and 17");
        assert_eq!(last_words(" Container a  Started\n", [].into_iter()), " Container a  Started");
        assert_eq!(last_words(&"x".repeat(5_000), [].into_iter()).len(), MAX_WORDS);
        assert_eq!(last_words("a line-1\nline-2 b", ["line-1\nline-2"].into_iter()), "a ***; *** b");
    }
}
