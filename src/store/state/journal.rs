//! Changes of the state as records of the critical lane.
//!
//! Payload: `kind u8` (1 change, 2 snapshot begins, 3 part of a snapshot, 4 snapshot ends), then entries:
//! `tree len u8, tree, present u8, key len u32, key, value len u32, value`. The parts of a snapshot are entries like
//! those of a change; applying them in order to what was there before gives the same state, so an unfinished snapshot
//! does no harm.

use bytes::Bytes;

use super::{MAX_VALUE, Op, StateError};

/// Why a record of the journal stands there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Change = 1,
    SnapshotBegin = 2,
    SnapshotPart = 3,
    SnapshotEnd = 4,
}

/// Entries that take effect together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Change(Vec<Op>);

/// Checks the name of a tree and the size of an entry.
pub(crate) fn check_entry(tree: &str, key: &[u8], value: &[u8]) -> Result<(), StateError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if tree.is_empty() || tree.len() > 64 || !tree.chars().all(legal) {
        return Err(StateError::Tree(tree.to_owned()));
    }
    let len = key.len() + value.len();
    if len > MAX_VALUE { Err(StateError::TooLarge { tree: tree.to_owned(), len }) } else { Ok(()) }
}

impl Change {
    /// Checks names and sizes.
    pub fn new(ops: Vec<Op>) -> Result<Self, StateError> {
        let mut total = 0;
        for op in &ops {
            let (tree, key, value) = parts(op);
            let value = value.map_or(&[][..], |v| v);
            check_entry(tree, key, value)?;
            total += key.len() + value.len() + tree.len() + 16;
            if total > MAX_VALUE + 1024 {
                return Err(StateError::TooLarge { tree: tree.to_owned(), len: total });
            }
        }
        Ok(Self(ops))
    }

    /// The entries.
    pub fn ops(&self) -> &[Op] {
        &self.0
    }

    /// The trees it touches, perhaps more than once.
    pub fn trees(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|op| parts(op).0)
    }

    /// As a payload.
    pub fn encode(&self, kind: Kind) -> Bytes {
        let mut out = vec![kind as u8];
        for op in &self.0 {
            let (tree, key, value) = parts(op);
            out.push(tree.len() as u8);
            out.extend(tree.as_bytes());
            out.push(u8::from(value.is_some()));
            for field in [&key[..], value.map_or(&[][..], |v| v)] {
                out.extend((field.len() as u32).to_le_bytes());
                out.extend(field);
            }
        }
        out.into()
    }

    /// Reads a payload.
    pub fn decode(payload: &[u8]) -> Option<(Kind, Self)> {
        let (&kind, mut rest) = payload.split_first()?;
        let kind = [Kind::Change, Kind::SnapshotBegin, Kind::SnapshotPart, Kind::SnapshotEnd]
            .into_iter()
            .find(|k| *k as u8 == kind)?;
        let mut ops = Vec::new();
        while !rest.is_empty() {
            let tree = String::from_utf8(field(&mut rest, 1)?.to_vec()).ok()?;
            let (&present, after) = rest.split_first()?;
            rest = after;
            let key = Bytes::copy_from_slice(field(&mut rest, 4)?);
            let value = Bytes::copy_from_slice(field(&mut rest, 4)?);
            ops.push(if present == 0 { Op::Delete { tree, key } } else { Op::Put { tree, key, value } });
        }
        Some((kind, Self(ops)))
    }
}

/// Tree, key and value of an entry.
pub(crate) fn parts(op: &Op) -> (&str, &Bytes, Option<&Bytes>) {
    match op {
        Op::Put { tree, key, value } => (tree, key, Some(value)),
        Op::Delete { tree, key } => (tree, key, None),
    }
}

/// A field behind its length of one or four bytes.
fn field<'a>(rest: &mut &'a [u8], width: usize) -> Option<&'a [u8]> {
    let (len, after) = rest.split_at_checked(width)?;
    let mut wide = [0; 4];
    wide[..width].copy_from_slice(len);
    let (value, after) = after.split_at_checked(u32::from_le_bytes(wide) as usize)?;
    *rest = after;
    Some(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn op() -> impl Strategy<Value = Op> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
        ("[a-z.]{1,20}", bytes(), proptest::option::of(bytes())).prop_map(|(tree, key, value)| match value {
            Some(value) => Op::Put { tree, key: key.into(), value: value.into() },
            None => Op::Delete { tree, key: key.into() },
        })
    }

    proptest! {
        #[test]
        fn changes_are_read_back(ops in proptest::collection::vec(op(), 0..8), cut: prop::sample::Index) {
            let change = Change::new(ops).unwrap();
            let payload = change.encode(Kind::SnapshotPart);
            prop_assert_eq!(Change::decode(&payload), Some((Kind::SnapshotPart, change)));
            let _ = Change::decode(&payload[..cut.index(payload.len())]);
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Change::decode(&bytes);
        }
    }

    #[test]
    fn names_and_sizes_are_checked() {
        assert!(matches!(check_entry("a/b", b"", b""), Err(StateError::Tree(_))));
        assert!(matches!(check_entry("", b"", b""), Err(StateError::Tree(_))));
        assert!(matches!(check_entry("a", &vec![0; MAX_VALUE], b"1"), Err(StateError::TooLarge { .. })));
        assert_eq!(check_entry("a-1.b_c", b"k", b"v"), Ok(()));
    }
}
