//! Variables of a Compose project: names that cannot steer the compose program itself, and values that are never printed.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest name.
const MAX_NAME: usize = 128;
/// Names, or with `*` beginnings of names, by which the compose program, the engine's client or what they load are steered.
/// The OpenTelemetry addresses are the site's to give.
const RESERVED: [&str; 23] = [
    "COMPOSE_*",
    "DOCKER_*",
    "BUILDKIT_*",
    "BUILDX_*",
    "LD_*",
    "GODEBUG",
    "GOTRACEBACK",
    "GOMAXPROCS",
    "GOGC",
    "GOMEMLIMIT",
    "SSL_CERT_*",
    "SSH_AUTH_SOCK",
    "XDG_*",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "PATH",
    "HOME",
    "TMPDIR",
    "HTTP_OTEL_*",
    "GRPC_OTEL_*",
    "OTEL_EXPORTER_OTLP_*",
];

/// Variables by name. Their values are not shown by `Debug`.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Environment(BTreeMap<String, String>);

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Environment {
    pub(super) fn set(&mut self, name: &str, value: String) {
        self.0.insert(name.to_owned(), value);
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

fn is_reserved(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    RESERVED.iter().any(|reserved| match reserved.strip_suffix('*') {
        Some(begin) => name.starts_with(begin),
        None => name == *reserved,
    })
}

/// Whether a parameter may have this name.
///
/// # Errors
/// Words.
pub(super) fn check_name(name: &str) -> Result<(), &'static str> {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.len() > MAX_NAME
        || !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        || !name.chars().all(legal)
    {
        return Err("write the name of an environment variable");
    }
    if is_reserved(name) {
        return Err("this variable would steer the compose program or is the site's to give; use another name");
    }
    Ok(())
}

/// A value as text.
///
/// # Errors
/// Words.
pub(super) fn text(value: &Value) -> Result<String, &'static str> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(boolean) => boolean.to_string(),
        Value::Null | Value::Array(_) | Value::Object(_) => {
            return Err("its value must be a text, a number or a boolean");
        }
    };
    if text.contains('\0') { Err("its value has a zero byte") } else { Ok(text) }
}

/// Whether a name stands in a file, as a word of its own.
pub(super) fn mentions(bytes: &[u8], name: &str) -> bool {
    let legal = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let found = bytes.windows(name.len().max(1)).enumerate().filter(|(_, window)| *window == name.as_bytes());
    found.into_iter().any(|(at, window)| {
        !legal(at.checked_sub(1).and_then(|before| bytes.get(before))) && !legal(bytes.get(at + window.len()))
    })
}

/// The `.env` of a package, which Compose reads by itself: it must not steer Compose. Each line is taken for a variable, also one
/// that is a part of a longer value.
///
/// # Errors
/// Words.
pub(super) fn check_file(bytes: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "its file .env is no text".to_owned())?;
    for line in text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']) {
        let line = line.trim_start_matches('\u{feff}').trim_start();
        let line = line.strip_prefix("export").map_or(line, str::trim_start);
        let name = line.split(['=', ':']).next().unwrap_or_default().trim_end();
        if is_reserved(name) {
            return Err(format!(
                "its file .env sets {name}, which steers the compose program or is the site's to give"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dotenv_file_cannot_steer_the_compose_program() {
        for good in ["A=1\n# COMPOSE_FILE=x\nB='2'\n", "", "PATHS=1\n"] {
            check_file(good.as_bytes()).unwrap();
        }
        for bad in [
            "COMPOSE_FILE=/etc/x",
            "A=1\n  export DOCKER_HOST=tcp://x",
            "compose_profiles: all",
            "A=1\rLD_PRELOAD=x",
            "PATH = /tmp",
            "exportDOCKER_CONFIG=/tmp",
            "\u{feff}DOCKER_HOST=x",
        ] {
            assert!(check_file(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(check_file(&[0xff]).is_err());
    }

    #[test]
    fn a_name_is_mentioned_as_a_word() {
        for (text, found) in
            [("a: ${SPEED}", true), ("$SPEED", true), ("SPEED", true), ("${SPEEDY}", false), ("A_SPEED", false)]
        {
            assert_eq!(mentions(text.as_bytes(), "SPEED"), found, "{text}");
        }
    }
}
