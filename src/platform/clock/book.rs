//! What is known about the wall clock of each boot of this machine, so that stamps taken before it was set can be mended.
//!
//! A gateway without a battery-backed clock boots in 1970. What it reads then is stored at once, with the boot and the
//! uptime of the machine beside the stamp. When the clock is set (by a time service, by hand), the difference between
//! wall clock and uptime is noted here for this boot, and every older stamp of the boot follows from its uptime.
//!
//! Promise: a stamp is changed only by a clock that deserves more trust than the one it was taken with, and only if it is
//! off by a second or more. What is noted survives a power cut, so a backlog from before a restart is mended too.
//!
//! Not promised: a boot during which the clock was never set is never known; its stamps stay as they are, marked
//! `UNSYNCHRONISED`. Order never depends on any of this.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use super::super::durable::{Access, Disk};
use super::Boot;
use crate::model::{ClockTrust, Correction, Stamp, Uptime};

/// Boots remembered; a backlog seldom spans more.
const BOOTS: usize = 256;
/// Differences below this are left alone: clocks under discipline move by as much.
const SLACK_MS: i64 = 1_000;
/// Name of the file in the data directory.
const FILE: &str = "clock-settings";
/// First line of the file.
const FORMAT: &str = "fieldgate clock 1";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Setting {
    boot: u32,
    /// Wall clock at the beginning of the boot, milliseconds since 1970.
    began_ms: i64,
    trust: ClockTrust,
}

/// See the module. Shared by everyone who hands out stored stamps.
#[derive(Debug, Default)]
pub struct ClockBook {
    settings: RwLock<VecDeque<Setting>>,
    path: Option<PathBuf>,
}

impl ClockBook {
    /// Reads the book in this data directory, or begins an empty one. A damaged book is begun anew: stamps then stay as
    /// they are.
    pub fn open(data_dir: &Path) -> Self {
        let path = data_dir.join(FILE);
        let settings = Self::read(&path);
        Self { settings: RwLock::new(settings), path: Some(path) }
    }

    fn read(path: &Path) -> VecDeque<Setting> {
        match std::fs::read_to_string(path) {
            Ok(text) => parse(&text).unwrap_or_else(|| {
                tracing::warn!(path = %path.display(), "the book of clock settings is damaged; stamps from earlier boots with a wrong clock stay as they are");
                VecDeque::new()
            }),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "the book of clock settings cannot be read");
                }
                VecDeque::new()
            }
        }
    }

    /// Looks at the clock; notes for this boot what a clock of this trust shows. Says whether anything is new.
    pub fn observe(&self, boot: Boot, now: Stamp) -> bool {
        if boot.id == 0 || now.trust == ClockTrust::Unsynchronised {
            return false;
        }
        let began_ms = now.wall_ms.saturating_sub_unsigned(boot.uptime(now.mono_ns).ms);
        let new = Setting { boot: boot.id, began_ms, trust: now.trust };
        let mut settings = self.settings.write().unwrap_or_else(PoisonError::into_inner);
        match settings.iter_mut().find(|s| s.boot == boot.id) {
            Some(old) if new.trust < old.trust => return false,
            Some(old) if new.trust == old.trust && (new.began_ms - old.began_ms).abs() < SLACK_MS => return false,
            Some(old) => *old = new,
            None => {
                settings.push_back(new);
                if settings.len() > BOOTS {
                    settings.pop_front();
                }
            }
        }
        true
    }

    /// Writes the book, durably. Blocks.
    ///
    /// # Errors
    /// The disk refuses; it is then only known until the process ends.
    pub fn save(&self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let settings = self.settings.read().unwrap_or_else(PoisonError::into_inner).clone();
        Disk::default().replace(path, print(&settings).as_bytes(), Access::Private)
    }

    /// How a stamp is to be changed that was taken at this uptime; `None`: not at all.
    pub fn correct(&self, uptime: Uptime, wall_ms: i64, trust: ClockTrust) -> Option<Correction> {
        if uptime.boot == 0 || trust == ClockTrust::Synchronised {
            return None;
        }
        let settings = self.settings.read().unwrap_or_else(PoisonError::into_inner);
        let setting = settings.iter().rev().find(|s| s.boot == uptime.boot && s.trust > trust)?;
        let shift_ms = setting.began_ms.saturating_add_unsigned(uptime.ms).saturating_sub(wall_ms);
        (shift_ms.abs() >= SLACK_MS).then_some(Correction { shift_ms, trust: setting.trust })
    }
}

fn print(settings: &VecDeque<Setting>) -> String {
    let mut text = format!("{FORMAT}\n");
    for Setting { boot, began_ms, trust } in settings {
        text += &format!("{boot:08x} {began_ms} {}\n", trust.as_str());
    }
    let sum = crc32c::crc32c(text.as_bytes());
    text + &format!("{sum:08x}\n")
}

fn parse(text: &str) -> Option<VecDeque<Setting>> {
    let text = text.strip_suffix('\n')?;
    let end = text.rfind('\n')? + 1;
    let (body, sum) = text.split_at(end);
    if u32::from_str_radix(sum, 16).ok()? != crc32c::crc32c(body.as_bytes()) {
        return None;
    }
    let mut lines = body.lines();
    if lines.next()? != FORMAT {
        return None;
    }
    lines
        .map(|line| {
            let mut words = line.split(' ');
            let boot = u32::from_str_radix(words.next()?, 16).ok()?;
            let began_ms = words.next()?.parse().ok()?;
            Some(Setting { boot, began_ms, trust: ClockTrust::from_name(words.next()?)? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: i64 = 1_763_812_800_000;
    const BOOT: Boot = Boot { id: 7, origin_ms: 60_000 };

    fn stamp(wall_ms: i64, mono_s: u64, trust: ClockTrust) -> Stamp {
        Stamp { wall_ms, mono_ns: mono_s * 1_000_000_000, uptime: Default::default(), trust }
    }

    #[test]
    fn a_stamp_of_1970_is_mended_once_the_clock_is_set() {
        let book = ClockBook::default();
        let early = BOOT.uptime(5_000_000_000);
        assert_eq!(early, Uptime { boot: 7, ms: 65_000 });
        assert!(!book.observe(BOOT, stamp(70_000, 10, ClockTrust::Unsynchronised)));
        assert_eq!(book.correct(early, 65_000, ClockTrust::Unsynchronised), None);
        assert!(book.observe(BOOT, stamp(NOON, 10, ClockTrust::Holdover)));
        let mended = book.correct(early, 65_000, ClockTrust::Unsynchronised).unwrap();
        assert_eq!((65_000 + mended.shift_ms, mended.trust), (NOON - 5_000, ClockTrust::Holdover));
        // A clock of the same trust knows no better.
        assert_eq!(book.correct(early, NOON - 3_600_000, ClockTrust::Holdover), None);
        // A better one does, and is not overruled again.
        assert!(book.observe(BOOT, stamp(NOON + 7_210_000, 20, ClockTrust::Synchronised)));
        assert!(!book.observe(BOOT, stamp(0, 21, ClockTrust::Holdover)));
        let mended = book.correct(early, NOON - 5_000, ClockTrust::Holdover).unwrap();
        assert_eq!((mended.shift_ms, mended.trust), (7_200_000, ClockTrust::Synchronised));
        assert_eq!(book.correct(early, 0, ClockTrust::Synchronised), None);
        // Other boots and stamps without an uptime are left alone.
        assert_eq!(book.correct(Uptime { boot: 8, ms: 65_000 }, 65_000, ClockTrust::Unsynchronised), None);
        assert_eq!(book.correct(Uptime::default(), 65_000, ClockTrust::Unsynchronised), None);
    }

    #[test]
    fn the_book_survives_a_restart_and_damage_only_empties_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let book = ClockBook::open(dir.path());
        assert!(book.observe(BOOT, stamp(NOON, 10, ClockTrust::Synchronised)));
        assert!(!book.observe(BOOT, stamp(NOON + 900, 10, ClockTrust::Synchronised)));
        book.save().unwrap();
        let again = ClockBook::open(dir.path());
        assert!(again.correct(BOOT.uptime(0), 0, ClockTrust::Unsynchronised).is_some());
        let text = std::fs::read_to_string(&path).unwrap();
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(ClockBook::open(dir.path()).correct(BOOT.uptime(0), 0, ClockTrust::Unsynchronised), None);
        }
    }

    #[test]
    fn the_oldest_boots_are_forgotten() {
        let book = ClockBook::default();
        for id in 1..=BOOTS as u32 + 1 {
            assert!(book.observe(Boot { id, origin_ms: 0 }, stamp(NOON, 0, ClockTrust::Holdover)));
        }
        let known = |boot| book.correct(Uptime { boot, ms: 0 }, 0, ClockTrust::Unsynchronised).is_some();
        assert!(!known(1) && known(2) && known(BOOTS as u32 + 1));
    }
}
