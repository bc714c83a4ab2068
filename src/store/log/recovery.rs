//! Opening a lane: what is there, what is missing, where to go on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::acks::{self, AckFile, Image};
use super::commit;
use super::frame;
use super::holes::{Hole, Holes};
use super::lane::{Counters, EMERGENCY, Free, LaneLog, first_seq};
use super::scan::{Found, Scanner};
use super::segment::{self, HEADER_LEN, Header, Segment};
use crate::model::{GapReason, Lane, RecordKind, Seq};
use crate::store::config::LaneConfig;
use crate::store::fs::{Entry, File, FileSystem, Open, SyncPoint};

/// A lane just opened, and the consumers that its ack file knows.
pub(crate) struct Opened {
    pub lane: LaneLog,
    pub saved: Image,
    /// The ack file was missing or damaged although there are segments: consumers are forgotten.
    pub acks_lost: bool,
}

/// What the scan of a segment found.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// Ranges that damage took, exactly.
    pub damaged: Vec<(Seq, Seq)>,
    /// The frame behind the last intact one was torn or damaged.
    pub torn: bool,
    /// Where the first frame begins that may not have been synced.
    pub unsure_from: Option<u64>,
}

/// Reads a whole segment and completes what is known of it.
pub(crate) fn survey(
    file: Arc<dyn File>,
    lane: Lane,
    segment: &mut Segment,
    limit: u64,
    durable: Seq,
) -> io::Result<Survey> {
    let mut survey = Survey::default();
    let mut scanner = Scanner::new(file, lane, segment.base, HEADER_LEN, limit, Vec::new());
    (segment.last, segment.records, segment.end) = (segment.base - 1, 0, HEADER_LEN);
    loop {
        match scanner.next()? {
            Found::Frame(frame, at) => {
                let is_gap = frame.schema == RecordKind::Gap as u16;
                let is_erased = frame.schema == RecordKind::Erased as u16;
                let first = match is_gap.then(|| scanner.record(&frame, at)).transpose()?.flatten() {
                    Some(gap) => first_seq(&gap),
                    None => frame.seq,
                };
                if first > segment.last + 1 {
                    survey.damaged.push((segment.last + 1, first - 1));
                }
                if frame.seq > segment.last {
                    segment.note(frame.seq, frame.ts_ms, frame.len);
                    segment.records -= u64::from(is_gap || is_erased);
                }
                if frame.seq > durable {
                    survey.unsure_from.get_or_insert(at);
                }
                segment.end = at + frame.len as u64;
            }
            Found::Damage => segment.damaged = true,
            Found::End { torn, .. } => {
                survey.torn = torn;
                return Ok(survey);
            }
        }
    }
}

/// The files of a lane's directory by what they are.
#[derive(Debug, Default)]
struct Files {
    segments: Vec<(Seq, u64)>,
    spares: Vec<Free>,
    bad: Vec<Free>,
    leftovers: Vec<Free>,
}

fn sort_out(dir: &Path, entries: Vec<Entry>) -> Files {
    let mut files = Files::default();
    for Entry { name, len } in entries {
        let free = || Free { path: dir.join(&name), size: len };
        if let Some(base) = segment::base_of(&name) {
            files.segments.push((base, len));
        } else if name.ends_with(".spare") {
            files.spares.push(free());
        } else if name == acks::NEW_NAME {
            files.leftovers.push(free());
        } else if name.ends_with(".bad") {
            files.bad.push(free());
        }
    }
    files.segments.sort_unstable();
    files
}

impl Files {
    /// Whether the segment that was being filled is not there.
    fn misses(&self, filling: Seq) -> bool {
        filling > 0 && !self.segments.iter().any(|&(base, _)| base == filling)
    }
}

/// How a lane ends on the disk.
#[derive(Debug, Clone, Copy)]
struct Ending {
    /// The last number found.
    found: Seq,
    /// There is no segment.
    empty: bool,
    /// The newest segment is there in the length that segments have: its end was not cut off.
    whole: bool,
    /// The last frame in it was torn or damaged.
    torn: bool,
}

/// What is needed to open a lane.
pub(crate) struct Opening<'a> {
    pub fs: &'a Arc<dyn FileSystem>,
    pub lane: Lane,
    pub dir: PathBuf,
    pub config: LaneConfig,
    pub segment_bytes: u64,
    pub incarnation: u64,
}

impl Opening<'_> {
    /// Opens the lane. Fails only when the directory cannot be read or the ack file cannot be written.
    pub fn run(self) -> io::Result<Opened> {
        let mut files = sort_out(&self.dir, self.fs.list(&self.dir)?);
        let found = AckFile::open(self.fs, &self.dir).unwrap_or_else(|error| {
            tracing::error!(lane = self.lane.as_str(), %error, "the ack file cannot be read");
            None
        });
        let acks_lost = found.is_none() && !files.segments.is_empty();
        if acks_lost {
            tracing::error!(
                lane = self.lane.as_str(),
                "the ack file is missing or damaged; what is in the log is sent again"
            );
        }
        let (acks, saved) = found.map_or((None, Image::default()), |(file, image)| (Some(file), image));
        let mut holes = Holes::from_list(saved.holes.clone());
        let (mut sealed, tail, mut garbage) = self.segments(&files, &saved, &mut holes);
        garbage.append(&mut files.leftovers);
        if !saved.clean && !sealed.is_empty() {
            self.fs.sync_dir(&self.dir, SyncPoint::SegmentDirectory)?;
        }
        let generation = sealed.iter().map(|s| s.generation).max().unwrap_or(0) + 1;
        let found_last = sealed.back().map_or(0, |s| s.last);
        let ending = Ending {
            found: found_last,
            empty: sealed.is_empty(),
            whole: files.segments.last().is_none_or(|(_, len)| *len == self.segment_bytes)
                && !files.misses(saved.filling),
            torn: tail.torn && sealed.back().is_some_and(|s| files.segments.last().is_some_and(|l| l.0 == s.base)),
        };
        let next = if acks_lost {
            Self::continue_blindly(found_last, &mut holes)
        } else {
            self.continue_at(&saved, &ending, &mut holes)
        };
        let resumed = self.resume(&mut sealed, tail, next);

        let acks = match acks {
            Some(acks) => acks,
            None => AckFile::create(
                self.fs,
                &self.dir,
                &Image { next, reserved: next - 1, ..saved.clone() },
                1,
                SyncPoint::Opening,
            )?,
        };
        let mut lane = LaneLog {
            lane: self.lane,
            fs: self.fs.clone(),
            dir: self.dir,
            config: self.config,
            segment_bytes: self.segment_bytes,
            sealed,
            active: None,
            free: files.spares,
            bad: files.bad,
            next,
            reserved: 0,
            durable: next - 1,
            on_disk: found_last,
            unsynced: VecDeque::new(),
            unsynced_bytes: 0,
            holes,
            acks,
            consumers: BTreeMap::new(),
            failed: None,
            commit: commit::State::starting_at(next),
            counters: Counters::default(),
            incarnation: self.incarnation,
            read_buffer: Vec::new(),
            places: Vec::new(),
            thinning: BTreeMap::new(),
            scrubbed: BTreeSet::new(),
            retry_after: 0,
            floor: saved.floor,
            floor_wanted: 0,
            garbage,
            told: found_last,
            generation,
        };
        if let Some((segment, file)) = resumed {
            lane.resume_segment(segment, file);
        }
        Ok(Opened { lane, saved, acks_lost })
    }

    /// Looks at every segment; reads through those that may have an end or damage that nobody noted. What is released,
    /// empty, or repeated in another segment comes back as garbage.
    fn segments(&self, files: &Files, saved: &Image, holes: &mut Holes) -> (VecDeque<Segment>, Survey, Vec<Free>) {
        let mut found: Vec<(Segment, Survey)> = Vec::with_capacity(files.segments.len());
        let mut garbage = Vec::new();
        for (index, &(base, len)) in files.segments.iter().enumerate() {
            let next_base = files.segments.get(index + 1).map(|&(base, _)| base);
            let mut segment = Segment::new(&self.dir, base, len, 0);
            let survey = match self.inspect(&mut segment, next_base, saved) {
                Ok(Some(survey)) => survey,
                Ok(None) => continue,
                Err(error) => {
                    tracing::error!(segment = %segment.path.display(), %error, "a segment cannot be read; its records are reported as a gap");
                    segment.damaged = true;
                    segment.last = next_base.map_or(base, |next| next - 1);
                    Survey::default()
                }
            };
            if segment.last < base || (segment.last < saved.floor && self.config.keep_bytes == 0) {
                garbage.push(Free { path: segment.path, size: len });
                continue;
            }
            // One of two that overlap was given up after a failure; its records were written again in the later one.
            while let Some((before, _)) = found.last_mut().filter(|(before, _)| before.last >= base) {
                if before.generation > segment.generation {
                    break;
                }
                before.last = base - 1;
                if before.last >= before.base {
                    break;
                }
                garbage.extend(found.pop().map(|(s, _)| Free { path: s.path, size: s.size }));
            }
            if found.last().is_some_and(|(before, _)| before.last >= base) {
                garbage.push(Free { path: segment.path, size: len });
            } else {
                found.push((segment, survey));
            }
        }
        if let Some((first, _)) = found.first().filter(|(first, _)| first.base > saved.floor.max(1)) {
            self.note_missing(holes, saved, first, saved.floor.max(1), first.base - 1);
        }
        for index in 0..found.len() {
            let (segment, survey) = &found[index];
            let next_base = found.get(index + 1).map(|(next, _)| next.base);
            // Behind a cut the next segment tells what there is.
            let damaged = survey.damaged.iter().map(|&(from, to)| (from, to.min(segment.last)));
            let missing = damaged.chain(next_base.map(|next| (segment.last + 1, next - 1)));
            // What nobody needs any more is not missed.
            let missing = missing.map(|(from, to)| (from.max(saved.floor), to));
            for (from, to) in missing.filter(|(from, to)| from <= to) {
                self.note_missing(holes, saved, segment, from, to);
            }
        }
        let mut tail = Survey::default();
        let keep = |(segment, survey)| {
            tail = survey;
            segment
        };
        (found.into_iter().map(keep).collect(), tail, garbage)
    }

    /// What a segment holds: its own word for it when that can be trusted, else by reading it.
    fn inspect(&self, segment: &mut Segment, next_base: Option<Seq>, saved: &Image) -> io::Result<Option<Survey>> {
        let file = self.fs.open(&segment.path, Open::Read)?;
        let mut header = [0; HEADER_LEN as usize];
        let n = file.read_at(&mut header, 0)?;
        let decoded = segment::decode_header(self.lane, segment.base, &header[..n]);
        if matches!(decoded, Header::Open | Header::Sealed { .. }) {
            segment.generation = segment::generation_of(&header);
        }
        match decoded {
            Header::Newer(version) => {
                tracing::error!(segment = %segment.path.display(), version, "a newer version of fieldgate wrote this segment; it is set aside as .newer");
                self.fs.rename(&segment.path, &segment.path.with_extension("newer"))?;
                return Ok(None);
            }
            Header::Sealed { last, records, first_ms, last_ms, end } => {
                let trusted = next_base.is_some() && (saved.clean || last <= saved.durable) && segment.size >= end;
                if trusted && last >= segment.base {
                    (segment.last, segment.records, segment.end) = (last, records, end);
                    (segment.first_ms, segment.last_ms) = (first_ms, last_ms);
                    return Ok(Some(Survey::default()));
                }
            }
            Header::Open => {}
            Header::Damaged => {
                tracing::warn!(segment = %segment.path.display(), "the header of this segment is damaged; its frames are read one by one");
            }
        }
        let survey = survey(file, self.lane, segment, segment.size, saved.durable)?;
        let right = segment::encode_header(self.lane, segment, next_base.is_some());
        let mend = survey.unsure_from.is_some() || header != right;
        if mend && let Err(error) = self.write_back(segment, &right, survey.unsure_from) {
            tracing::error!(segment = %segment.path.display(), %error, "records found after an unclean stop cannot be synced; a power cut would lose them");
        }
        Ok(Some(survey))
    }

    /// Makes the header say what was found, and writes frames that the last process had perhaps not synced again before
    /// anybody relies on them. A sync alone is not enough: when an earlier one failed, the page cache shows frames that
    /// are not on the disk and that the kernel believes to be clean.
    fn write_back(&self, segment: &Segment, header: &[u8], from: Option<u64>) -> io::Result<()> {
        let file = self.fs.open(&segment.path, Open::ReadWrite)?;
        if let Some(from) = from {
            let mut bytes = vec![0; (segment.end - from) as usize];
            file.read_at(&mut bytes, from)?;
            file.write_at(&bytes, from)?;
        }
        file.write_at(header, 0)?;
        file.sync(SyncPoint::Recovery)
    }

    /// Numbers that are not where they should be. Those that were synced are damage; the others went with the power.
    fn note_missing(&self, holes: &mut Holes, saved: &Image, near: &Segment, from: Seq, to: Seq) {
        let synced_to = if saved.clean { Seq::MAX } else { saved.durable };
        let stamp = |hole: Hole| Hole { from_ms: near.last_ms, ..hole };
        if from <= synced_to {
            let hole = stamp(Hole::new(from, to.min(synced_to), GapReason::Corruption));
            let records = holes.add(hole);
            if records > 0 {
                tracing::error!(
                    lane = self.lane.as_str(),
                    from,
                    to,
                    records,
                    "records are missing from the log; they are reported as a gap"
                );
            }
        }
        if to > synced_to {
            holes.add(stamp(Hole::new(from.max(synced_to + 1), to, GapReason::UnsyncedAtPowerLoss)));
        }
    }

    /// The next sequence number when nothing is known but what was found.
    fn continue_blindly(found: Seq, holes: &mut Holes) -> Seq {
        holes.add(Hole::unused(found + 1, found + EMERGENCY));
        found + EMERGENCY + 1
    }

    /// The next sequence number, and why the numbers before it are not there.
    fn continue_at(&self, saved: &Image, ending: &Ending, holes: &mut Holes) -> Seq {
        let Ending { found, empty, .. } = *ending;
        if saved.clean {
            let next = saved.next.max(found + 1);
            self.lost_at_end(holes, found, next - 1, GapReason::Corruption, empty, saved);
            return next;
        }
        if saved.reserved == 0 && found == 0 {
            return 1;
        }
        let cursors = saved.consumers.iter().map(|c| c.beyond.last().map_or(c.cursor, |r| r.1).max(c.cursor));
        let last_issued = cursors.chain([found, saved.reserved]).max().unwrap_or(0);
        self.lost_at_end(holes, found, saved.durable, GapReason::Corruption, empty, saved);
        let from = found.max(saved.durable) + 1;
        if from <= last_issued {
            self.end_in_doubt(saved, ending, from, last_issued, holes);
        }
        let last_issued = last_issued.max(from - 1);
        Self::continue_blindly(last_issued, holes)
    }

    /// Why the numbers `from..=to` behind the end of the log are not there, after an unclean stop.
    fn end_in_doubt(&self, saved: &Image, ending: &Ending, from: Seq, to: Seq, holes: &mut Holes) {
        let killed = saved.incarnation == self.incarnation && !saved.degraded;
        if !killed || !ending.whole {
            // How many of them had been accepted nothing on the disk can tell.
            let added = holes.add(Hole::new(from, to, GapReason::UnsyncedAtPowerLoss));
            if added > 0 {
                let cause = if killed { "the newest segment is missing or cut off" } else { "the power was cut" };
                tracing::error!(
                    lane = self.lane.as_str(),
                    from,
                    to,
                    "{cause}; records accepted since the last sync are lost, at most these"
                );
            }
            return;
        }
        // A process that was killed left everything accepted in the page cache: what the ack file knows and the log has
        // not is damage, and so is a last frame that does not read.
        let known = saved.next.saturating_sub(1).max(if ending.torn { ending.found + 1 } else { 0 }).min(to);
        if from <= known {
            self.lost_at_end(holes, from - 1, known, GapReason::Corruption, ending.empty, saved);
        }
        // Numbers that it had given out and not written yet may have been seen by consumers: they are not used again.
        holes.add(Hole { records: 0, ..Hole::new(from, to, GapReason::UnsyncedAtPowerLoss) });
    }

    fn lost_at_end(&self, holes: &mut Holes, found: Seq, last: Seq, reason: GapReason, empty: bool, saved: &Image) {
        // An empty lane is missing nothing when everybody had acknowledged all of it and its segments were released.
        let settled = saved.consumers.iter().map(|c| c.cursor).min().filter(|_| empty).unwrap_or(0);
        let from = found.max(settled) + 1;
        if from <= last {
            let records = holes.add(Hole::new(from, last, reason));
            if records > 0 {
                tracing::error!(
                    lane = self.lane.as_str(),
                    from,
                    to = last,
                    records,
                    "the end of the log is missing; it is reported as a gap"
                );
            }
        }
    }

    /// Goes on with the last segment when it is whole; what is torn behind its end is wiped.
    fn resume(&self, sealed: &mut VecDeque<Segment>, tail: Survey, next: Seq) -> Option<(Segment, Arc<dyn File>)> {
        let last = sealed.back()?;
        let room = last.size.saturating_sub(last.end);
        if last.damaged
            || !tail.damaged.is_empty()
            || last.size != self.segment_bytes
            || room < 512
            || last.last >= next
        {
            return None;
        }
        let file = self.fs.open(&last.path, Open::ReadWrite).ok()?;
        if tail.torn {
            tracing::warn!(segment = %last.path.display(), offset = last.end, "cut a torn end");
            file.write_at(&[0; frame::GUARD], last.end).ok()?;
        }
        let header = segment::encode_header(self.lane, last, false);
        file.write_at(&header, 0).ok()?;
        sealed.pop_back().map(|segment| (segment, file))
    }
}
