//! Point lists as spreadsheets write them: comma, semicolon or tab, with or without a byte order mark, CRLF or LF, quoted
//! cells. The first row names the keys; a cell's place is its line and the number of its column.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::problem::Place;
use super::tree::{Entry, Item, Node, Table};

/// Rows as tables, and everything that is wrong with the list as such.
pub(super) struct List {
    pub rows: Vec<Table>,
    pub errors: Vec<(Place, String)>,
}

/// Reads a list. Lines that begin with `#` and rows without any cell are left out.
pub(super) fn parse_csv(file: &Path, octets: &[u8]) -> List {
    let file: Arc<Path> = file.into();
    let refuse = |text: &str| List { rows: Vec::new(), errors: vec![(Place::file(&file), text.to_owned())] };
    if octets.starts_with(&[0xff, 0xfe]) || octets.starts_with(&[0xfe, 0xff]) {
        return refuse("is UTF-16; save it as \"CSV UTF-8\"");
    }
    let octets = octets.strip_prefix("\u{feff}".as_bytes()).unwrap_or(octets);
    let Ok(text) = std::str::from_utf8(octets) else {
        return refuse("is not UTF-8; save it as \"CSV UTF-8\"");
    };
    // Some spreadsheets name the separator on a line of its own.
    let (skipped, text) = match text.split_once('\n') {
        Some((first, rest)) if first.trim_end_matches('\r').len() <= 5 && first.starts_with("sep=") => (1, rest),
        _ => (0, text),
    };
    let separator = separator(text);
    let text = with_marked_gaps(text, char::from(separator));
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(separator)
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let mut list = List { rows: Vec::new(), errors: Vec::new() };
    let mut header: Option<Vec<(String, Place)>> = None;
    for record in reader.records() {
        let record = match record {
            Ok(record) => record,
            Err(e) => {
                list.errors.push((Place::file(&file), format!("not a readable list: {e}")));
                break;
            }
        };
        let line = record.position().map_or(0, |p| p.line() as u32) + skipped;
        if record.iter().all(str::is_empty) {
            continue;
        }
        let place = |index: usize| Place { file: file.clone(), line, column: index as u32 + 1 };
        match &header {
            None => header = Some(read_header(&record, place, &mut list.errors)),
            Some(header) => list.rows.push(row(header, &record, place, &mut list.errors)),
        }
    }
    if list.rows.is_empty() && list.errors.is_empty() {
        list.errors.push((
            Place::file(&file),
            "has no points; the first row names the keys (such as id,table,address,type), each further row is a point"
                .to_owned(),
        ));
    }
    list
}

fn read_header(
    record: &csv::StringRecord,
    place: impl Fn(usize) -> Place,
    errors: &mut Vec<(Place, String)>,
) -> Vec<(String, Place)> {
    let header: Vec<_> = record.iter().enumerate().map(|(i, name)| (name.to_owned(), place(i))).collect();
    for (i, (name, at)) in header.iter().enumerate() {
        if !name.is_empty() && header[..i].iter().any(|(n, _)| n == name) {
            errors.push((at.clone(), format!("column `{name}` stands twice; remove one")));
        }
    }
    header
}

fn row(
    header: &[(String, Place)],
    record: &csv::StringRecord,
    place: impl Fn(usize) -> Place,
    errors: &mut Vec<(Place, String)>,
) -> Table {
    let mut entries = BTreeMap::new();
    for (index, cell) in record.iter().enumerate() {
        match header.get(index) {
            Some((name, key_place)) if !name.is_empty() => {
                let item = Item { place: place(index), node: Node::Cell(cell.to_owned()) };
                entries.insert(name.clone(), Entry { key_place: key_place.clone(), item });
            }
            _ if cell.is_empty() => {}
            _ => errors.push((
                place(index),
                format!("cell `{cell}` stands under no column name; quote a cell that contains the separator"),
            )),
        }
    }
    Table { place: place(0), entries }
}

/// Comments and empty lines as rows of empty cells: the parser would skip them and count its lines wrong.
fn with_marked_gaps(text: &str, separator: char) -> String {
    let mut marked = String::with_capacity(text.len() + 64);
    let mut quoted = false;
    for line in text.split_inclusive('\n') {
        if !quoted && (line.starts_with('#') || line.trim().is_empty()) {
            marked.push(separator);
            marked.push('\n');
        } else {
            quoted ^= line.matches('"').count() % 2 == 1;
            marked.push_str(line);
        }
    }
    marked
}

/// The separator that stands most often in the first row, outside quotes.
fn separator(text: &str) -> u8 {
    let first = text.lines().find(|l| !l.trim().is_empty() && !l.starts_with('#')).unwrap_or_default();
    let mut counts = [(b',', 0), (b';', 0), (b'\t', 0)];
    let mut quoted = false;
    for octet in first.bytes() {
        quoted ^= octet == b'"';
        if let Some((_, n)) = counts.iter_mut().find(|(s, _)| *s == octet && !quoted) {
            *n += 1;
        }
    }
    // The first of the best: a list of one column has no separator at all.
    counts.iter().rev().max_by_key(|(_, n)| *n).map_or(b',', |(s, n)| if *n == 0 { b',' } else { *s })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cells(octets: &[u8]) -> (Vec<Vec<String>>, usize) {
        let list = parse_csv(Path::new("p.csv"), octets);
        let cell = |e: &Entry| match &e.item.node {
            Node::Cell(text) => text.clone(),
            other => panic!("{other:?}"),
        };
        (list.rows.iter().map(|r| r.entries.values().map(cell).collect()).collect(), list.errors.len())
    }

    #[test]
    fn every_way_a_spreadsheet_saves_reads_the_same() {
        let expected = (
            vec![
                vec!["1".to_owned(), "level; \"raw\"".into(), "a".into()],
                vec!["2".into(), String::new(), "b".into()],
            ],
            0,
        );
        let plain = "address,description,id\n1,\"level; \"\"raw\"\"\",a\n2,,b\n";
        assert_eq!(cells(plain.as_bytes()), expected);
        let semicolons = "\u{feff}address;description;id\r\n1;\"level; \"\"raw\"\"\";a\r\n2;;b\r\n;;\r\n";
        assert_eq!(cells(semicolons.as_bytes()), expected);
        assert_eq!(cells(b"sep=\t\r\n\"address\"\t\"description\"\t\"id\"\t\r\n1\t\"level; \"\"raw\"\"\"\ta\t\r\n# note\r\n2\t\tb\t\r\n"), expected);
    }

    #[test]
    fn places_are_line_and_column() {
        let list = parse_csv(Path::new("p.csv"), b"sep=,\n# c\nid,address\n\na,1\r\n# \"\r\nb,2\n");
        let entry = &list.rows[1].entries["address"];
        assert_eq!((entry.item.place.line, entry.item.place.column), (7, 2));
        assert_eq!((entry.key_place.line, entry.key_place.column), (3, 2));
    }

    #[test]
    fn what_cannot_be_a_list_is_refused() {
        for (octets, word) in [
            (&b"\xff\xfei\0d\0"[..], "UTF-16"),
            (b"id,x\n\xe4,1\n", "UTF-8"),
            (b"", "no points"),
            (b"id,id\na,b\n", "twice"),
            (b"id,address\na,1,5\n", "no column name"),
        ] {
            let list = parse_csv(Path::new("p.csv"), octets);
            assert!(list.errors.iter().any(|(_, text)| text.contains(word)), "{word}: {:?}", list.errors);
        }
    }

    proptest! {
        #[test]
        fn any_octets_are_read_or_refused(octets in proptest::collection::vec(any::<u8>(), 0..300)) {
            let list = parse_csv(Path::new("p.csv"), &octets);
            prop_assert!(!list.rows.is_empty() || !list.errors.is_empty());
        }
    }
}
