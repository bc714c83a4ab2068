//! Secrets: from a file, from the environment, or in the text. They never print.

use std::path::{Component, Path, PathBuf};

use super::problem::Place;
use super::reader::Reader;
use super::tree::{Item, Node};
use super::value;
use crate::security::Secret;

/// Longest secret in octets: a larger file is some other file.
const MAX_LEN: usize = 64 * 1024;

/// A path in a value, relative to the file that the value stands in.
pub(super) fn path(item: &Item) -> Result<PathBuf, String> {
    let text = value::line(4096)(item)?;
    Ok(without_parents(&item.place.file.parent().unwrap_or(Path::new("")).join(text.trim())))
}

/// `devices/../points/x.csv` as `points/x.csv`, where both lead to the same file (they do not through a symbolic link).
pub(super) fn without_parents(path: &Path) -> PathBuf {
    let mut short = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir if matches!(short.components().next_back(), Some(Component::Normal(_))) => {
                short.pop();
            }
            part => short.push(part),
        }
    }
    match (short.canonicalize(), path.canonicalize()) {
        (Ok(a), Ok(b)) if a == b => short,
        _ => path.to_owned(),
    }
}

impl<'a> Reader<'a> {
    /// A path to a file that must be there. The file is watched.
    pub(super) fn file(&self, key: &'static str) -> Option<PathBuf> {
        let path = self.optional(key, path)?;
        self.context.files.borrow_mut().insert(path.clone());
        if path.is_file() {
            return Some(path);
        }
        self.error(key, format!("there is no file {}; paths are relative to the file they stand in", path.display()));
        None
    }

    /// `{ file = "…" }`, `{ env = "…" }` or the secret itself.
    pub(super) fn secret(&self, key: &'static str) -> Option<Secret> {
        let item = self.item(key)?;
        self.secret_of(key, item)
    }

    /// The secret that stands in `item`, the value of `key`.
    pub(super) fn secret_of(&self, key: &str, item: &'a Item) -> Option<Secret> {
        match &item.node {
            Node::Text(text) if text.is_empty() => {
                self.context.error(&item.place, self.key(key), "is empty; leave the key out for no secret");
                None
            }
            Node::Text(text) => {
                if is_world_readable(&item.place.file) {
                    let text = format!(
                        "stands in {}, which everyone may read; write {{ file = \"…\" }} or run chmod o-rwx on it",
                        item.place.file.display()
                    );
                    self.context.warn(&item.place, self.key(key), text);
                }
                Some(Secret::new(text))
            }
            Node::Table(table) => {
                let source = Reader::new(self.context, table, "secret", &self.key(key));
                match (source.has("file"), source.has("env")) {
                    (true, false) => source.secret_file(),
                    (false, true) => source.secret_variable(),
                    _ => {
                        self.context.error(&item.place, self.key(key), "needs exactly one of `file` and `env`");
                        None
                    }
                }
            }
            other => {
                let text =
                    format!("is {}; write {{ file = \"path\" }}, {{ env = \"VARIABLE\" }} or a text", other.what());
                self.context.error(&item.place, self.key(key), text);
                None
            }
        }
    }

    fn secret_file(&self) -> Option<Secret> {
        let path = self.file("file")?;
        if is_world_readable(&path) {
            self.warn("file", format!("everyone may read {}; run chmod 600 on it", path.display()));
        }
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) => {
                self.error("file", format!("{} cannot be read: {e}", path.display()));
                return None;
            }
        };
        let secret = text.trim_end_matches(['\r', '\n']);
        if secret.is_empty() || secret.len() > MAX_LEN {
            self.error("file", format!("{} must hold 1 to {MAX_LEN} octets", path.display()));
            return None;
        }
        Some(Secret::new(secret))
    }

    fn secret_variable(&self) -> Option<Secret> {
        let name = self.optional("env", value::line(256))?;
        match (self.context.environment)(&name).filter(|text| !text.is_empty()) {
            Some(text) => Some(Secret::new(&text)),
            None => {
                self.error(
                    "env",
                    format!("environment variable {name} is not set; set it for the service or use {{ file = \"…\" }}"),
                );
                None
            }
        }
    }
}

/// Whether everyone on this machine may read a file.
fn is_world_readable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o004 != 0)
}

/// Reports at `place` what stands twice; used for names that must be unique.
pub(super) fn twice(what: &str, name: &str, first: &Place) -> String {
    format!("{what} `{name}` is there already at {first}; give one of them another name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_print() {
        assert_eq!(format!("{:?}", Some(Secret::new("hunter2"))), "Some(\"…\")");
    }
}
