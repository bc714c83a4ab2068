//! The journal of management in one tree of the state store.
//!
//! The state store makes batches of at most 128 KiB durable as a whole; one step of management may be larger (a thousand
//! approvals) and a single record, too (a document of a transfer). So a large batch is first written as parts under `redo/`,
//! the last of which says that all of them are there, then carried out, then forgotten. A start that finds the last part
//! carries it out again; one that does not forgets the others. Either way all of a batch is there, or nothing.
//! A large value lies in pieces, `{key}`, `{key}\0{0001}` and so on.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use crate::management::journal::{Change, Journal, JournalError, Records, Shelf};
use crate::store::{Op, Store};

/// Tree of the state store. Keys are `{table}/{key}`.
pub const TREE: &str = "management";
/// Most octets of keys and values that are written at once; the store takes 128 KiB with what it adds.
const BATCH: usize = 96 * 1024;
/// Most octets of one piece of a value.
const PIECE: usize = 48 * 1024;
/// What the store adds to an entry, at most.
const OVERHEAD: usize = 64;
const REDO: &str = "redo/";
const REDO_END: &str = "redo/end";

/// [`Journal`] on the state store.
#[derive(Debug)]
pub struct StateJournal {
    store: Store,
    /// Pieces of each key that has more than one, to remove them when the value gets shorter. Known after a load.
    pieces: BTreeMap<String, usize>,
    is_loaded: bool,
}

impl StateJournal {
    /// A journal on this store.
    pub fn new(store: Store) -> Self {
        Self { store, pieces: BTreeMap::new(), is_loaded: false }
    }

    async fn write(&self, ops: Vec<Op>) -> Result<(), JournalError> {
        if ops.is_empty() {
            return Ok(());
        }
        self.store.state().batch(ops).await.map_err(failed("write"))
    }

    /// Carries out what a crash interrupted.
    async fn recover(&self) -> Result<(), JournalError> {
        let found = self.store.state().scan(TREE, REDO.as_bytes()).map_err(failed("read"))?;
        if found.is_empty() {
            return Ok(());
        }
        let ended = found.iter().any(|(key, _)| key == REDO_END);
        let parts = found.iter().filter(|(key, _)| ended && key != REDO_END);
        for (key, octets) in parts {
            let ops = decode(octets).ok_or_else(|| JournalError::Record {
                shelf: TREE,
                key: String::from_utf8_lossy(key).into_owned(),
                reason: "it is no part of a batch".to_owned(),
            })?;
            self.write(ops).await?;
        }
        self.write(found.into_iter().map(|(key, _)| delete(key)).collect()).await
    }

    /// Changes as entries of the tree: large values in pieces, pieces that are left over removed.
    fn ops(&mut self, changes: Vec<Change>) -> Vec<Op> {
        let mut ops = Vec::with_capacity(changes.len());
        for Change { shelf, key, value } in changes {
            let key = format!("{}/{key}", shelf.as_str());
            let before = self.pieces.remove(&key).unwrap_or(1);
            let mut count = 0;
            if let Some(value) = &value {
                let pieces = value.chunks(PIECE).collect::<Vec<_>>();
                count = pieces.len();
                for (n, piece) in pieces.into_iter().enumerate() {
                    ops.push(put(piece_key(&key, n).into(), Bytes::copy_from_slice(piece)));
                }
            }
            ops.extend((count..before).map(|n| delete(piece_key(&key, n).into())));
            if count > 1 {
                self.pieces.insert(key, count);
            }
        }
        ops
    }

    fn find_pieces(&mut self) -> Result<(), JournalError> {
        if std::mem::replace(&mut self.is_loaded, true) {
            return Ok(());
        }
        for (key, _) in self.store.state().scan(TREE, b"").map_err(failed("read"))? {
            let key = String::from_utf8_lossy(&key).into_owned();
            if let Some((whole, n)) = key.split_once('\0')
                && let Ok(n) = n.parse::<usize>()
            {
                let known = self.pieces.entry(whole.to_owned()).or_insert(1);
                *known = (*known).max(n + 1);
            }
        }
        Ok(())
    }
}

impl Journal for StateJournal {
    async fn load(&self) -> Result<Records, JournalError> {
        self.recover().await?;
        let mut values: BTreeMap<String, BytesMut> = BTreeMap::new();
        // In order of the keys, so the pieces of a value follow each other.
        for (key, value) in self.store.state().scan(TREE, b"").map_err(failed("read"))? {
            let key = String::from_utf8_lossy(&key).into_owned();
            let whole = key.split_once('\0').map_or(key.as_str(), |(whole, _)| whole);
            values.entry(whole.to_owned()).or_default().put(value);
        }
        let mut records = Records::default();
        for (key, value) in values {
            let Some((shelf, key)) = key.split_once('/') else { continue };
            // A table of a newer version stays as it is.
            let Some(shelf) = Shelf::parse(shelf) else { continue };
            records.insert(shelf, key.to_owned(), value.freeze());
        }
        Ok(records)
    }

    async fn commit(&mut self, changes: Vec<Change>) -> Result<(), JournalError> {
        self.find_pieces()?;
        let ops = self.ops(changes);
        let mut batches = split(ops);
        if batches.len() <= 1 {
            return self.write(batches.pop().unwrap_or_default()).await;
        }
        let parts: Vec<Bytes> = batches.iter().map(|batch| encode(batch)).collect();
        let names: Vec<Bytes> = (0..parts.len()).map(|n| format!("{REDO}{n:06}").into()).collect();
        for (name, part) in names.iter().zip(parts) {
            self.write(vec![put(name.clone(), part)]).await?;
        }
        self.write(vec![put(REDO_END.into(), Bytes::new())]).await?;
        for batch in batches {
            self.write(batch).await?;
        }
        // The end first: without it the rest means nothing.
        let all = [Bytes::from(REDO_END)].into_iter().chain(names);
        for batch in split(all.map(delete).collect()) {
            self.write(batch).await?;
        }
        Ok(())
    }
}

fn failed(act: &'static str) -> impl Fn(crate::store::StateError) -> JournalError {
    move |error| JournalError::Medium { act, reason: error.to_string() }
}

fn put(key: Bytes, value: Bytes) -> Op {
    Op::Put { tree: TREE.to_owned(), key, value }
}

fn delete(key: Bytes) -> Op {
    Op::Delete { tree: TREE.to_owned(), key }
}

fn piece_key(key: &str, n: usize) -> String {
    if n == 0 { key.to_owned() } else { format!("{key}\0{n:04}") }
}

const fn size(op: &Op) -> usize {
    match op {
        Op::Put { key, value, .. } => key.len() + value.len() + OVERHEAD,
        Op::Delete { key, .. } => key.len() + OVERHEAD,
    }
}

/// Batches that the store takes.
fn split(ops: Vec<Op>) -> Vec<Vec<Op>> {
    let mut batches: Vec<Vec<Op>> = Vec::new();
    let mut filled = BATCH;
    for op in ops {
        let more = size(&op);
        if filled + more > BATCH {
            batches.push(Vec::new());
            filled = 0;
        }
        filled += more;
        if let Some(batch) = batches.last_mut() {
            batch.push(op);
        }
    }
    batches
}

/// One part: for each change a mark, the key and the value with their lengths.
fn encode(ops: &[Op]) -> Bytes {
    let mut out = BytesMut::new();
    let text = |out: &mut BytesMut, octets: &[u8]| {
        out.put_u32(octets.len() as u32);
        out.put_slice(octets);
    };
    for op in ops {
        match op {
            Op::Put { key, value, .. } => {
                out.put_u8(1);
                text(&mut out, key);
                text(&mut out, value);
            }
            Op::Delete { key, .. } => {
                out.put_u8(0);
                text(&mut out, key);
            }
        }
    }
    out.freeze()
}

fn decode(octets: &Bytes) -> Option<Vec<Op>> {
    let mut rest = octets.clone();
    let mut ops = Vec::new();
    while !rest.is_empty() {
        let is_put = rest.split_to(1)[0] == 1;
        let key = take(&mut rest)?;
        ops.push(if is_put { put(key, take(&mut rest)?) } else { delete(key) });
    }
    Some(ops)
}

fn take(rest: &mut Bytes) -> Option<Bytes> {
    let length = rest.get(..4)?;
    let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
    if rest.len() < 4 + length {
        return None;
    }
    let _length = rest.split_to(4);
    Some(rest.split_to(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::clock::ManualClock;
    use crate::store::Config;

    fn change(shelf: Shelf, key: &str, value: Option<Vec<u8>>) -> Change {
        Change { shelf, key: key.to_owned(), value: value.map(Bytes::from) }
    }

    fn text(length: usize, letter: u8) -> Option<Vec<u8>> {
        let mut json = vec![letter; length];
        (json[0], json[length - 1]) = (b'"', b'"');
        Some(json)
    }

    async fn lengths(journal: &StateJournal) -> Vec<usize> {
        journal.load().await.unwrap().values().map(Bytes::len).collect()
    }

    #[tokio::test]
    async fn batches_and_values_of_any_size_are_kept_whole() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Config::new(dir.path()), ManualClock::at(0)).unwrap();
        let mut journal = StateJournal::new(store.clone());
        let many = (0..300).map(|n| change(Shelf::Devices, &format!("d{n:03}"), text(1_000, b'x')));
        journal.commit(many.collect()).await.unwrap();
        assert_eq!(lengths(&journal).await, vec![1_000; 300]);
        journal.commit((0..300).map(|n| change(Shelf::Devices, &format!("d{n:03}"), None)).collect()).await.unwrap();
        journal.commit(vec![change(Shelf::Answers, "a", text(700_000, b'y'))]).await.unwrap();
        assert_eq!(lengths(&journal).await, [700_000]);
        // Another process finds the pieces, and removes those that are left over.
        let mut journal = StateJournal::new(store.clone());
        journal.commit(vec![change(Shelf::Answers, "a", text(60_000, b'z'))]).await.unwrap();
        assert_eq!(lengths(&journal).await, [60_000]);
        assert_eq!(store.state().scan(TREE, b"").unwrap().len(), 2);
        store.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_crash_in_a_large_batch_leaves_all_of_it_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Config::new(dir.path()), ManualClock::at(0)).unwrap();
        let journal = StateJournal::new(store.clone());
        let part = |n: u8| encode(&[put(format!("{}/d{n}", Shelf::Devices.as_str()).into(), "1".into())]);
        for n in 0..2 {
            journal.write(vec![put(format!("{REDO}{n:06}").into(), part(n))]).await.unwrap();
        }
        assert_eq!(lengths(&journal).await, Vec::<usize>::new(), "the last part is not there: nothing happened");
        for n in 0..2 {
            journal.write(vec![put(format!("{REDO}{n:06}").into(), part(n))]).await.unwrap();
        }
        journal.write(vec![put(REDO_END.into(), Bytes::new())]).await.unwrap();
        assert_eq!(lengths(&journal).await, [1, 1], "all parts are there: it is done to its end");
        assert_eq!(store.state().scan(TREE, REDO.as_bytes()).unwrap(), []);
        assert_eq!(decode(&Bytes::from_static(b"\x01\0\0")), None);
        store.close().await.unwrap();
    }
}
