//! The inventory: every certificate issued, every one taken back, every revocation list, as events that are only added.
//!
//! One line per event, `{"crc":"<crc32c of the event's text>","event":{…}}`. A line that was torn by a crash is cut at the
//! next start. A damaged line in the middle is skipped, counted and reported: the revocation list on disk then still
//! names what was revoked, and [`super::Pki`] merges it back.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::life::Validity;
use crate::platform::durable::{Access, Disk};

/// Longest line; an event has about 600 bytes.
const MAX_LINE: usize = 64 * 1024;

/// A certificate's serial number without leading zeros. Shown as lowercase hex.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Serial(Vec<u8>);

impl Serial {
    /// 128 fresh random bits.
    pub fn random() -> Self {
        Self::from_bytes(&rand::random::<[u8; 16]>())
    }

    /// From the bytes of a certificate, big endian; leading zeros mean nothing.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let first = bytes.iter().position(|&byte| byte != 0).unwrap_or(bytes.len());
        Self(bytes[first..].to_vec())
    }

    /// Big endian, no leading zeros.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads hex digits, with or without colons.
    ///
    /// # Errors
    /// When it is not 1 to 20 bytes of hex (RFC 5280, 4.1.2.2).
    pub fn parse(text: &str) -> Result<Self, String> {
        let digits: String = text.chars().filter(|&c| c != ':').collect();
        let bad = || format!("{text:?} is not a serial number; copy one from `fieldgate certs list`");
        if digits.is_empty() || digits.len() > 42 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let even = if digits.len().is_multiple_of(2) { digits } else { format!("0{digits}") };
        let bytes: Result<Vec<u8>, _> =
            (0..even.len()).step_by(2).map(|i| u8::from_str_radix(&even[i..i + 2], 16)).collect();
        let serial = Self::from_bytes(&bytes.map_err(|_| bad())?);
        if serial.0.is_empty() { Err(bad()) } else { Ok(serial) }
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({self})")
    }
}

impl TryFrom<String> for Serial {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<Serial> for String {
    fn from(serial: Serial) -> Self {
        serial.to_string()
    }
}

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// A listener of the gateway.
    Server,
    /// A device that connects to the gateway.
    Device,
    /// A person or program that connects to the gateway.
    User,
}

impl Purpose {
    /// Stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Device => "device",
            Self::User => "user",
        }
    }
}

/// Why a certificate was taken back (RFC 5280, 5.3.1; the reasons that make sense for a plant).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// No reason given.
    Unspecified,
    /// Somebody else may know the private key.
    KeyCompromise,
    /// A newer certificate took its place.
    Superseded,
    /// The device was retired.
    CessationOfOperation,
    /// Its rights were withdrawn.
    PrivilegeWithdrawn,
}

impl Reason {
    /// All reasons with their names.
    pub const ALL: [(&'static str, Self); 5] = [
        ("unspecified", Self::Unspecified),
        ("key-compromise", Self::KeyCompromise),
        ("superseded", Self::Superseded),
        ("cessation-of-operation", Self::CessationOfOperation),
        ("privilege-withdrawn", Self::PrivilegeWithdrawn),
    ];

    /// Reads a reason's name.
    ///
    /// # Errors
    /// Names the reasons that exist.
    pub fn parse(text: &str) -> Result<Self, String> {
        let known = Self::ALL.map(|(name, _)| name).join(", ");
        let found = Self::ALL.iter().find(|(name, _)| *name == text).map(|(_, reason)| *reason);
        found.ok_or_else(|| format!("{text:?} is not a reason to revoke; use one of {known}"))
    }
}

/// One issued certificate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its serial number.
    pub serial: Serial,
    /// What it is for.
    pub purpose: Purpose,
    /// Common name: the device's id, the user's name, the host's name.
    pub subject: String,
    /// Subject alternative names as text: host names, addresses, URIs.
    pub names: Vec<String>,
    /// From when to when.
    #[serde(flatten)]
    pub validity: Validity,
    /// SHA-256 of the public key (SubjectPublicKeyInfo), lowercase hex.
    pub key: String,
    /// Whether the gateway made the key (the device keeps its own otherwise).
    pub made_key: bool,
    /// Unix seconds, by the clock that issued it.
    pub issued: i64,
    /// Whether that clock was under discipline.
    pub trusted_clock: bool,
    /// Made while the clock was not set: to be replaced as soon as it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub provisional: bool,
    /// The certificate that this one renews.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<Serial>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Event {
    /// A certificate is about to be handed out.
    Issued(Entry),
    /// A certificate was taken back.
    Revoked {
        /// Which.
        serial: Serial,
        /// When, Unix seconds.
        at: i64,
        /// Why.
        reason: Reason,
        /// When it would have ended, if known: afterwards it may be forgotten.
        not_after: Option<i64>,
    },
    /// A revocation list is about to be published.
    List {
        /// Its number.
        number: u64,
        /// When, Unix seconds.
        at: i64,
        /// When the next one is due at the latest, Unix seconds.
        next_update: i64,
        /// Whether the clock was under discipline.
        trusted_clock: bool,
    },
}

/// Why the inventory could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The file system refused.
    #[error("cannot {act} the certificate inventory {path}: {source}; nothing was issued or revoked")]
    Io {
        /// What was tried.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Events since the last look.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    /// The file is another one now: forget what was known, these are all events.
    pub restarted: bool,
    /// In their order.
    pub events: Vec<Event>,
    /// Damaged lines that were skipped.
    pub damaged: usize,
}

/// Where events are kept.
pub trait Inventory: fmt::Debug + Send {
    /// What was added since the last call, by this process or another.
    ///
    /// # Errors
    /// When the inventory cannot be read.
    fn changes(&mut self) -> Result<Changes, InventoryError>;

    /// Adds an event; durable when this returns `Ok`.
    ///
    /// # Errors
    /// When the event is not durable; the caller must then not act on it.
    fn append(&mut self, event: &Event) -> Result<(), InventoryError>;

    /// Replaces everything, in one step.
    ///
    /// # Errors
    /// When that failed; the old events are then still there.
    fn rewrite(&mut self, events: &[Event]) -> Result<(), InventoryError>;
}

/// Events in a file of JSON lines.
#[derive(Debug)]
pub struct FileInventory {
    path: PathBuf,
    disk: Disk,
    inode: u64,
    read_to: u64,
}

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    crc: String,
    #[serde(borrow)]
    event: &'a RawValue,
}

impl FileInventory {
    /// An inventory at `path`; the file is made with the first event.
    pub fn new(path: &Path, disk: Disk) -> Self {
        Self { path: path.to_owned(), disk, inode: 0, read_to: 0 }
    }

    fn error(&self, act: &'static str) -> impl FnOnce(io::Error) -> InventoryError {
        let path = self.path.clone();
        move |source| InventoryError::Io { act, path, source }
    }

    fn read_new(&mut self) -> io::Result<Changes> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let restarted = std::mem::take(&mut self.inode) != 0;
                self.read_to = 0;
                return Ok(Changes { restarted, ..Changes::default() });
            }
            Err(error) => return Err(error),
        };
        let meta = file.metadata()?;
        let restarted = meta.ino() != self.inode || meta.len() < self.read_to;
        if restarted {
            (self.inode, self.read_to) = (meta.ino(), 0);
        }
        file.seek(SeekFrom::Start(self.read_to))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        let complete = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let (events, damaged) = parse(&text[..complete]);
        self.read_to += complete as u64;
        Ok(Changes { restarted, events, damaged })
    }

    /// Cuts what a crash left behind the last complete line.
    fn cut_torn_tail(&self) -> io::Result<()> {
        match std::fs::metadata(&self.path) {
            Ok(meta) if meta.ino() == self.inode && meta.len() > self.read_to => {
                tracing::warn!(path = %self.path.display(), "a torn line at the end of the certificate inventory was cut");
                let file = File::options().write(true).open(&self.path)?;
                file.set_len(self.read_to)?;
                self.disk.sync(&file, &self.path)
            }
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn append_line(&mut self, event: &Event) -> io::Result<()> {
        self.cut_torn_tail()?;
        let line = encode(event)?;
        let mut file = self.disk.open_append(&self.path, Access::Private)?;
        self.disk.append(&mut file, &self.path, &line)?;
        self.inode = file.metadata()?.ino();
        self.read_to += line.len() as u64;
        Ok(())
    }
}

impl Inventory for FileInventory {
    fn changes(&mut self) -> Result<Changes, InventoryError> {
        self.read_new().map_err(self.error("read"))
    }

    fn append(&mut self, event: &Event) -> Result<(), InventoryError> {
        self.append_line(event).map_err(self.error("write"))
    }

    fn rewrite(&mut self, events: &[Event]) -> Result<(), InventoryError> {
        let lines: io::Result<Vec<Vec<u8>>> = events.iter().map(encode).collect();
        let done = lines.and_then(|lines| self.disk.replace(&self.path, &lines.concat(), Access::Private));
        done.map_err(self.error("compact"))?;
        (self.inode, self.read_to) = (0, 0);
        Ok(())
    }
}

fn encode(event: &Event) -> io::Result<Vec<u8>> {
    let event = serde_json::value::to_raw_value(event)?;
    let crc = format!("{:08x}", crc32c::crc32c(event.get().as_bytes()));
    let mut line = serde_json::to_vec(&Line { crc, event: &event })?;
    line.push(b'\n');
    Ok(line)
}

/// The events of complete lines, and how many lines were damaged.
fn parse(text: &[u8]) -> (Vec<Event>, usize) {
    let mut damaged = 0;
    let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let events = lines.filter_map(|line| {
        let event = parse_line(line);
        damaged += usize::from(event.is_none());
        event
    });
    (events.collect(), damaged)
}

fn parse_line(line: &[u8]) -> Option<Event> {
    if line.len() > MAX_LINE {
        return None;
    }
    let line: Line<'_> = serde_json::from_slice(line).ok()?;
    let text = line.event.get();
    let crc = u32::from_str_radix(&line.crc, 16).ok()?;
    (crc == crc32c::crc32c(text.as_bytes())).then(|| serde_json::from_str(text).ok())?
}

/// Events in memory, for tests.
#[derive(Debug, Default)]
pub struct MemoryInventory {
    events: Vec<Event>,
    seen: usize,
    restarted: bool,
}

impl Inventory for MemoryInventory {
    fn changes(&mut self) -> Result<Changes, InventoryError> {
        let restarted = std::mem::take(&mut self.restarted);
        let events = self.events[if restarted { 0 } else { self.seen }..].to_vec();
        self.seen = self.events.len();
        Ok(Changes { restarted, events, damaged: 0 })
    }

    fn append(&mut self, event: &Event) -> Result<(), InventoryError> {
        self.events.push(event.clone());
        self.seen = self.events.len();
        Ok(())
    }

    fn rewrite(&mut self, events: &[Event]) -> Result<(), InventoryError> {
        self.events = events.to_vec();
        self.restarted = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn list(number: u64) -> Event {
        Event::List { number, at: 1, next_update: 2, trusted_clock: true }
    }

    fn inventory(directory: &tempfile::TempDir) -> FileInventory {
        FileInventory::new(&directory.path().join("inventory.jsonl"), Disk::default())
    }

    #[test]
    fn a_second_reader_sees_what_the_first_one_added_and_a_compaction() {
        let directory = tempfile::tempdir().unwrap();
        let (mut one, mut two) = (inventory(&directory), inventory(&directory));
        assert_eq!(two.changes().unwrap(), Changes::default());
        one.append(&list(1)).unwrap();
        assert_eq!(one.changes().unwrap().events, [], "its own events are known already");
        assert_eq!(two.changes().unwrap().events, [list(1)]);
        two.append(&list(2)).unwrap();
        assert_eq!(one.changes().unwrap().events, [list(2)]);
        one.rewrite(&[list(2)]).unwrap();
        assert_eq!(two.changes().unwrap(), Changes { restarted: true, events: vec![list(2)], damaged: 0 });
    }

    #[test]
    fn a_torn_line_is_cut_and_a_damaged_one_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = inventory(&directory);
        (1..=3).for_each(|number| writer.append(&list(number)).unwrap());
        let path = directory.path().join("inventory.jsonl");
        let text = std::fs::read_to_string(&path).unwrap().replacen("\"number\":2", "\"number\":7", 1);
        std::fs::write(&path, text).unwrap();
        File::options().append(true).open(&path).unwrap().write_all(b"{\"crc\":\"00").unwrap();
        let mut reader = inventory(&directory);
        let changes = reader.changes().unwrap();
        assert_eq!((changes.events, changes.damaged), (vec![list(1), list(3)], 1));
        reader.append(&list(4)).unwrap();
        let again = inventory(&directory).changes().unwrap();
        assert_eq!((again.events, again.damaged), (vec![list(1), list(3), list(4)], 1));
    }

    #[test]
    fn serials_are_read_with_and_without_colons() {
        let serial = Serial::from_bytes(&[0, 0x0a, 0xff]);
        assert_eq!(serial.to_string(), "0aff");
        assert_eq!(Serial::parse("0A:FF").unwrap(), serial);
        assert_eq!(Serial::parse("aff").unwrap(), serial);
        assert!(Serial::parse("00").is_err() && Serial::parse("xyz").is_err() && Serial::parse("").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&text);
        }

        #[test]
        fn a_flipped_bit_never_yields_another_event(number in any::<u64>(), bit in 0usize..1_000) {
            let mut line = encode(&list(number)).unwrap();
            line.pop();
            let bit = bit % (line.len() * 8);
            line[bit / 8] ^= 1 << (bit % 8);
            if let Some(event) = parse_line(&line) {
                prop_assert_eq!(event, list(number));
            }
        }
    }
}
