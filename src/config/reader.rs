//! Reads a table key by key and collects every problem. A key that nobody asked for is reported when the reader is
//! dropped, so a table cannot be read without refusing what it should not hold.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::problem::{Place, Problem, Severity};
use super::suggest;
use super::tree::{Item, Node, Table};

/// Where the values of environment variables come from; a test brings its own.
pub(super) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What all readers of one load share.
pub(super) struct Context<'a> {
    pub environment: Environment<'a>,
    /// Every file that was read or looked for, for the watcher.
    pub files: RefCell<BTreeSet<PathBuf>>,
    problems: RefCell<Vec<Problem>>,
    /// Keys that the program knows, by kind of table: the documentation is tested against it.
    asked: RefCell<BTreeMap<&'static str, BTreeSet<&'static str>>>,
    empty: Table,
}

impl<'a> Context<'a> {
    pub fn new(root: &Path, environment: Environment<'a>) -> Self {
        Self {
            environment,
            files: RefCell::default(),
            problems: RefCell::default(),
            asked: RefCell::default(),
            empty: Table::empty(Place::file(root)),
        }
    }

    pub fn error(&self, place: &Place, key: impl Into<String>, text: impl Into<String>) {
        self.push(Severity::Error, place, key.into(), text.into());
    }

    pub fn warn(&self, place: &Place, key: impl Into<String>, text: impl Into<String>) {
        self.push(Severity::Warning, place, key.into(), text.into());
    }

    /// A layer that several devices share is read several times: the same problem at the same place is told once.
    fn push(&self, severity: Severity, place: &Place, key: String, text: String) {
        let mut problems = self.problems.borrow_mut();
        if !problems.iter().any(|p| p.place == *place && p.text == text) {
            problems.push(Problem { severity, place: place.clone(), key, text });
        }
    }

    pub fn errors(&self) -> usize {
        self.problems.borrow().iter().filter(|p| p.severity == Severity::Error).count()
    }

    /// All problems, sorted by place, and the keys that the program knows.
    pub fn finish(self) -> (Vec<Problem>, Vec<PathBuf>, BTreeMap<&'static str, BTreeSet<&'static str>>) {
        let mut problems = self.problems.into_inner();
        problems.sort_by(|a, b| (&a.place, a.severity).cmp(&(&b.place, b.severity)));
        (problems, self.files.into_inner().into_iter().collect(), self.asked.into_inner())
    }
}

/// Reads one table.
pub(super) struct Reader<'a> {
    pub context: &'a Context<'a>,
    pub table: &'a Table,
    path: String,
    kind: &'static str,
    asked: RefCell<Vec<&'static str>>,
}

impl<'a> Reader<'a> {
    /// `kind` names the table in the documentation; `path` is put before the keys in messages.
    pub fn new(context: &'a Context<'a>, table: &'a Table, kind: &'static str, path: &str) -> Self {
        Self { context, table, path: path.to_owned(), kind, asked: RefCell::default() }
    }

    /// The key with its path.
    pub fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The value of a key as it was written.
    pub fn item(&self, key: &'static str) -> Option<&'a Item> {
        self.asked.borrow_mut().push(key);
        // An empty cell of a list is a key that is not there.
        self.table.get(key).filter(|item| !matches!(&item.node, Node::Cell(text) if text.trim().is_empty()))
    }

    /// Whether the key is there (asks for it, too).
    pub fn has(&self, key: &'static str) -> bool {
        self.item(key).is_some()
    }

    /// The place of a key that is there, else that of the table.
    pub fn place(&self, key: &str) -> &'a Place {
        self.table.get(key).map_or(&self.table.place, |item| &item.place)
    }

    /// Reports an error at a key.
    pub fn error(&self, key: &str, text: impl Into<String>) {
        self.context.error(self.place(key), self.key(key), text);
    }

    /// Reports a warning at a key.
    pub fn warn(&self, key: &str, text: impl Into<String>) {
        self.context.warn(self.place(key), self.key(key), text);
    }

    /// The value of a key that may be absent; a wrong one is reported and counts as absent.
    pub fn optional<T>(&self, key: &'static str, parse: impl Fn(&Item) -> Result<T, String>) -> Option<T> {
        let item = self.item(key)?;
        match parse(item) {
            Ok(value) => Some(value),
            Err(text) => {
                self.context.error(&item.place, self.key(key), text);
                None
            }
        }
    }

    /// The value of a key, or its default.
    pub fn or<T>(&self, key: &'static str, default: T, parse: impl Fn(&Item) -> Result<T, String>) -> T {
        self.optional(key, parse).unwrap_or(default)
    }

    /// The value of a key that must be there; `example` shows what to write.
    pub fn required<T>(
        &self,
        key: &'static str,
        example: &str,
        parse: impl Fn(&Item) -> Result<T, String>,
    ) -> Option<T> {
        if !self.has(key) {
            self.context.error(&self.table.place, self.key(key), format!("`{key}` is missing; write {example}"));
            return None;
        }
        self.optional(key, parse)
    }

    /// A list, each item read by `parse`; a single value counts as a list of one.
    pub fn list<T>(&self, key: &'static str, parse: impl Fn(&Item) -> Result<T, String>) -> Option<Vec<T>> {
        let item = self.item(key)?;
        let items = match &item.node {
            Node::List(items) => items.as_slice(),
            _ => std::slice::from_ref(item),
        };
        let read = items.iter().filter_map(|item| match parse(item) {
            Ok(value) => Some(value),
            Err(text) => {
                self.context.error(&item.place, self.key(key), text);
                None
            }
        });
        Some(read.collect())
    }

    /// A table that may be absent.
    pub fn table(&self, key: &'static str, kind: &'static str) -> Option<Reader<'a>> {
        let item = self.item(key)?;
        match &item.node {
            Node::Table(table) => Some(Reader::new(self.context, table, kind, &self.key(key))),
            other => {
                let text =
                    format!("is {}; it must be a table: write [{}] on a line of its own", other.what(), self.key(key));
                self.context.error(&item.place, self.key(key), text);
                None
            }
        }
    }

    /// A table whose keys all have defaults: an absent one is read as an empty one.
    pub fn section(&self, key: &'static str, kind: &'static str) -> Reader<'a> {
        let absent = || Reader::new(self.context, &self.context.empty, kind, &self.key(key));
        self.table(key, kind).unwrap_or_else(absent)
    }

    /// A list of tables (`[[key]]`); an absent one is empty.
    pub fn tables(&self, key: &'static str, kind: &'static str) -> Vec<Reader<'a>> {
        let Some(item) = self.item(key) else { return Vec::new() };
        let refuse = |item: &Item| {
            let text = format!(
                "is {}; it must be a list of tables: write [[{}]] before each",
                item.node.what(),
                self.key(key)
            );
            self.context.error(&item.place, self.key(key), text);
        };
        let Node::List(items) = &item.node else {
            refuse(item);
            return Vec::new();
        };
        let mut readers = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match &item.node {
                Node::Table(table) => {
                    let path = format!("{}[{}]", self.key(key), index + 1);
                    readers.push(Reader::new(self.context, table, kind, &path));
                }
                _ => refuse(item),
            }
        }
        readers
    }

    /// A table whose keys are names that the user chooses.
    pub fn names(&self, key: &'static str) -> Vec<(&'a str, &'a Place, &'a Item)> {
        match self.item(key).map(|item| (&item.place, &item.node)) {
            None => Vec::new(),
            Some((_, Node::Table(table))) => {
                table.entries.iter().map(|(name, e)| (name.as_str(), &e.key_place, &e.item)).collect()
            }
            Some((place, other)) => {
                self.context.error(place, self.key(key), format!("is {}; it must be a table of names", other.what()));
                Vec::new()
            }
        }
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let asked = self.asked.borrow();
        for (key, entry) in &self.table.entries {
            if asked.contains(&key.as_str()) {
                continue;
            }
            let meant = match suggest::nearest(key, asked.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => {
                    let mut known = asked.clone();
                    known.sort_unstable();
                    known.dedup();
                    format!("known here: {}", known.join(", "))
                }
            };
            self.context.error(&entry.key_place, self.key(key), format!("unknown key `{key}`; {meant}"));
        }
        self.context.asked.borrow_mut().entry(self.kind).or_default().extend(asked.iter());
    }
}
