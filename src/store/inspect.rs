//! The log seen from outside: status, verification, gaps and repair, for the command line.
//!
//! All but [`repair`] only read and work while the gateway runs; a record that is being written just then counts as not
//! there yet. Nothing is kept in memory but one segment's summary at a time.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::fs::{FileSystem, Open, RealFs, SyncPoint};
use super::log::acks::{AckFile, Image};
use super::log::engine::buffer_dir;
use super::log::frame;
use super::log::holes::{Hole, Holes};
use super::log::progress::Item;
use super::log::scan::{Found, Scanner};
use super::log::segment::{self, HEADER_LEN, Segment};
use crate::model::{Gap, GapReason, Lane, Record, RecordKind, Seq};

/// The log cannot be inspected.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// There is no log.
    #[error("there is no log in {0}")]
    Missing(PathBuf),
    /// The gateway runs.
    #[error("the gateway uses the store in {0}; stop it before a repair")]
    Running(PathBuf),
    /// The disk refused.
    #[error("cannot {act} {path}: {source}")]
    Io {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The result cannot be written.
    #[error("cannot write the export: {0}")]
    Output(#[source] io::Error),
}

/// How far a long reading is, in bytes of segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read.
    pub done: u64,
    /// Bytes to read in all.
    pub total: u64,
}

/// What is in the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The lanes, critical first.
    pub lanes: Vec<LaneReport>,
}

/// What is in a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneReport {
    /// Which lane.
    pub lane: Lane,
    /// It was closed cleanly; `None` when the ack file is missing or damaged. While the gateway runs: false.
    pub clean: Option<bool>,
    /// Bytes of its files.
    pub bytes: u64,
    /// Files of segments.
    pub segments: u64,
    /// Segments set aside because they are damaged or of a newer version.
    pub set_aside: u64,
    /// First and last number in the files; `None` when there are none.
    pub range: Option<(Seq, Seq)>,
    /// Intact records found; only after [`verify`].
    pub records: u64,
    /// Everything that is missing between them; only after [`verify`], before that what the ack file notes.
    pub gaps: Vec<Gap>,
    /// Segments in which damage was found now; only after [`verify`].
    pub damaged: Vec<PathBuf>,
    /// Who reads.
    pub consumers: Vec<ConsumerReport>,
}

/// What a consumer has acknowledged, as the ack file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerReport {
    /// Its name.
    pub name: String,
    /// Everything up to here is acknowledged.
    pub cursor: Seq,
    /// Ranges acknowledged beyond.
    pub beyond: Vec<(Seq, Seq)>,
    /// Records lost to it.
    pub lost: u64,
}

pub(super) fn io_error(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InspectError {
    let path = path.to_path_buf();
    move |source| InspectError::Io { act, path, source }
}

/// One lane's files.
pub(super) struct LaneFiles {
    pub lane: Lane,
    pub dir: PathBuf,
    pub image: Option<Image>,
    pub segments: Vec<(Seq, u64)>,
    bytes: u64,
    set_aside: u64,
}

pub(super) fn lane_files(fs: &dyn FileSystem, store: &Path, lane: Lane) -> Result<LaneFiles, InspectError> {
    let dir = buffer_dir(store).join(lane.as_str());
    let entries = fs.list(&dir).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => InspectError::Missing(store.to_path_buf()),
        _ => io_error("read the directory", &dir)(e),
    })?;
    let mut segments: Vec<(Seq, u64)> =
        entries.iter().filter_map(|e| Some((segment::base_of(&e.name)?, e.len))).collect();
    segments.sort_unstable();
    let set_aside = entries.iter().filter(|e| e.name.ends_with(".bad") || e.name.ends_with(".newer")).count() as u64;
    let image = AckFile::peek(fs, &dir).unwrap_or(None);
    Ok(LaneFiles { lane, image, segments, bytes: entries.iter().map(|e| e.len).sum(), set_aside, dir })
}

impl LaneFiles {
    fn report(&self) -> LaneReport {
        let image = self.image.clone().unwrap_or_default();
        let consumers = image.consumers.iter().filter(|c| !c.name.starts_with(super::log::engine::INTERNAL));
        let consumers = consumers.map(|c| ConsumerReport {
            name: c.name.clone(),
            cursor: c.cursor,
            beyond: c.beyond.clone(),
            lost: c.lost,
        });
        LaneReport {
            lane: self.lane,
            clean: self.image.as_ref().map(|i| i.clean),
            bytes: self.bytes,
            segments: self.segments.len() as u64,
            set_aside: self.set_aside,
            range: None,
            records: 0,
            gaps: image.holes.iter().filter(|h| h.records > 0).map(|h| h.gap(self.lane, None)).collect(),
            damaged: Vec::new(),
            consumers: consumers.collect(),
        }
    }

    /// Visits everything in the lane in order, once: records, and holes where numbers are missing. Says which segments
    /// hold damage.
    pub fn walk(
        &self,
        fs: &dyn FileSystem,
        mut read: impl FnMut(u64),
        mut visit: impl FnMut(Item) -> Result<(), InspectError>,
    ) -> Result<BTreeSet<Seq>, InspectError> {
        let image = self.image.clone().unwrap_or_default();
        let holes = Holes::from_list(image.holes);
        // What everybody has confirmed is read as long as it is there, and not missed when it is not.
        let mut next = self.segments.first().map_or(1, |&(base, _)| base);
        let mut damaged = BTreeSet::new();
        for &(base, len) in &self.segments {
            let path = self.dir.join(segment::file_name(base));
            read(len);
            let file = match fs.open(&path, Open::Read) {
                // Recycled since the directory was read.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(io_error("open", &path))?,
            };
            let mut scanner = Scanner::new(file, self.lane, base, HEADER_LEN, len, Vec::new());
            loop {
                match scanner.next().map_err(io_error("read", &path))? {
                    Found::Damage => _ = damaged.insert(base),
                    Found::End { .. } => break,
                    Found::Frame(frame, _) if frame.seq < next => {}
                    Found::Frame(frame, at) => {
                        let record = scanner.record(&frame, at).map_err(io_error("read", &path))?;
                        let hole = record.as_ref().and_then(Hole::from_record);
                        let first = hole.as_ref().map_or(frame.seq, |h| h.from);
                        missing(&holes, next.max(image.floor), first, &mut visit)?;
                        next = frame.seq + 1;
                        match (hole, record) {
                            (Some(hole), _) => visit(Item::Hole(hole))?,
                            (None, Some(record)) => visit(Item::Record(record))?,
                            (None, None) => visit(Item::Hole(Hole::new(frame.seq, frame.seq, GapReason::Corruption)))?,
                        }
                    }
                }
            }
        }
        if image.clean {
            missing(&holes, next.max(image.floor), image.next, &mut visit)?;
        }
        Ok(damaged)
    }
}

/// Reports the numbers from `from` up to before `to`.
fn missing(
    holes: &Holes,
    from: Seq,
    to: Seq,
    visit: &mut impl FnMut(Item) -> Result<(), InspectError>,
) -> Result<(), InspectError> {
    if from >= to {
        return Ok(());
    }
    let mut all = holes.inside(from, to - 1);
    all.extend(holes.uncovered(from, to - 1).into_iter().map(|(from, to)| Hole::new(from, to, GapReason::Corruption)));
    all.sort_by_key(|h| h.from);
    all.into_iter().try_for_each(|hole| visit(Item::Hole(hole)))
}

/// What the file names and the ack files say; reads no segment.
///
/// # Errors
/// There is no log, or its directories cannot be read.
pub fn status(store: &Path) -> Result<Report, InspectError> {
    let mut report = Report::default();
    for lane in Lane::ALL {
        report.lanes.push(lane_files(&RealFs, store, lane)?.report());
    }
    Ok(report)
}

/// Reads everything, checks every checksum and lists every gap.
///
/// # Errors
/// There is no log, or a file cannot be read at all.
pub fn verify(store: &Path, progress: impl FnMut(Progress)) -> Result<Report, InspectError> {
    verify_on(&RealFs, store, progress)
}

fn verify_on(fs: &dyn FileSystem, store: &Path, mut progress: impl FnMut(Progress)) -> Result<Report, InspectError> {
    let lanes = Lane::ALL.map(|lane| lane_files(fs, store, lane));
    let total = lanes.iter().flatten().flat_map(|l| l.segments.iter().map(|s| s.1)).sum();
    let mut done = 0;
    let mut report = Report::default();
    for files in lanes {
        let files = files?;
        let mut lane = LaneReport { gaps: Vec::new(), ..files.report() };
        let read = |bytes| {
            done += bytes;
            progress(Progress { done, total });
        };
        let (mut records, mut range, mut gaps) = (0, None, Vec::new());
        let damaged = files.walk(fs, read, |item| {
            match item {
                Item::Record(record) => {
                    records += 1;
                    range = Some((range.map_or(record.seq, |(first, _)| first), record.seq));
                }
                Item::Hole(hole) if hole.records > 0 => gaps.push(hole.gap(files.lane, None)),
                Item::Hole(_) => {}
            }
            Ok(())
        })?;
        lane.damaged = damaged.into_iter().map(|base| files.dir.join(segment::file_name(base))).collect();
        (lane.records, lane.range, lane.gaps) = (records, range, gaps);
        report.lanes.push(lane);
    }
    Ok(report)
}

/// What a repair did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Repaired {
    /// Damaged segments that were set aside as `.bad`.
    pub set_aside: Vec<PathBuf>,
    /// Intact records that were copied out of them.
    pub saved: u64,
    /// Records that could not be saved; they are reported as gaps.
    pub lost: u64,
}

/// Copies the intact records of damaged segments into new ones, with gaps in the place of what is lost, and sets the
/// damaged files aside as `.bad`. The gateway must be stopped. It repairs nothing that the gateway could not read anyway;
/// it makes the damage final, so that no later reader meets it.
///
/// # Errors
/// The gateway runs, or the disk refuses.
pub fn repair(store: &Path, progress: impl FnMut(Progress)) -> Result<Repaired, InspectError> {
    repair_on(&RealFs, store, progress)
}

pub(super) fn repair_on(
    fs: &dyn FileSystem,
    store: &Path,
    progress: impl FnMut(Progress),
) -> Result<Repaired, InspectError> {
    let lock = buffer_dir(store).join("lock");
    let _lock = fs.lock(&lock).map_err(|e| match e.kind() {
        io::ErrorKind::WouldBlock => InspectError::Running(store.to_path_buf()),
        io::ErrorKind::NotFound => InspectError::Missing(store.to_path_buf()),
        _ => io_error("lock", &lock)(e),
    })?;
    let report = verify_on(fs, store, progress)?;
    let mut repaired = Repaired::default();
    for lane in report.lanes.iter().filter(|l| !l.damaged.is_empty()) {
        let files = lane_files(fs, store, lane.lane)?;
        for path in &lane.damaged {
            rewrite(fs, &files, path, &mut repaired).map_err(io_error("repair", path))?;
        }
        fs.sync_dir(&files.dir, SyncPoint::SegmentDirectory).map_err(io_error("sync the directory", &files.dir))?;
    }
    Ok(repaired)
}

/// Writes what is intact in a segment to a new file that takes its name.
fn rewrite(fs: &dyn FileSystem, files: &LaneFiles, path: &Path, repaired: &mut Repaired) -> io::Result<()> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let Some(base) = segment::base_of(name) else { return Ok(()) };
    let old = fs.open(path, Open::Read)?;
    let size = old.len()?;
    let mut header = [0; HEADER_LEN as usize];
    old.read_at(&mut header, 0)?;
    let mut summary = Segment::new(&files.dir, base, size, segment::generation_of(&header));
    let seed = frame::seed(files.lane, base);
    let mut out = Vec::new();
    let mut add = |record: &Record| {
        let before = out.len();
        frame::encode(&mut out, seed, record);
        summary.note(record.seq, record.ts_ms, out.len() - before);
        summary.records -= u64::from(record.kind == RecordKind::Gap);
    };
    let known = Holes::from_list(files.image.clone().unwrap_or_default().holes);
    let mut next = base;
    let mut scanner = Scanner::new(old, files.lane, base, HEADER_LEN, size, Vec::new());
    loop {
        match scanner.next()? {
            Found::Damage => {}
            Found::End { .. } => break,
            Found::Frame(found, _) if found.seq < next => {}
            Found::Frame(found, at) => {
                let Some(record) = scanner.record(&found, at)? else { continue };
                let first = super::log::lane::first_seq(&record);
                for (from, to) in known.uncovered(next, first - 1).into_iter().filter(|(from, to)| from <= to) {
                    repaired.lost += to - from + 1;
                    add(&Hole::new(from, to, GapReason::Corruption).record(files.lane));
                }
                for hole in known.inside(next, first - 1) {
                    add(&hole.record(files.lane));
                }
                next = record.seq + 1;
                repaired.saved += u64::from(record.kind != RecordKind::Gap);
                add(&record);
            }
        }
    }
    let aside = path.with_extension("bad");
    let new = path.with_extension("spare");
    let file = fs.open(&new, Open::Create)?;
    file.write_at(&segment::encode_header(files.lane, &summary, true), 0)?;
    file.write_at(&out, HEADER_LEN)?;
    file.sync(SyncPoint::Recovery)?;
    fs.rename(path, &aside)?;
    fs.rename(&new, path)?;
    repaired.set_aside.push(aside);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::Stamp;
    use crate::store::config::Config;
    use crate::store::fs::sim::SimFs;
    use crate::store::log::engine::Engine;
    use crate::store::{NewRecord, Start};

    fn engine(fs: &SimFs) -> Engine {
        let mut config = Config::with_quota("/store", 1 << 20);
        config.segment_bytes = Some(4096);
        let now =
            Stamp { wall_ms: 0, mono_ns: 0, uptime: Default::default(), trust: crate::model::ClockTrust::Holdover };
        Engine::open(Arc::new(fs.clone()), config, now).unwrap()
    }

    fn filled() -> (SimFs, PathBuf) {
        let fs = SimFs::new(1);
        let mut engine = engine(&fs);
        engine.register("a", Start::Oldest).unwrap();
        for n in 1..=100u8 {
            let payload = vec![n; 100].into();
            let new =
                NewRecord { lane: Lane::Bulk, kind: RecordKind::Telemetry, device: 0, ts_ms: 5, count: 1, payload };
            engine.append(new, 0).unwrap();
        }
        engine.close(1).unwrap();
        drop(engine);
        (fs, PathBuf::from("/store"))
    }

    #[test]
    fn verification_and_repair_agree_with_the_damage() {
        let (fs, store) = filled();
        let report = verify_on(&fs, &store, |_| {}).unwrap();
        let bulk = &report.lanes[1];
        assert_eq!((bulk.records, bulk.range, bulk.clean), (100, Some((1, 100)), Some(true)));
        assert!(bulk.gaps.is_empty() && bulk.damaged.is_empty(), "{bulk:?}");
        assert_eq!(bulk.consumers[0].name, "a");

        let path = fs.files().into_iter().map(|f| f.0).find(|p| p.ends_with("bulk/00000000000000000001.seg")).unwrap();
        fs.tamper(&path, |bytes| bytes[64 + 136 * 3 + 40] ^= 1);
        let mut shown = Vec::new();
        let report = verify_on(&fs, &store, |p| shown.push(p.done)).unwrap();
        let lost: Vec<_> = report.lanes[1].gaps.iter().map(|g| (g.from_seq, g.to_seq, g.reason)).collect();
        assert_eq!(lost, [(4, 4, GapReason::Corruption)]);
        assert_eq!(report.lanes[1].damaged, [path]);
        assert!(shown.windows(2).all(|w| w[0] < w[1]));

        let repaired = repair_on(&fs, &store, |_| {}).unwrap();
        assert_eq!((repaired.set_aside.len(), repaired.lost), (1, 1));
        let report = verify_on(&fs, &store, |_| {}).unwrap();
        assert_eq!((report.lanes[1].records, report.lanes[1].gaps.len()), (99, 1));
        assert!(report.lanes[1].damaged.is_empty());
        drop(engine(&fs));
    }

    #[test]
    fn a_running_gateway_is_read_but_not_repaired() {
        let (fs, store) = filled();
        let running = engine(&fs);
        assert!(matches!(repair_on(&fs, &store, |_| {}), Err(InspectError::Running(_))));
        assert_eq!(verify_on(&fs, &store, |_| {}).unwrap().lanes[1].records, 100);
        drop(running);
        assert!(matches!(verify_on(&fs, Path::new("/none"), |_| {}), Err(InspectError::Missing(_))));
    }
}
