//! The ack file of a lane: who has acknowledged what, which numbers are reserved, what is lost.
//!
//! Three slots; the newest intact one counts. The slot that is known to be durable is never overwritten, so a torn write
//! costs at most the acknowledgements of the last sync interval, which are sent again. Neither is the slot that is being
//! synced, so that acknowledgements are written, and survive the process, however long the disk takes. The file has its
//! full length from the beginning, so it is written on a full disk too. A file of two slots, as earlier versions made
//! it, is read and grows.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::holes::{self, Hole, MAX_HOLES};
use super::progress::{MAX_RANGES, MAX_SHED};
use crate::model::Seq;
use crate::store::fs::{File, FileSystem, Open, SyncPoint};

/// Name in the lane's directory.
pub(crate) const NAME: &str = "acks";
/// Name of a file that is to take its place.
pub(crate) const NEW_NAME: &str = "acks.new";
/// Bytes of one slot.
const SLOT: usize = 32 * 1024;
/// The durable one, the one that is being synced, and the one that is being written.
const SLOTS: usize = 3;
/// Bytes of the file.
pub(crate) const FILE_LEN: u64 = (SLOTS * SLOT) as u64;
/// Consumers that a slot has room for.
pub(crate) const MAX_CONSUMERS: usize = 16;
const MAGIC: [u8; 4] = *b"FGAK";
const VERSION: u16 = 1;
const PREFIX: usize = 24;

/// What a slot says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Image {
    /// The lane was closed with everything synced.
    pub clean: bool,
    /// Accepted records are in memory only, because the disk fails.
    pub degraded: bool,
    /// See [`FileSystem::incarnation`].
    pub incarnation: u64,
    /// The next sequence number, exact when clean.
    pub next: Seq,
    /// No number beyond this was given out.
    pub reserved: Seq,
    /// Records up to here were synced, at least.
    pub durable: Seq,
    /// Segments that end before this number are released.
    pub floor: Seq,
    /// Base of the segment that is being filled, 0 when there is none. Written before the first record goes into it, so
    /// that its file is missed when somebody deletes it.
    pub filling: Seq,
    pub consumers: Vec<SavedConsumer>,
    pub holes: Vec<Hole>,
}

/// One consumer in a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SavedConsumer {
    pub name: String,
    pub cursor: Seq,
    pub lost: u64,
    pub beyond: Vec<(Seq, Seq)>,
    /// Given up for it alone.
    pub shed: Vec<Hole>,
}

fn encode(image: &Image, counter: u64) -> Vec<u8> {
    let mut out = vec![0; PREFIX];
    out.extend([u8::from(image.clean), image.consumers.len() as u8, image.holes.len() as u8, u8::from(image.degraded)]);
    for number in [image.incarnation, image.next, image.reserved, image.durable, image.floor, image.filling] {
        out.extend(number.to_le_bytes());
    }
    for consumer in &image.consumers {
        out.push(consumer.name.len() as u8);
        out.extend(consumer.name.as_bytes());
        out.extend(consumer.cursor.to_le_bytes());
        out.extend(consumer.lost.to_le_bytes());
        out.push(consumer.beyond.len() as u8);
        for (first, last) in &consumer.beyond {
            out.extend(first.to_le_bytes());
            out.extend(last.to_le_bytes());
        }
        out.push(consumer.shed.len() as u8);
        consumer.shed.iter().for_each(|hole| encode_hole(&mut out, hole));
    }
    image.holes.iter().for_each(|hole| encode_hole(&mut out, hole));
    let len = (out.len() - PREFIX) as u32;
    out[..4].copy_from_slice(&MAGIC);
    out[4..6].copy_from_slice(&VERSION.to_le_bytes());
    out[8..16].copy_from_slice(&counter.to_le_bytes());
    out[16..20].copy_from_slice(&len.to_le_bytes());
    let sum = crc32c::crc32c_append(crc32c::crc32c(&out[..20]), &out[PREFIX..]);
    out[20..24].copy_from_slice(&sum.to_le_bytes());
    out
}

fn encode_hole(out: &mut Vec<u8>, hole: &Hole) {
    for number in [hole.from, hole.to, hole.from_ms as u64, hole.to_ms as u64, hole.records] {
        out.extend(number.to_le_bytes());
    }
    out.push(holes::reason_number(hole.reason));
}

/// Reads fields one after another; `None` at the end.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }
    fn u8(&mut self) -> Option<u8> {
        Some(self.bytes(1)?[0])
    }
    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(8)?.try_into().ok()?))
    }
}

fn decode(slot: &[u8]) -> Option<(u64, Image)> {
    let prefix = slot.get(..PREFIX)?;
    let mut fields = Fields(prefix);
    if fields.bytes(4)? != MAGIC || fields.bytes(4)?[..2] != VERSION.to_le_bytes() {
        return None;
    }
    let counter = fields.u64()?;
    let len = u32::from_le_bytes(fields.bytes(4)?.try_into().ok()?) as usize;
    let body = slot.get(PREFIX..PREFIX.checked_add(len)?)?;
    let sum = crc32c::crc32c_append(crc32c::crc32c(&prefix[..20]), body);
    if sum.to_le_bytes() != prefix[20..24] {
        return None;
    }
    let mut fields = Fields(body);
    let head = fields.bytes(4)?;
    let (clean, consumers, holes, degraded) = (head[0] != 0, head[1], head[2], head[3] != 0);
    let (incarnation, next, reserved) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let (durable, floor, filling) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let consumers = (0..consumers).map(|_| decode_consumer(&mut fields)).collect::<Option<_>>()?;
    let holes = (0..holes).map(|_| decode_hole(&mut fields)).collect::<Option<_>>()?;
    Some((counter, Image { clean, degraded, incarnation, next, reserved, durable, floor, filling, consumers, holes }))
}

fn decode_consumer(fields: &mut Fields<'_>) -> Option<SavedConsumer> {
    let len = fields.u8()?;
    let name = String::from_utf8(fields.bytes(usize::from(len))?.to_vec()).ok()?;
    let (cursor, lost) = (fields.u64()?, fields.u64()?);
    let ranges = fields.u8()?;
    let beyond = (0..ranges).map(|_| Some((fields.u64()?, fields.u64()?))).collect::<Option<_>>()?;
    let shed = fields.u8()?;
    let shed = (0..shed).map(|_| decode_hole(fields)).collect::<Option<_>>()?;
    Some(SavedConsumer { name, cursor, lost, beyond, shed })
}

fn decode_hole(fields: &mut Fields<'_>) -> Option<Hole> {
    let (from, to) = (fields.u64()?, fields.u64()?);
    let (from_ms, to_ms, records) = (fields.u64()? as i64, fields.u64()? as i64, fields.u64()?);
    let reason = holes::reason_from_number(fields.u8()?)?;
    (from > 0 && from <= to).then_some(Hole { from, to, from_ms, to_ms, records, reason })
}

/// The open ack file.
#[derive(Debug)]
pub(crate) struct AckFile {
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    file: Arc<dyn File>,
    /// The slot that is known to be durable.
    durable: usize,
    /// The slot that is being synced.
    syncing: Option<usize>,
    /// The slot written last.
    written: usize,
    /// Counter of the last image written.
    counter: u64,
}

impl AckFile {
    /// Opens the file of a lane and reads its newest intact slot. `None` when there is no file or no intact slot.
    pub fn open(fs: &Arc<dyn FileSystem>, dir: &Path) -> io::Result<Option<(Self, Image)>> {
        let file = match fs.open(&dir.join(NAME), Open::ReadWrite) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let found = newest(&*file)?;
        Ok(found.map(|(durable, counter, image)| {
            (
                Self {
                    fs: fs.clone(),
                    dir: dir.to_path_buf(),
                    file,
                    durable,
                    syncing: None,
                    written: durable,
                    counter,
                },
                image,
            )
        }))
    }

    /// Reads the newest image without opening for writing.
    pub fn peek(fs: &dyn FileSystem, dir: &Path) -> io::Result<Option<Image>> {
        match fs.open(&dir.join(NAME), Open::Read) {
            Ok(file) => Ok(newest(&*file)?.map(|(_, _, image)| image)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Makes a new file that holds `image`, durably, in the place of any old one.
    pub fn create(
        fs: &Arc<dyn FileSystem>,
        dir: &Path,
        image: &Image,
        counter: u64,
        point: SyncPoint,
    ) -> io::Result<Self> {
        let path = dir.join(NEW_NAME);
        let file = fs.open(&path, Open::Create)?;
        let mut content = encode(image, counter);
        content.resize(FILE_LEN as usize, 0);
        file.write_at(&content, 0)?;
        file.sync(point)?;
        fs.rename(&path, &dir.join(NAME))?;
        fs.sync_dir(dir, SyncPoint::AckDirectory)?;
        Ok(Self { fs: fs.clone(), dir: dir.to_path_buf(), file, durable: 0, syncing: None, written: 0, counter })
    }

    /// Writes an image into a slot that may be overwritten. It survives the process from here on, and a power cut after
    /// [`AckFile::begin_sync`], a sync of [`AckFile::file`] and [`AckFile::confirm`].
    pub fn write(&mut self, image: &Image) -> io::Result<()> {
        let taken = [Some(self.durable), self.syncing];
        let free = |slot: &usize| !taken.contains(&Some(*slot));
        // The one written last is left as it is when there is another, so that a torn write costs less.
        let slot = (0..SLOTS).filter(free).min_by_key(|&slot| slot == self.written).unwrap_or(self.written);
        let data = encode(image, self.counter + 1);
        debug_assert!(data.len() <= SLOT);
        self.file.write_at(&data, (slot * SLOT) as u64)?;
        self.counter += 1;
        self.written = slot;
        Ok(())
    }

    /// From here to [`AckFile::confirm`] what was written last is left as it is.
    pub fn begin_sync(&mut self) {
        self.syncing = Some(self.written);
    }

    /// The sync of `file` that was begun has succeeded. Says whether the image became the durable one: not when another
    /// file has taken its place, or a later image was saved meanwhile.
    pub fn confirm(&mut self, file: &Arc<dyn File>) -> bool {
        let synced = self.syncing.take_if(|_| Arc::ptr_eq(file, &self.file));
        self.durable = synced.unwrap_or(self.durable);
        synced.is_some()
    }

    /// Writes and syncs at once; a sync that was begun before is overtaken. A file whose write or sync failed is not
    /// trusted again: a new one takes its place.
    pub fn save(&mut self, image: &Image, point: SyncPoint) -> io::Result<()> {
        match self.write(image).and_then(|()| self.file.sync(point)) {
            Ok(()) => (self.durable, self.syncing) = (self.written, None),
            Err(error) => {
                tracing::warn!(%error, dir = %self.dir.display(), "the ack file cannot be written, making a new one");
                self.replace(image, point)?;
            }
        }
        Ok(())
    }

    /// Puts a new file in the place of this one.
    pub fn replace(&mut self, image: &Image, point: SyncPoint) -> io::Result<()> {
        *self = Self::create(&self.fs.clone(), &self.dir.clone(), image, self.counter + 2, point)?;
        Ok(())
    }

    /// The file, for a sync elsewhere.
    pub fn file(&self) -> Arc<dyn File> {
        self.file.clone()
    }
}

/// Gives the first slot in `content` a right length and checksum: a fuzzer would not find them.
pub(crate) fn mend(content: &mut [u8]) {
    if content.len() < PREFIX {
        return;
    }
    let (prefix, body) = content.split_at_mut(PREFIX);
    let body = &body[..body.len().min(SLOT - PREFIX)];
    prefix[..4].copy_from_slice(&MAGIC);
    prefix[4..6].copy_from_slice(&VERSION.to_le_bytes());
    prefix[16..20].copy_from_slice(&(body.len() as u32).to_le_bytes());
    let sum = crc32c::crc32c_append(crc32c::crc32c(&prefix[..20]), body);
    prefix[20..24].copy_from_slice(&sum.to_le_bytes());
}

/// The newest intact slot: its number, counter and image.
pub(crate) fn newest(file: &dyn File) -> io::Result<Option<(usize, u64, Image)>> {
    let mut content = vec![0; FILE_LEN as usize];
    let n = file.read_at(&mut content, 0)?;
    content.truncate(n);
    let slot = |number: usize| {
        let (counter, image) = decode(content.get(number * SLOT..)?)?;
        Some((number, counter, image))
    };
    Ok((0..SLOTS).filter_map(slot).max_by_key(|(_, counter, _)| *counter))
}

const _: () = assert!(
    PREFIX + 52 + MAX_CONSUMERS * (83 + 16 * MAX_RANGES + 41 * MAX_SHED) + MAX_HOLES * 41 <= SLOT,
    "a full slot must fit"
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::GapReason;
    use crate::store::fs::sim::SimFs;

    fn image(next: Seq) -> Image {
        Image {
            clean: true,
            degraded: false,
            incarnation: 5,
            next,
            reserved: 100,
            durable: 40,
            floor: 2,
            filling: 30,
            consumers: vec![SavedConsumer {
                name: "uplink.a".into(),
                cursor: 3,
                lost: 1,
                beyond: vec![(7, 9), (12, 12)],
                shed: vec![Hole::new(4, 5, GapReason::QuotaAge)],
            }],
            holes: vec![Hole::new(1, 2, GapReason::QuotaBytes)],
        }
    }

    fn read(fs: &Arc<dyn FileSystem>) -> Option<Image> {
        AckFile::open(fs, Path::new("/")).unwrap().map(|(_, image)| image)
    }

    #[test]
    fn a_torn_slot_falls_back_to_the_one_before() {
        let fs: Arc<dyn FileSystem> = Arc::new(SimFs::new(1));
        let mut file = AckFile::create(&fs, Path::new("/"), &image(1), 1, SyncPoint::Opening).unwrap();
        file.save(&image(2), SyncPoint::Closing).unwrap();
        file.write(&image(3)).unwrap();
        file.write(&image(4)).unwrap();
        for expected in [4, 3, 2] {
            assert_eq!(read(&fs), Some(image(expected)));
            let raw = fs.open(&Path::new("/").join(NAME), Open::ReadWrite).unwrap();
            let (slot, ..) = newest(&*raw).unwrap().unwrap();
            raw.write_at(b"torn", (slot * SLOT) as u64 + 60).unwrap();
        }
        assert!(AckFile::open(&fs, Path::new("/")).unwrap().is_none());
    }

    #[test]
    fn writing_goes_on_while_a_slot_is_synced_and_leaves_it_alone() {
        let fs: Arc<dyn FileSystem> = Arc::new(SimFs::new(1));
        let mut file = AckFile::create(&fs, Path::new("/"), &image(1), 1, SyncPoint::Opening).unwrap();
        file.write(&image(2)).unwrap();
        file.begin_sync();
        for next in 3..9 {
            file.write(&image(next)).unwrap();
            assert_eq!(read(&fs), Some(image(next)));
        }
        assert!(file.confirm(&file.file()));
        file.write(&image(9)).unwrap();
        // What was being synced is durable and stays, whatever becomes of the two others.
        let raw = fs.open(&Path::new("/").join(NAME), Open::ReadWrite).unwrap();
        for _ in 0..2 {
            let (slot, ..) = newest(&*raw).unwrap().unwrap();
            raw.write_at(b"torn", (slot * SLOT) as u64 + 60).unwrap();
        }
        assert_eq!(read(&fs), Some(image(2)));
    }

    #[test]
    fn a_file_of_two_slots_is_read_and_grows() {
        let fs: Arc<dyn FileSystem> = Arc::new(SimFs::new(1));
        let raw = fs.open(&Path::new("/").join(NAME), Open::Create).unwrap();
        let mut content = vec![0; 2 * SLOT];
        for (slot, next) in [(0, 4), (1, 3)] {
            let data = encode(&image(next), next);
            content[slot * SLOT..slot * SLOT + data.len()].copy_from_slice(&data);
        }
        raw.write_at(&content, 0).unwrap();
        let (mut file, found) = AckFile::open(&fs, Path::new("/")).unwrap().unwrap();
        assert_eq!(found, image(4));
        for next in 5..8 {
            file.save(&image(next), SyncPoint::Closing).unwrap();
            assert_eq!(read(&fs), Some(image(next)));
        }
    }

    proptest! {
        #[test]
        fn damage_is_found_and_never_panics(at in 0usize..180, value: u8) {
            let mut slot = encode(&image(9), 4);
            prop_assert_eq!(decode(&slot), Some((4, image(9))));
            let at = at % slot.len();
            if slot[at] != value {
                slot[at] = value;
                // Two bytes behind the version are not used.
                prop_assert!(decode(&slot).is_none() || (6..8).contains(&at));
            }
            prop_assert!(decode(&slot[..at]).is_none());
        }
    }
}
