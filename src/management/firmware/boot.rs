//! Which of the gateway's binaries starts: the packaged one, or one of two places that updates use in turn.
//!
//! The packaged binary is the launcher. At the very start of `run` it calls [`Boot::start`], which decides
//! ([`decide`], pure), writes down that it tries, and becomes the chosen binary (`exec`). A new binary is on trial: each
//! start counts, and when the starts are used up without proof, the next one is the old binary. A binary that cannot be
//! run at all (wrong architecture, damaged) is left out at once. So a bad update needs nobody.
//!
//! `boot.json` is replaced in one step; if it cannot be read, the packaged binary runs.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::artifact::check_file;
use super::{Manifest, Refusal};
use crate::platform::durable::{Access, Disk};

/// Tells a binary which place it was started from, and that the decision was made.
pub(super) const SLOT_VARIABLE: &str = "FIELDGATE_SLOT";
/// Name of the binary in its place.
const BINARY: &str = "fieldgate";
/// Starts that a new binary gets to prove itself.
const STARTS: u8 = 3;

/// A place that a binary can be started from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slot {
    /// The binary of the distribution's package: the launcher and the last resort.
    #[default]
    Packaged,
    /// The first place.
    A,
    /// The second place.
    B,
}

impl Slot {
    /// Stable name; also the directory's.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Packaged => "packaged",
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// Reads a stable name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Packaged, Self::A, Self::B].into_iter().find(|slot| slot.as_str() == text)
    }

    /// The place to install into while this one runs.
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B | Self::Packaged => Self::A,
        }
    }
}

/// A binary that has to prove itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Where it lies.
    pub slot: Slot,
    /// What runs when it fails.
    pub fallback: Slot,
    /// Starts so far.
    pub starts: u8,
    /// Starts it gets.
    pub limit: u8,
    /// The job that installed it (the offer's id).
    pub job: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: String,
    /// Devices that were polled when it was installed: it has to poll them too.
    pub devices: Vec<String>,
    /// Set when it was given up before its starts were used.
    #[serde(default)]
    pub given_up: Option<String>,
}

/// How the last trial ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The job that installed it.
    pub job: String,
    /// Whether it was proven.
    pub proven: bool,
    /// Stable code when it was not.
    pub code: String,
    /// For people.
    pub reason: String,
}

/// Content of `boot.json`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BootRecord {
    /// What runs when nothing is on trial.
    pub active: Slot,
    /// What is on trial.
    #[serde(default)]
    pub trial: Option<Trial>,
    /// How the last trial ended.
    #[serde(default)]
    pub last: Option<Outcome>,
}

/// What to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The place.
    pub start: Slot,
    /// What must be durable before that place is started; `None` when nothing changes.
    pub record: Option<BootRecord>,
}

/// Decides what to start. Pure; `runnable` says whether a place holds a binary that can be run.
pub fn decide(record: &BootRecord, runnable: impl Fn(Slot) -> bool) -> Decision {
    let Some(trial) = &record.trial else {
        let start = if runnable(record.active) { record.active } else { Slot::Packaged };
        return Decision { start, record: None };
    };
    let failed = if let Some(reason) = &trial.given_up {
        Some(("unhealthy", reason.clone()))
    } else if !runnable(trial.slot) {
        Some(("not-runnable", "it is missing, damaged or cannot be run on this machine".to_owned()))
    } else if trial.starts >= trial.limit {
        Some(("no-proof", format!("it did not report healthy in {} starts", trial.limit)))
    } else {
        None
    };
    match failed {
        None => {
            let trial = Trial { starts: trial.starts + 1, ..trial.clone() };
            Decision { start: trial.slot, record: Some(BootRecord { trial: Some(trial), ..record.clone() }) }
        }
        Some((code, reason)) => {
            let fallback = if runnable(trial.fallback) { trial.fallback } else { Slot::Packaged };
            let last = Outcome { job: trial.job.clone(), proven: false, code: code.to_owned(), reason };
            Decision { start: fallback, record: Some(BootRecord { active: fallback, trial: None, last: Some(last) }) }
        }
    }
}

/// Why the boot record could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file system refused.
    #[error("cannot {act} {path}: {source}")]
    Io {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The bytes in the place are not those that were signed.
    #[error("the installed copy is wrong: {0}")]
    Copy(Refusal),
    /// The new binary cannot be run.
    #[error("the new binary cannot be run on this machine: {0}")]
    DoesNotRun(String),
    /// Something is on trial already.
    #[error("the binary of job {0} is still on trial")]
    Busy(String),
}

/// The gateway's places, below `<data>/firmware`.
#[derive(Debug, Clone)]
pub struct Boot {
    directory: PathBuf,
    disk: Disk,
}

impl Boot {
    /// The places below `directory`.
    pub fn new(directory: &Path, disk: Disk) -> Self {
        Self { directory: directory.to_owned(), disk }
    }

    fn record_path(&self) -> PathBuf {
        self.directory.join("boot.json")
    }

    /// The binary of a place; `None` for the packaged one, which only the package knows.
    pub fn binary(&self, slot: Slot) -> Option<PathBuf> {
        (slot != Slot::Packaged).then(|| self.directory.join(slot.as_str()).join(BINARY))
    }

    /// The record; the default when there is none or it cannot be read, because then the packaged binary is right.
    pub fn record(&self) -> BootRecord {
        let path = self.record_path();
        match std::fs::read(&path).map(|text| serde_json::from_slice(&text)) {
            Ok(Ok(record)) => record,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BootRecord::default(),
            Ok(Err(_)) | Err(_) => {
                tracing::error!(path = %path.display(), "the boot record cannot be read; the packaged binary runs");
                BootRecord::default()
            }
        }
    }

    fn store(&self, record: &BootRecord) -> Result<(), BootError> {
        let path = self.record_path();
        let text = serde_json::to_vec_pretty(record).map_err(io::Error::from);
        let done = text.and_then(|text| self.disk.replace(&path, &text, Access::Private));
        done.map_err(|source| BootError::Io { act: "write", path, source })
    }

    /// Whether a place holds a binary that can be run: there, executable, and, when it is on trial, byte by byte right.
    pub fn runnable(&self, record: &BootRecord, slot: Slot) -> bool {
        let Some(path) = self.binary(slot) else { return true };
        let Ok(meta) = std::fs::metadata(&path) else { return false };
        let executable = meta.is_file() && meta.len() > 0 && meta.permissions().mode() & 0o100 != 0;
        let trial = record.trial.as_ref().filter(|trial| trial.slot == slot);
        executable && trial.is_none_or(|trial| matches!(check_file(&path, trial.size, &trial.sha256), Ok(Ok(()))))
    }

    /// Decides and writes the decision down. When that cannot be written, a trial is not begun: an uncounted start could
    /// go on for ever.
    pub fn at_start(&self) -> Slot {
        let record = self.record();
        let decision = decide(&record, |slot| self.runnable(&record, slot));
        let Some(after) = &decision.record else { return decision.start };
        if let Err(error) = self.store(after) {
            let fallback = record.trial.as_ref().map_or(record.active, |trial| trial.fallback);
            tracing::error!(%error, slot = fallback.as_str(), "the start could not be counted; the old binary runs");
            return if self.runnable(&record, fallback) { fallback } else { Slot::Packaged };
        }
        decision.start
    }

    /// Called first thing by `run`: becomes the chosen binary, or returns when that is this one. `arguments` are those of
    /// this process without its name.
    pub fn start(&self, arguments: &[std::ffi::OsString]) -> Slot {
        if let Some(slot) = std::env::var(SLOT_VARIABLE).ok().and_then(|text| Slot::parse(&text)) {
            return slot;
        }
        // A binary that cannot be executed is given up, and the next decision is made; two places, so it ends.
        for _ in 0..3 {
            let slot = self.at_start();
            let Some(binary) = self.binary(slot) else { return Slot::Packaged };
            let error = Command::new(&binary).args(arguments).env(SLOT_VARIABLE, slot.as_str()).exec();
            tracing::error!(%error, binary = %binary.display(), "cannot start this binary");
            if self.disown(slot, &format!("it cannot be started: {error}")).is_err() {
                break;
            }
        }
        Slot::Packaged
    }

    /// Takes a place that cannot be started out of the record.
    fn disown(&self, slot: Slot, reason: &str) -> Result<(), BootError> {
        let mut record = self.record();
        match &mut record.trial {
            Some(trial) if trial.slot == slot => trial.given_up = Some(reason.to_owned()),
            _ => record.active = Slot::Packaged,
        }
        self.store(&record)
    }

    /// Puts a checked artifact into the place that does not run, and checks the copy.
    ///
    /// # Errors
    /// When the file system refuses, the copy is wrong, or it does not run.
    pub fn install(&self, artifact: &Path, manifest: &Manifest) -> Result<Slot, BootError> {
        let record = self.record();
        if let Some(trial) = &record.trial {
            return Err(BootError::Busy(trial.job.clone()));
        }
        let slot = record.active.other();
        let directory = self.directory.join(slot.as_str());
        let io = |act, path: &Path| {
            let path = path.to_owned();
            move |source| BootError::Io { act, path, source }
        };
        self.disk.create_directory(&directory, Access::Public).map_err(io("create", &directory))?;
        self.disk.remove_unfinished(&directory).map_err(io("tidy", &directory))?;
        let bytes = std::fs::read(artifact).map_err(io("read", artifact))?;
        let (binary, text) = (directory.join(BINARY), directory.join("manifest"));
        self.disk.replace(&binary, &bytes, Access::Executable).map_err(io("write", &binary))?;
        self.disk.replace(&text, manifest.to_text().as_bytes(), Access::Public).map_err(io("write", &text))?;
        let copy = check_file(&binary, manifest.size, &manifest.sha256).map_err(io("read", &binary))?;
        copy.map_err(BootError::Copy)?;
        try_out(&binary)?;
        Ok(slot)
    }

    /// Puts `slot` on trial: the next start is the new binary's. This is the moment at which the update happens.
    ///
    /// # Errors
    /// When that cannot be written; the old binary then stays.
    pub fn begin_trial(
        &self,
        slot: Slot,
        job: &str,
        manifest: &Manifest,
        devices: Vec<String>,
    ) -> Result<(), BootError> {
        let record = self.record();
        let trial = Trial {
            slot,
            fallback: record.active,
            starts: 0,
            limit: STARTS,
            job: job.to_owned(),
            size: manifest.size,
            sha256: manifest.sha256.clone(),
            devices,
            given_up: None,
        };
        self.store(&BootRecord { trial: Some(trial), ..record })
    }

    /// The binary on trial is healthy: it stays.
    ///
    /// # Errors
    /// When that cannot be written; the trial then goes on.
    pub fn prove(&self) -> Result<(), BootError> {
        let record = self.record();
        let Some(trial) = record.trial else { return Ok(()) };
        let last = Outcome { job: trial.job, proven: true, code: String::new(), reason: String::new() };
        self.store(&BootRecord { active: trial.slot, trial: None, last: Some(last) })
    }

    /// The binary on trial is not healthy: the next start is the old one's.
    ///
    /// # Errors
    /// When that cannot be written; its starts are then still counted.
    pub fn give_up(&self, reason: &str) -> Result<(), BootError> {
        let mut record = self.record();
        let Some(trial) = &mut record.trial else { return Ok(()) };
        trial.given_up = Some(reason.to_owned());
        self.store(&record)
    }
}

/// Runs `binary version`: a wrong architecture or a missing library shows now, not after the restart.
fn try_out(binary: &Path) -> Result<(), BootError> {
    let fails = |reason: String| BootError::DoesNotRun(reason);
    let mut command = Command::new(binary);
    command.arg("version").env(SLOT_VARIABLE, "trial").current_dir("/");
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut tries = 0;
    let mut child = loop {
        match command.spawn() {
            // Another thread forked while the file was open for writing; it is closed in a moment.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < 50 => tries += 1,
            spawned => break spawned.map_err(|error| fails(error.to_string()))?,
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    for _ in 0..500 {
        match child.try_wait().map_err(|error| fails(error.to_string()))? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(fails(format!("`version` ended with {status}"))),
            None => std::thread::sleep(std::time::Duration::from_millis(20)),
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(fails("`version` did not end within 10 s".to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slot() -> impl Strategy<Value = Slot> {
        prop_oneof![Just(Slot::Packaged), Just(Slot::A), Just(Slot::B)]
    }

    fn trial(slot: Slot, fallback: Slot, starts: u8, given_up: bool) -> Trial {
        let given_up = given_up.then(|| "sick".to_owned());
        let (job, sha256) = ("j".to_owned(), String::new());
        Trial { slot, fallback, starts, limit: STARTS, job, size: 0, sha256, devices: Vec::new(), given_up }
    }

    #[test]
    fn a_binary_on_trial_gets_three_starts_and_then_the_old_one_runs() {
        let mut record = BootRecord { active: Slot::A, trial: Some(trial(Slot::B, Slot::A, 0, false)), last: None };
        let mut started = Vec::new();
        for _ in 0..5 {
            let decision = decide(&record, |_| true);
            started.push(decision.start);
            record = decision.record.unwrap_or(record);
        }
        assert_eq!(started, [Slot::B, Slot::B, Slot::B, Slot::A, Slot::A]);
        let last = record.last.unwrap();
        assert_eq!((last.proven, last.code.as_str(), last.job.as_str()), (false, "no-proof", "j"));
    }

    #[test]
    fn a_record_that_cannot_be_read_starts_the_packaged_binary() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("boot.json"), "{\"active\":\"a\"").unwrap();
        assert_eq!(Boot::new(directory.path(), Disk::default()).at_start(), Slot::Packaged);
    }

    proptest! {
        #[test]
        fn whatever_the_record_says_something_runnable_starts_and_trials_end(
            active in slot(), on_trial in proptest::option::of((slot(), slot(), 0u8..6, any::<bool>())),
            a in any::<bool>(), b in any::<bool>(),
        ) {
            let runnable = |slot| match slot { Slot::Packaged => true, Slot::A => a, Slot::B => b };
            let trial = on_trial.map(|(slot, fallback, starts, given_up)| trial(slot, fallback, starts, given_up));
            let mut record = BootRecord { active, trial, last: None };
            for round in 0..6 {
                let decision = decide(&record, runnable);
                prop_assert!(runnable(decision.start));
                record = decision.record.unwrap_or(record);
                prop_assert!(record.trial.is_none() || round < 5);
            }
            prop_assert!(record.trial.is_none());
        }
    }
}
