//! A parsed file whose every key and value knows its place. TOML files and CSV lists both become this tree, so that
//! layers (defaults, profile, device, list) can be merged and a problem still points to the file it came from.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::problem::Place;

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub place: Place,
    pub node: Node,
}

/// A value as it was written.
#[derive(Debug, Clone)]
pub(super) enum Node {
    Text(String),
    /// A CSV cell: the reader of the key decides what type it has.
    Cell(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    /// A date or an integer beyond 64 bits: no key takes one.
    Other(&'static str),
    List(Vec<Item>),
    Table(Table),
}

impl Node {
    /// What the value is, with an article, for error texts.
    pub fn what(&self) -> &'static str {
        match self {
            Node::Text(_) => "a text",
            Node::Cell(_) => "a cell",
            Node::Integer(_) => "an integer",
            Node::Float(_) => "a number",
            Node::Bool(_) => "a boolean",
            Node::Other(what) => what,
            Node::List(_) => "a list",
            Node::Table(_) => "a table",
        }
    }
}

/// A key, where it stands, and its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key_place: Place,
    pub item: Item,
}

/// Keys with values, and where the table begins.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub place: Place,
    pub entries: BTreeMap<String, Entry>,
}

impl Table {
    pub fn empty(place: Place) -> Self {
        Self { place, entries: BTreeMap::new() }
    }

    pub fn get(&self, key: &str) -> Option<&Item> {
        self.entries.get(key).map(|e| &e.item)
    }

    /// `over` laid on `self`: tables are merged key by key, everything else is replaced.
    pub fn overlaid(&self, over: &Table) -> Table {
        let mut merged = Table { place: over.place.clone(), entries: self.entries.clone() };
        for (key, entry) in &over.entries {
            let both = (merged.entries.get(key).map(|e| &e.item.node), &entry.item.node);
            let entry = match both {
                (Some(Node::Table(below)), Node::Table(above)) => {
                    let node = Node::Table(below.overlaid(above));
                    Entry { key_place: entry.key_place.clone(), item: Item { place: entry.item.place.clone(), node } }
                }
                _ => entry.clone(),
            };
            merged.entries.insert(key.clone(), entry);
        }
        merged
    }
}

/// Turns byte offsets into lines and columns.
struct Lines<'a> {
    file: Arc<Path>,
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(file: &Path, text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { file: file.into(), text, starts }
    }

    fn place(&self, offset: usize) -> Place {
        let offset = offset.min(self.text.len());
        let line = self.starts.partition_point(|&start| start <= offset);
        let start = self.starts[line - 1];
        let column = self.text.get(start..offset).map_or(0, |t| t.chars().count()) + 1;
        Place { file: self.file.clone(), line: line as u32, column: column as u32 }
    }
}

/// Parses TOML; every syntax error is reported, not only the first.
pub(super) fn parse_toml(file: &Path, text: &str) -> Result<Table, Vec<(Place, String)>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = Lines::new(file, text);
    let (root, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(table(&lines, lines.place(0), root.get_ref()));
    }
    let told =
        errors.iter().map(|e| (lines.place(e.span().map_or(0, |s| s.start)), format!("not TOML: {}", e.message())));
    let mut told: Vec<_> = told.collect();
    told.sort();
    Err(told)
}

fn table(lines: &Lines<'_>, place: Place, parsed: &DeTable<'_>) -> Table {
    let entry = |key: &toml::Spanned<std::borrow::Cow<'_, str>>, value: &toml::Spanned<DeValue<'_>>| {
        let key_place = lines.place(key.span().start);
        let node = node(lines, &key_place, value.get_ref());
        let place = match node {
            // A table's own span is its header or its first brace; the key is what a person looks for.
            Node::Table(_) => key_place.clone(),
            _ => lines.place(value.span().start),
        };
        (key.get_ref().to_string(), Entry { key_place, item: Item { place, node } })
    };
    Table { place, entries: parsed.iter().map(|(k, v)| entry(k, v)).collect() }
}

fn node(lines: &Lines<'_>, place: &Place, value: &DeValue<'_>) -> Node {
    match value {
        DeValue::String(text) => Node::Text(text.to_string()),
        DeValue::Integer(digits) => i64::from_str_radix(digits.as_str(), digits.radix())
            .map_or(Node::Other("an integer beyond 64 bits"), Node::Integer),
        DeValue::Float(digits) => digits.as_str().parse().map_or(Node::Other("a number beyond 64 bits"), Node::Float),
        DeValue::Boolean(b) => Node::Bool(*b),
        DeValue::Datetime(_) => Node::Other("a date or time"),
        DeValue::Array(items) => Node::List(
            items
                .iter()
                .map(|item| {
                    let place = lines.place(item.span().start);
                    let node = node(lines, &place, item.get_ref());
                    Item { place, node }
                })
                .collect(),
        ),
        DeValue::Table(parsed) => Node::Table(table(lines, place.clone(), parsed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Table {
        parse_toml(Path::new("f.toml"), text).unwrap()
    }

    #[test]
    fn places_count_lines_and_characters() {
        let table = parse("a = 1\n[t]\n\"ü\" = 2 # x\nü = {b = 3}\n".replace("ü = {", "x = {").as_str());
        let Some(Node::Table(t)) = table.get("t").map(|i| &i.node) else { panic!("{table:?}") };
        let entry = &t.entries["ü"];
        assert_eq!((entry.key_place.line, entry.key_place.column), (3, 1));
        assert_eq!((entry.item.place.line, entry.item.place.column), (3, 7));
    }

    #[test]
    fn every_syntax_error_is_reported() {
        let errors = parse_toml(Path::new("f.toml"), "a = \nb = 1\nc = ]\n").unwrap_err();
        assert_eq!(errors.iter().map(|(p, _)| p.line).collect::<Vec<_>>(), [1, 3], "{errors:?}");
    }

    #[test]
    fn layers_merge_key_by_key() {
        let merged = parse("a = 1\n[m]\nx = 1\ny = 2").overlaid(&parse("[m]\ny = 3\nz = 4"));
        let Some(Node::Table(m)) = merged.get("m").map(|i| &i.node) else { panic!("{merged:?}") };
        let values: Vec<_> = m.entries.values().map(|e| format!("{:?}", e.item.node)).collect();
        assert_eq!(values, ["Integer(1)", "Integer(3)", "Integer(4)"]);
        assert!(merged.get("a").is_some());
    }
}
