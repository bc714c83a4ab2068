//! A file system in memory whose power can be cut.
//!
//! Deterministic from its seed. What was not synced may be there after [`SimFs::power_cut`], or not, or in part: single
//! sectors of a write, a beginning of the changes of a directory. A failed sync loses what it should have written while
//! reads still show it, as the page cache does. Used by the tests of the store and open to others.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Entry, File, FileSystem, Lock, Open, SyncPoint};

/// Smallest unit that a device writes whole.
const SECTOR: usize = 512;

/// What the n-th operation does instead of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails once with an I/O error.
    Once,
    /// It and all after it fail until [`SimFs::heal`].
    From,
}

#[derive(Debug, Clone)]
enum NameChange {
    Add(String, u64),
    Remove(String),
    Rename(String, String),
}

#[derive(Debug, Clone, Default)]
struct Dir {
    live: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    pending: Vec<NameChange>,
    /// Whether its own name is durable in its parent.
    named: bool,
}

#[derive(Debug, Clone, Default)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<(u64, Vec<u8>)>,
}

#[derive(Debug, Default)]
struct State {
    random: u64,
    dirs: BTreeMap<PathBuf, Dir>,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    locks: BTreeSet<PathBuf>,
    /// Handles of an earlier life fail.
    life: u64,
    incarnation: u64,
    capacity: Option<u64>,
    operations: u64,
    fault: Option<(u64, Fault)>,
    left_out: BTreeSet<SyncPoint>,
    syncs: BTreeMap<SyncPoint, u64>,
    written: u64,
    peak: u64,
}

/// The simulated file system; clones share it.
#[derive(Debug, Clone)]
pub struct SimFs(Arc<Mutex<State>>);

impl SimFs {
    /// An empty one that holds only the directory `/`.
    pub fn new(seed: u64) -> Self {
        let mut state = State { random: seed.wrapping_mul(2).wrapping_add(1), next_inode: 1, ..State::default() };
        state.dirs.insert(PathBuf::from("/"), Dir { named: true, ..Dir::default() });
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts the power and boots: unsynced writes and names survive by chance, open files and locks do not.
    pub fn power_cut(&self) {
        let mut state = self.state();
        state.incarnation += 1;
        state.end_life();
        let luck = state.roll(4);
        let gone: Vec<PathBuf> = state.dirs.iter().filter(|(_, d)| !d.named).map(|(p, _)| p.clone()).collect();
        for path in gone {
            if luck != 1 {
                state.dirs.retain(|other, _| !other.starts_with(&path));
            }
        }
        let paths: Vec<PathBuf> = state.dirs.keys().cloned().collect();
        for path in paths {
            let mut dir = state.dirs.remove(&path).unwrap_or_default();
            let kept = state.survivors(luck, dir.pending.len());
            for change in dir.pending.drain(..).take(kept) {
                apply_name(&mut dir.durable, change);
            }
            dir.live = dir.durable.clone();
            dir.named = true;
            state.dirs.insert(path, dir);
        }
        let numbers: Vec<u64> = state.inodes.keys().copied().collect();
        for number in numbers {
            let mut inode = state.inodes.remove(&number).unwrap_or_default();
            for (offset, data) in std::mem::take(&mut inode.pending) {
                for (index, sector) in data.chunks(SECTOR).enumerate() {
                    if luck == 1 || (luck > 1 && state.roll(2) == 0) {
                        overwrite(&mut inode.durable, offset + (index * SECTOR) as u64, sector);
                    }
                }
            }
            inode.live = inode.durable.clone();
            state.inodes.insert(number, inode);
        }
    }

    /// Kills the process: everything written stays, open files and locks do not.
    pub fn kill(&self) {
        self.state().end_life();
    }

    /// Lets the `n`-th operation from now (1 is the next) fail.
    pub fn fail(&self, n: u64, fault: Fault) {
        let mut state = self.state();
        let at = state.operations + n;
        state.fault = Some((at, fault));
    }

    /// Ends faults and lack of space.
    pub fn heal(&self) {
        let mut state = self.state();
        state.fault = None;
        state.capacity = None;
    }

    /// Bytes that files may take in all.
    pub fn set_capacity(&self, bytes: u64) {
        self.state().capacity = Some(bytes);
    }

    /// Makes the syncs of `point` return without doing anything.
    pub fn leave_out(&self, point: SyncPoint) {
        self.state().left_out.insert(point);
    }

    /// How often each point synced (left out or not).
    pub fn syncs(&self) -> BTreeMap<SyncPoint, u64> {
        self.state().syncs.clone()
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Bytes that files take now and the most they ever took.
    pub fn used(&self) -> (u64, u64) {
        let state = self.state();
        (state.used(), state.peak)
    }

    /// All files with their lengths.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let state = self.state();
        let len = |number: &u64| state.inodes.get(number).map_or(0, |i| i.live.len() as u64);
        state.dirs.iter().flat_map(|(dir, d)| d.live.iter().map(move |(n, i)| (dir.join(n), len(i)))).collect()
    }

    /// What stands in a file now.
    pub fn content(&self, path: &Path) -> Vec<u8> {
        let state = self.state();
        let inode = state.find(path).and_then(|number| state.inodes.get(&number));
        inode.map(|inode| inode.live.clone()).unwrap_or_default()
    }

    /// Changes the content of a file behind the back of the store, durably.
    pub fn tamper(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let Some(number) = state.find(path) else { return };
        if let Some(inode) = state.inodes.get_mut(&number) {
            change(&mut inode.live);
            inode.durable = inode.live.clone();
            inode.pending.clear();
        }
    }
}

fn overwrite(content: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + data.len());
    if content.len() < end {
        content.resize(end, 0);
    }
    content[start..end].copy_from_slice(data);
}

fn apply_name(names: &mut BTreeMap<String, u64>, change: NameChange) {
    match change {
        NameChange::Add(name, inode) => _ = names.insert(name, inode),
        NameChange::Remove(name) => _ = names.remove(&name),
        NameChange::Rename(from, to) => {
            if let Some(inode) = names.remove(&from) {
                names.insert(to, inode);
            }
        }
    }
}

fn split(path: &Path) -> (PathBuf, String) {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    (path.parent().unwrap_or(Path::new("/")).to_path_buf(), name)
}

fn missing(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} does not exist", path.display()))
}

impl State {
    fn roll(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below
    }

    fn survivors(&mut self, luck: u64, pending: usize) -> usize {
        match luck {
            0 => 0,
            1 => pending,
            _ => self.roll(pending as u64 + 1) as usize,
        }
    }

    fn end_life(&mut self) {
        self.life += 1;
        self.locks.clear();
        self.fault = None;
    }

    fn used(&self) -> u64 {
        let linked: BTreeSet<u64> = self.dirs.values().flat_map(|d| d.live.values().copied()).collect();
        linked.iter().filter_map(|i| self.inodes.get(i)).map(|i| i.live.len() as u64).sum()
    }

    /// Counts an operation and fails it when its turn has come.
    fn operate(&mut self) -> io::Result<()> {
        self.operations += 1;
        let fails = match self.fault {
            Some((at, Fault::Once)) => self.operations == at,
            Some((at, Fault::From)) => self.operations >= at,
            None => false,
        };
        if fails { Err(io::Error::other("simulated I/O error")) } else { Ok(()) }
    }

    fn dir(&mut self, path: &Path) -> io::Result<&mut Dir> {
        self.dirs.get_mut(path).ok_or_else(|| missing(path))
    }

    fn find(&self, path: &Path) -> Option<u64> {
        let (dir, name) = split(path);
        self.dirs.get(&dir)?.live.get(&name).copied()
    }

    fn change(&mut self, dir: &Path, change: NameChange) -> io::Result<()> {
        let dir = self.dir(dir)?;
        apply_name(&mut dir.live, change.clone());
        dir.pending.push(change);
        Ok(())
    }
}

#[derive(Debug)]
struct SimFile {
    fs: SimFs,
    inode: u64,
    life: u64,
}

impl SimFile {
    fn with<T>(&self, counted: bool, work: impl FnOnce(&mut State, u64) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.fs.state();
        if state.life != self.life {
            return Err(io::Error::other("this process is dead"));
        }
        if counted {
            state.operate()?;
        }
        work(&mut state, self.inode)
    }
}

impl File for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(true, |state, inode| {
            let content = state.inodes.get(&inode).map_or(&[][..], |i| &i.live);
            let start = (offset as usize).min(content.len());
            let n = buf.len().min(content.len() - start);
            buf[..n].copy_from_slice(&content[start..start + n]);
            Ok(n)
        })
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.with(true, |state, inode| {
            let len = state.inodes.get(&inode).map_or(0, |i| i.live.len() as u64);
            let growth = (offset + data.len() as u64).saturating_sub(len);
            let used = state.used();
            if growth > 0 && state.capacity.is_some_and(|capacity| used + growth > capacity) {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            state.written += data.len() as u64;
            state.peak = state.peak.max(used + growth);
            if let Some(inode) = state.inodes.get_mut(&inode) {
                overwrite(&mut inode.live, offset, data);
                inode.pending.push((offset, data.to_vec()));
            }
            Ok(())
        })
    }

    fn sync(&self, point: SyncPoint) -> io::Result<()> {
        let failed = self.with(true, |_, _| Ok(())).err();
        self.with(false, |state, inode| {
            *state.syncs.entry(point).or_default() += 1;
            let left_out = state.left_out.contains(&point);
            if let (Some(inode), false) = (state.inodes.get_mut(&inode), left_out) {
                let pending = std::mem::take(&mut inode.pending);
                if failed.is_none() {
                    for (offset, data) in pending {
                        overwrite(&mut inode.durable, offset, &data);
                    }
                }
            }
            failed.map_or(Ok(()), Err)
        })
    }

    fn write_out(&self) -> io::Result<()> {
        self.with(true, |_, _| Ok(()))
    }

    fn len(&self) -> io::Result<u64> {
        self.with(false, |state, inode| Ok(state.inodes.get(&inode).map_or(0, |i| i.live.len() as u64)))
    }
}

#[derive(Debug)]
struct SimLock {
    fs: SimFs,
    path: PathBuf,
    life: u64,
}

impl Lock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.fs.state();
        if state.life == self.life {
            state.locks.remove(&self.path);
        }
    }
}

impl FileSystem for SimFs {
    fn make_dir(&self, dir: &Path) -> io::Result<bool> {
        let mut state = self.state();
        state.operate()?;
        if state.dirs.contains_key(dir) {
            return Ok(false);
        }
        let (parent, _) = split(dir);
        state.dir(&parent)?;
        state.dirs.insert(dir.to_path_buf(), Dir::default());
        Ok(true)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let mut state = self.state();
        state.operate()?;
        let live = state.dir(dir)?.live.clone();
        let len = |number: &u64| state.inodes.get(number).map_or(0, |i| i.live.len() as u64);
        Ok(live.iter().map(|(name, number)| Entry { name: name.clone(), len: len(number) }).collect())
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        let mut state = self.state();
        state.operate()?;
        let inode = match (state.find(path), how) {
            (Some(inode), Open::Read | Open::ReadWrite) => inode,
            (None, Open::Read | Open::ReadWrite) => return Err(missing(path)),
            (_, Open::Create) => {
                let (dir, name) = split(path);
                let inode = state.next_inode;
                state.next_inode += 1;
                state.inodes.insert(inode, Inode::default());
                state.change(&dir, NameChange::Add(name, inode))?;
                inode
            }
        };
        Ok(Arc::new(SimFile { fs: self.clone(), inode, life: state.life }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.operate()?;
        state.find(from).ok_or_else(|| missing(from))?;
        let ((dir, old), (target, new)) = (split(from), split(to));
        if dir != target {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        }
        state.change(&dir, NameChange::Rename(old, new))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.operate()?;
        state.find(path).ok_or_else(|| missing(path))?;
        let (dir, name) = split(path);
        state.change(&dir, NameChange::Remove(name))
    }

    fn sync_dir(&self, dir: &Path, point: SyncPoint) -> io::Result<()> {
        let mut state = self.state();
        state.operate()?;
        *state.syncs.entry(point).or_default() += 1;
        if state.left_out.contains(&point) {
            return Ok(());
        }
        let found = state.dir(dir)?;
        found.pending.clear();
        found.durable = found.live.clone();
        for (path, child) in &mut state.dirs {
            if path.parent() == Some(dir) {
                child.named = true;
            }
        }
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        let mut state = self.state();
        if !state.locks.insert(path.to_path_buf()) {
            return Err(io::Error::from(io::ErrorKind::WouldBlock));
        }
        Ok(Box::new(SimLock { fs: self.clone(), path: path.to_path_buf(), life: state.life }))
    }

    fn incarnation(&self, _dir: &Path) -> u64 {
        self.state().incarnation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_synced_survives_for_certain() {
        let mut lost = [0; 3];
        for seed in 0..40 {
            let fs = SimFs::new(seed);
            let path = Path::new("/a");
            let file = fs.open(path, Open::Create).unwrap();
            file.write_at(b"first", 0).unwrap();
            file.sync(SyncPoint::SegmentData).unwrap();
            fs.sync_dir(Path::new("/"), SyncPoint::SegmentDirectory).unwrap();
            file.write_at(b"second", 5).unwrap();
            fs.rename(path, Path::new("/b")).unwrap();
            fs.power_cut();
            assert!(file.write_at(b"x", 0).is_err(), "a dead process cannot write");
            let mut buf = [0; 20];
            let (name, n) = ["/a", "/b"]
                .iter()
                .find_map(|n| Some((*n, fs.open(Path::new(n), Open::Read).ok()?.read_at(&mut buf, 0).unwrap())))
                .unwrap();
            assert_eq!(&buf[..5], b"first");
            lost[0] += usize::from(name == "/a");
            lost[1] += usize::from(n == 5);
            lost[2] += usize::from(n == 11);
        }
        assert!(lost.iter().all(|&n| n > 0), "all outcomes occur: {lost:?}");
    }

    #[test]
    fn a_failed_sync_loses_what_reads_still_show() {
        let fs = SimFs::new(1);
        let file = fs.open(Path::new("/a"), Open::Create).unwrap();
        fs.sync_dir(Path::new("/"), SyncPoint::SegmentDirectory).unwrap();
        file.write_at(b"gone", 0).unwrap();
        fs.fail(1, Fault::Once);
        file.sync(SyncPoint::SegmentData).unwrap_err();
        file.sync(SyncPoint::SegmentData).unwrap();
        assert_eq!(file.len().unwrap(), 4);
        fs.power_cut();
        assert_eq!(fs.open(Path::new("/a"), Open::Read).unwrap().len().unwrap(), 0);
    }
}
