//! Updates of the gateway itself: killed, and robbed of its power, at every single step.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod firmware_support;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use fieldgate::management::firmware::{
    Approval, Boot, FileFetch, FileJournal, FirmwareError, GatewayTarget, HealthReport, Slot, Stage, Updater,
    UpdaterConfig, Version,
};
use fieldgate::platform::clock::ManualClock;
use fieldgate::platform::durable::Disk;
use firmware_support::{Builder, Death, Mortal, file_url, gateway, script};
use tokio::sync::watch;

/// What the new binary is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum New {
    Healthy,
    /// It runs but never publishes.
    Unhealthy,
    /// It dies right after its start, each time.
    CrashLoop,
    /// It cannot be run at all.
    DoesNotRun,
}

struct Machine {
    directory: tempfile::TempDir,
    builder: Builder,
    artifact: PathBuf,
    new: New,
}

/// How one life of the process ended.
#[derive(Debug, PartialEq)]
enum End {
    /// The disk died under it.
    Died,
    /// It wants to be started again, or died by itself.
    Restart,
    /// The job is over.
    Over(Stage),
}

impl Machine {
    /// An old binary runs from place A.
    fn new(new: New) -> Self {
        let directory = firmware_support::fast_directory();
        let builder = Builder::new();
        let firmware = directory.path().join("firmware");
        let boot = Boot::new(&firmware, Disk::default());
        let old = directory.path().join("old");
        std::fs::write(&old, script("1.0.0", 2_000)).unwrap();
        let manifest = builder.manifest(&gateway(), "1.0.0", &old);
        let slot = boot.install(&old, &manifest).unwrap();
        boot.begin_trial(slot, "factory", &manifest, Vec::new()).unwrap();
        boot.prove().unwrap();
        let artifact = directory.path().join("new");
        let content = match new {
            New::DoesNotRun => b"\x7fELF of another machine".repeat(2_000),
            _ => script("2.0.0", 300_000),
        };
        std::fs::write(&artifact, content).unwrap();
        Self { directory, builder, artifact, new }
    }

    fn firmware(&self) -> PathBuf {
        self.directory.path().join("firmware")
    }

    /// What would run now, really run: it must be old or new as a whole, and must work.
    fn runs(&self, boot: &Boot, slot: Slot) -> Version {
        let binary = boot.binary(slot).expect("never back to the packaged one");
        let content = std::fs::read(&binary).unwrap();
        let old = content == std::fs::read(self.directory.path().join("old")).unwrap();
        assert!(old || content == std::fs::read(&self.artifact).unwrap(), "a mix of old and new");
        let output = loop {
            match Command::new(&binary).arg("version").output() {
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                output => break output.expect("it can be run"),
            }
        };
        Version::parse(String::from_utf8(output.stdout).unwrap().trim()).unwrap()
    }

    /// One life of the process on `disk`.
    async fn live(&self, disk: &Disk, is_dead: impl Fn() -> bool) -> End {
        let boot = Boot::new(&self.firmware(), disk.clone());
        let slot = boot.at_start();
        let version = self.runs(&boot, slot);
        let is_new = version == Version::parse("2.0.0").unwrap();
        if is_new && self.new == New::CrashLoop {
            return End::Restart;
        }
        match self.work(boot, slot, version, is_new, disk, is_dead).await {
            Ok(end) => end,
            Err(_) => End::Died,
        }
    }

    async fn work(
        &self,
        boot: Boot,
        slot: Slot,
        version: Version,
        is_new: bool,
        disk: &Disk,
        is_dead: impl Fn() -> bool,
    ) -> Result<End, FirmwareError> {
        let clock = ManualClock::at(1_790_000_000_000);
        let published = !is_new || self.new == New::Healthy;
        let polled: std::collections::BTreeSet<String> = ["pump-1".to_owned()].into();
        let report = HealthReport { store_open: true, published, polled: polled.clone(), online: polled };
        let (_health, health) = watch::channel(report);
        let (restart, restarted) = watch::channel(None);
        let within = Duration::from_secs(60);
        let target = GatewayTarget::new(boot, slot, version, within, health, restart, clock.clone());
        let config = UpdaterConfig {
            target: "gateway".to_owned(),
            directory: self.firmware(),
            policy: self.builder.policy(),
            window: None,
            rate: None,
            disk: disk.clone(),
        };
        let journal = FileJournal::new(&self.firmware().join("jobs"), disk.clone())?;
        let mut updater = Updater::new(config, target, FileFetch::default(), journal, clock.clone())?;
        let manifest = self.builder.manifest(&gateway(), "2.0.0", &self.artifact);
        // The operator says it again until it is acknowledged; said twice it is done once.
        updater.offer(self.builder.offer("update-1", &manifest, file_url(&self.artifact))).await?;
        updater.approve("update-1", Approval::Operator("ann".to_owned()))?;
        for _ in 0..500 {
            let pause = updater.step().await?;
            if is_dead() {
                return Ok(End::Died);
            }
            if updater.stage().is_final() {
                return Ok(End::Over(updater.stage()));
            }
            if restarted.borrow().is_some() {
                return Ok(End::Restart);
            }
            clock.advance(pause.unwrap_or_default());
        }
        panic!("it never ends: {:?}", updater.job());
    }

    /// Lives until the job is over, at most `lives` times.
    async fn until_over(&self) -> Stage {
        for _ in 0..12 {
            match self.live(&Disk::default(), || false).await {
                End::Over(stage) => return stage,
                End::Restart => {}
                End::Died => panic!("nothing kills it any more"),
            }
        }
        panic!("it restarts for ever");
    }

    fn expected(&self) -> (Stage, &'static str) {
        match self.new {
            New::Healthy => (Stage::Done, "2.0.0"),
            New::Unhealthy | New::CrashLoop => (Stage::RolledBack, "1.0.0"),
            New::DoesNotRun => (Stage::Failed, "1.0.0"),
        }
    }
}

async fn die_at_every_step(new: New, death: Death) -> usize {
    for steps in 0.. {
        let machine = Machine::new(new);
        let mortal = Mortal::after(steps);
        let end = loop {
            match machine.live(&mortal.disk(), || mortal.is_dead()).await {
                End::Restart if !mortal.is_dead() => {}
                end => break end,
            }
        };
        if death == Death::PowerCut && mortal.is_dead() {
            mortal.lose_power();
        }
        let stage = if mortal.is_dead() {
            machine.until_over().await
        } else {
            match end {
                End::Over(stage) => stage,
                end => panic!("{end:?}"),
            }
        };
        let (expected, version) = machine.expected();
        // A crash during the trial is a start without proof; three of them take a healthy one back. One does not.
        assert_eq!(stage, expected, "{new:?}, {death:?} at step {steps}");
        let boot = Boot::new(&machine.firmware(), Disk::default());
        let slot = boot.at_start();
        assert_eq!(machine.runs(&boot, slot).as_str(), version, "{new:?}, {death:?} at step {steps}");
        assert_eq!(boot.record().trial, None);
        assert_eq!(machine.live(&Disk::default(), || false).await, End::Over(expected), "it stays as it is");
        let left = std::fs::read_dir(machine.firmware().join("incoming/gateway")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "no artifact is left behind");
        if !mortal.is_dead() {
            return steps;
        }
    }
    unreachable!()
}

#[tokio::test]
async fn a_healthy_update_survives_a_kill_at_every_step() {
    assert!(die_at_every_step(New::Healthy, Death::Kill).await > 60);
}

#[tokio::test]
async fn a_healthy_update_survives_a_power_cut_at_every_step() {
    assert!(die_at_every_step(New::Healthy, Death::PowerCut).await > 60);
}

#[tokio::test]
async fn an_unhealthy_update_is_taken_back_whatever_dies_when() {
    assert!(die_at_every_step(New::Unhealthy, Death::Kill).await > 60);
}

#[tokio::test]
async fn an_unhealthy_update_is_taken_back_after_a_power_cut_at_every_step() {
    assert!(die_at_every_step(New::Unhealthy, Death::PowerCut).await > 60);
}

#[tokio::test]
async fn a_binary_that_dies_at_its_start_is_taken_back_after_three_starts() {
    assert!(die_at_every_step(New::CrashLoop, Death::PowerCut).await > 60);
}

#[tokio::test]
async fn a_binary_that_cannot_run_is_never_started() {
    assert!(die_at_every_step(New::DoesNotRun, Death::PowerCut).await > 40);
}

#[tokio::test]
async fn a_binary_that_decays_before_its_first_start_is_left_out() {
    let machine = Machine::new(New::Healthy);
    assert_eq!(machine.live(&Disk::default(), || false).await, End::Restart);
    let boot = Boot::new(&machine.firmware(), Disk::default());
    let trial = boot.record().trial.unwrap();
    let binary = boot.binary(trial.slot).unwrap();
    let mut bytes = std::fs::read(&binary).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&binary, bytes).unwrap();
    assert_eq!(machine.until_over().await, Stage::RolledBack);
    assert_eq!(boot.record().last.unwrap().code, "not-runnable");
}

#[tokio::test]
async fn two_updates_in_a_row_use_the_places_in_turn() {
    let machine = Machine::new(New::Healthy);
    assert_eq!(machine.until_over().await, Stage::Done);
    let boot = Boot::new(&machine.firmware(), Disk::default());
    assert_eq!(boot.record().active, Slot::B);
    let manifest = machine.builder.manifest(&gateway(), "2.1.0", &machine.artifact);
    assert_eq!(boot.install(&machine.artifact, &manifest).unwrap(), Slot::A, "never over the one that runs");
    assert_eq!(machine.runs(&boot, Slot::B).as_str(), "2.0.0");
}
