//! What is wrong with a configuration: every problem with its place, in words that say what to do.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Where something stands. Line and column start at 1; both are 0 when the problem is the file itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file, as it was reached from the configuration directory that the user named.
    pub file: Arc<Path>,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl Place {
    /// The file as a whole.
    pub fn file(file: &Path) -> Self {
        Self { file: file.into(), line: 0, column: 0 }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}", self.file.display()),
            line => write!(f, "{}:{line}:{}", self.file.display(), self.column),
        }
    }
}

/// Whether the configuration can be used in spite of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// The configuration is used; a person should look.
    Warning,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Refused, or used with a warning.
    pub severity: Severity,
    /// Where it stands.
    pub place: Place,
    /// The key with its path, such as `modbus.timeout` or `points[3].address`; empty for a whole file.
    pub key: String,
    /// What is wrong and what to do.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let text = without_credentials(&self.text);
        match self.key.as_str() {
            "" => write!(f, "{}: {kind}: {text}", self.place),
            key => write!(f, "{}: {kind}: {key}: {text}", self.place),
        }
    }
}

/// Texts quote what stands in the file. Where somebody wrote a password into an address, the part before the `@` is left out.
fn without_credentials(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('@') {
        let (before, after) = rest.split_at(at);
        let word = before.rfind([' ', '"', '`', '\'', '\n']).map_or(0, |i| i + 1);
        let start = before[word..].find("://").map_or(word, |i| word + i + 3);
        clean.push_str(&before[..start]);
        clean.push_str(if before[start..].contains(':') { "…" } else { &before[start..] });
        clean.push('@');
        rest = &after[1..];
    }
    clean + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_an_address_is_not_repeated() {
        let clean = without_credentials("`mqtt://gw:p/w:x@host:1` and gw:secret@h, but anna@h and \"mqtt://h:1\"");
        assert_eq!(clean, "`mqtt://…@host:1` and …@h, but anna@h and \"mqtt://h:1\"");
        assert_eq!(without_credentials("nothing to hide"), "nothing to hide");
    }
}

/// Why a configuration was refused: every error, and the warnings that were found on the way, sorted by place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// How many of them are errors.
    pub fn errors(&self) -> usize {
        self.0.iter().filter(|p| p.severity == Severity::Error).count()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            writeln!(f, "{problem}")?;
        }
        match self.errors() {
            1 => write!(f, "1 error in the configuration; nothing was changed"),
            n => write!(f, "{n} errors in the configuration; nothing was changed"),
        }
    }
}

impl std::error::Error for Problems {}
