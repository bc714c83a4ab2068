//! The sled database, and what waits to be written to lazy trees.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use bytes::Bytes;

use super::journal::parts;
use super::value::{seal, unseal};
use super::{OWN_TREE, Op, StateError};

/// In front of the names of lazy trees in sled.
const LAZY: &str = "~";
/// Bytes that may wait for lazy trees.
const PENDING_BYTES: usize = 512 * 1024;
const CACHE_BYTES: u64 = 1 << 20;

/// A value cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("a value of tree {0} fails its checksum")]
    Checksum(String),
    #[error("the state is closed or being rebuilt")]
    Gone,
    #[error(transparent)]
    Sled(#[from] sled::Error),
}

/// Changes of lazy trees that are not in sled yet; `None` removes.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub entries: BTreeMap<(String, Bytes), Option<Bytes>>,
    bytes: usize,
}

/// What readers and the writer share.
#[derive(Debug)]
pub(crate) struct Shared {
    dir: PathBuf,
    /// `None` only while it is being replaced, or after that failed.
    db: RwLock<Option<sled::Db>>,
    pending: Mutex<Pending>,
}

/// Opens sled. A lock held by an instance that is just going away is waited for; it is no damage.
fn open_db(dir: &Path) -> io::Result<sled::Db> {
    const TRIES: u32 = 100;
    const PAUSE: Duration = Duration::from_millis(20);
    let config =
        sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).mode(sled::Mode::LowSpace).flush_every_ms(None);
    for tried in 1.. {
        // sled panics on some kinds of damage.
        let opened = catch_unwind(AssertUnwindSafe(|| config.open()));
        let opened =
            opened.unwrap_or_else(|_| Err(sled::Error::Io(io::Error::other("sled panicked while opening its files"))));
        match opened {
            Err(sled::Error::Io(error)) if tried < TRIES && error.to_string().contains("lock") => thread::sleep(PAUSE),
            other => return other.map_err(io::Error::other),
        }
    }
    unreachable!("the last try returns")
}

/// Makes the names of the directory and of its files durable, which sled does not.
fn sync_dirs(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()?;
    dir.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Reads every value once.
fn check(db: &sled::Db) -> Result<(), ReadError> {
    let read = || {
        for name in db.tree_names() {
            let Ok(text) = std::str::from_utf8(&name) else { return Err(ReadError::Checksum("?".into())) };
            let tree = db.open_tree(&name)?;
            for entry in tree.iter() {
                let (key, sealed) = entry?;
                if unseal(text, &key, &sealed).is_none() {
                    return Err(ReadError::Checksum(text.to_owned()));
                }
            }
        }
        Ok(())
    };
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(ReadError::Checksum("?".into())))
}

/// Renames the directory out of the way, in the place of an earlier one.
fn set_aside(dir: &Path) -> io::Result<()> {
    let aside = dir.with_extension("bad");
    match std::fs::remove_dir_all(&aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    match std::fs::rename(dir, &aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

impl Shared {
    /// Opens the database in `dir`. One that is damaged is set aside for a new one, which is empty.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let opened = open_db(dir).and_then(|db| check(&db).map(|()| db).map_err(io::Error::other));
        let db = match opened {
            Ok(db) => db,
            Err(error) => {
                tracing::error!(dir = %dir.display(), %error, "the state is damaged; it is set aside as state.bad and rebuilt from its journal");
                set_aside(dir)?;
                open_db(dir)?
            }
        };
        sync_dirs(dir)?;
        Ok(Self { dir: dir.to_path_buf(), db: RwLock::new(Some(db)), pending: Mutex::default() })
    }

    /// Sets the present database aside and begins an empty one. Lazy changes that wait are kept.
    pub fn begin_anew(&self) -> io::Result<()> {
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        // sled keeps its files open and locked until the last handle is gone.
        *db = None;
        set_aside(&self.dir)?;
        *db = Some(open_db(&self.dir)?);
        Ok(())
    }

    /// Lets go of the files; from here on reading and writing fail.
    pub fn close(&self) {
        *self.db.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn with<T>(&self, work: impl FnOnce(&sled::Db) -> Result<T, ReadError>) -> Result<T, ReadError> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let db = db.as_ref().ok_or(ReadError::Gone)?;
        catch_unwind(AssertUnwindSafe(|| work(db))).unwrap_or_else(|_| Err(ReadError::Checksum("?".into())))
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value of a key of a durable or lazy tree.
    pub fn get(&self, tree: &str, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        if let Some(value) = self.pending().entries.get(&(tree.to_owned(), Bytes::copy_from_slice(key))) {
            return Ok(value.clone());
        }
        self.with(|db| {
            for name in self.names(db, tree) {
                if let Some(sealed) = db.open_tree(&name)?.get(key)? {
                    return unseal(&name, key, &sealed).map(Some).ok_or(ReadError::Checksum(name));
                }
            }
            Ok(None)
        })
    }

    /// All entries whose keys begin with `prefix`.
    pub fn scan(&self, tree: &str, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, ReadError> {
        let mut found: BTreeMap<Bytes, Bytes> = self.with(|db| {
            let mut found = BTreeMap::new();
            for name in self.names(db, tree) {
                for entry in db.open_tree(&name)?.scan_prefix(prefix) {
                    let (key, sealed) = entry?;
                    let value = unseal(&name, &key, &sealed).ok_or_else(|| ReadError::Checksum(name.clone()))?;
                    found.insert(Bytes::copy_from_slice(&key), value);
                }
            }
            Ok(found)
        })?;
        for ((_, key), value) in self.pending().entries.iter().filter(|((t, k), _)| t == tree && k.starts_with(prefix))
        {
            match value {
                Some(value) => _ = found.insert(key.clone(), value.clone()),
                None => _ = found.remove(key),
            }
        }
        Ok(found.into_iter().collect())
    }

    /// The trees of sled that hold a tree; none is made by asking.
    fn names(&self, db: &sled::Db, tree: &str) -> Vec<String> {
        let known = db.tree_names();
        let names = [tree.to_owned(), format!("{LAZY}{tree}")];
        names.into_iter().filter(|n| known.iter().any(|k| k == n.as_bytes())).collect()
    }

    /// Whether every tree may be written in this way.
    pub fn check_kind<'a>(&self, mut trees: impl Iterator<Item = &'a str>, lazy: bool) -> Result<(), StateError> {
        let known = self.with(|db| Ok(db.tree_names())).map_err(|e| StateError::Disk(e.to_string()))?;
        trees.try_for_each(|tree| {
            if tree == OWN_TREE {
                return Err(StateError::Tree(tree.to_owned()));
            }
            let (other, how) = if lazy { (tree.to_owned(), "durably") } else { (format!("{LAZY}{tree}"), "lazily") };
            let taken = known.iter().any(|n| n == other.as_bytes())
                || (!lazy && self.pending().entries.keys().any(|(t, _)| t == tree));
            if taken { Err(StateError::Mixed(tree.to_owned(), how)) } else { Ok(()) }
        })
    }

    /// Notes a lazy change. Says whether it is the first to wait, and whether so much waits that it should be written now.
    pub fn pend(&self, tree: &str, key: &[u8], value: Option<Bytes>) -> (bool, bool) {
        let mut pending = self.pending();
        let first = pending.entries.is_empty();
        pending.bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
        pending.entries.insert((tree.to_owned(), Bytes::copy_from_slice(key)), value);
        (first, pending.bytes > PENDING_BYTES)
    }

    /// Whether lazy changes wait.
    pub fn has_pending(&self) -> bool {
        !self.pending().entries.is_empty()
    }

    /// Applies lazy changes to sled and syncs them. They stay visible all the while.
    pub fn write_pending(&self) -> io::Result<()> {
        let entries: Vec<_> = self.pending().entries.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let ops = entries.iter().map(|((tree, key), value)| {
            let tree = format!("{LAZY}{tree}");
            match value {
                Some(value) => Op::Put { tree, key: key.clone(), value: value.clone() },
                None => Op::Delete { tree, key: key.clone() },
            }
        });
        let ops: Vec<Op> = ops.collect();
        self.apply(&ops)?;
        let mut pending = self.pending();
        for (key, value) in entries {
            if pending.entries.get(&key) == Some(&value) {
                pending.entries.remove(&key);
            }
        }
        pending.bytes = pending.entries.iter().map(|((_, k), v)| k.len() + v.as_ref().map_or(0, Bytes::len)).sum();
        Ok(())
    }

    /// Applies changes to sled and waits until they are on the disk.
    pub fn apply(&self, ops: &[Op]) -> io::Result<()> {
        let guard = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let db = guard.as_ref().ok_or_else(|| io::Error::other("the state is closed or could not be rebuilt"))?;
        let work = || -> Result<(), sled::Error> {
            for op in ops {
                let (tree, key, value) = parts(op);
                let target = db.open_tree(tree)?;
                match value {
                    Some(value) => _ = target.insert(key.as_ref(), seal(tree, key, value))?,
                    None => _ = target.remove(key.as_ref())?,
                }
            }
            db.flush().map(|_| ())
        };
        catch_unwind(AssertUnwindSafe(work))
            .unwrap_or_else(|_| Err(sled::Error::Io(io::Error::other("sled panicked"))))
            .map_err(io::Error::other)?;
        File::open(self.dir.join("db"))?.sync_all()
    }

    /// Which of these entries, in order, sled does not show. Later entries of a key count.
    pub fn differing(&self, ops: Vec<Op>) -> Result<Vec<Op>, ReadError> {
        let last: BTreeMap<(String, Bytes), Op> =
            ops.into_iter().map(|op| ((parts(&op).0.to_owned(), parts(&op).1.clone()), op)).collect();
        let differs = |op: &Op| {
            let (tree, key, value) = parts(op);
            Ok::<_, ReadError>(self.get(tree, key)?.as_ref() != value)
        };
        last.into_values().filter_map(|op| differs(&op).map(|d| d.then_some(op)).transpose()).collect()
    }

    /// Every entry of the durable trees.
    pub fn durable_entries(&self) -> Result<Vec<Op>, ReadError> {
        self.with(|db| {
            let mut ops = Vec::new();
            for name in db.tree_names() {
                let tree = String::from_utf8_lossy(&name).into_owned();
                if tree.starts_with(LAZY) || tree == "__sled__default" {
                    continue;
                }
                for entry in db.open_tree(&name)?.iter() {
                    let (key, sealed) = entry?;
                    let value = unseal(&tree, &key, &sealed).ok_or_else(|| ReadError::Checksum(tree.clone()))?;
                    ops.push(Op::Put { tree: tree.clone(), key: Bytes::copy_from_slice(&key), value });
                }
            }
            Ok(ops)
        })
    }

    /// Puts a value without a valid checksum.
    #[cfg(test)]
    pub fn tamper(&self, op: &Op) {
        let (tree, key, value) = parts(op);
        let put = |db: &sled::Db| Ok(db.open_tree(tree)?.insert(key.as_ref(), value.unwrap().as_ref())?);
        self.with(put).unwrap();
    }
}
