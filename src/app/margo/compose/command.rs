//! One run of the compose program: no shell, no input, an environment of its own, a process group of its own, a time limit, and
//! output that is read to its end and kept in part.
//!
//! Whoever drops the run, be it because the gateway stops, ends the whole group. A gateway that is killed cannot: the program keeps
//! the lock file of its project as its standard input, and so the lock, until its last process has ended. The next run of the
//! project finds it locked and ends that group first, by the process id and start time that stand in the file.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use super::judge::last_words;
use super::store::blocking;
use crate::margo::component::compose::Environment;
use crate::margo::host::{ContainerEngine, EngineAddress};
use crate::margo::words::{Digest, hex};
use crate::platform::durable::{Access, Disk};

/// Most of standard output that is kept, from its begin.
const STDOUT: usize = 1 << 20;
/// Most of standard error that is kept, up to its end.
const STDERR: usize = 16 << 10;
/// How long the group of a run of before may take to end.
const ENDING: Duration = Duration::from_secs(30);
/// How often is looked whether something has ended.
const LOOK: Duration = Duration::from_millis(20);
/// Where programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a run came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    /// It is not there, or cannot be started.
    #[error("it cannot be started: {0}; install Compose 2 or later, or write `command`")]
    Start(io::Error),
    /// It is something else.
    #[error("{0}")]
    Unfit(String),
    /// Files, or the lock.
    #[error("{0}")]
    Files(#[from] io::Error),
    /// Too slow; its last words.
    #[error("it took too long: {0}")]
    TimedOut(String),
}

/// What came of a run.
#[derive(Debug)]
pub(super) struct Output {
    pub is_success: bool,
    pub stdout: String,
    /// The last words of standard error, without values of parameters.
    pub words: String,
}

/// One run for a project.
#[derive(Debug)]
pub(super) struct Call {
    pub arguments: Vec<OsString>,
    pub environment: Environment,
    pub directory: PathBuf,
    /// Held while it runs.
    pub lock: Option<File>,
}

/// The compose program for one engine.
#[derive(Debug)]
pub(super) struct Tool<'a> {
    pub engine: &'a ContainerEngine,
    /// Where projects lie.
    root: &'a Path,
}

impl<'a> Tool<'a> {
    pub(super) const fn new(engine: &'a ContainerEngine, root: &'a Path) -> Self {
        Self { engine, root }
    }

    /// Runs it without a project.
    pub(super) async fn ask(&self, arguments: &[&str], limit: Duration) -> Result<Output, CommandError> {
        let arguments = arguments.iter().map(Into::into).collect();
        let directory = self.home().await?;
        self.run(Call { arguments, environment: Environment::default(), directory, lock: None }, limit).await
    }

    pub(super) async fn run(&self, call: Call, limit: Duration) -> Result<Output, CommandError> {
        let home = self.home().await?;
        let Some((program, first)) = self.engine.command.split_first() else {
            return Err(CommandError::Unfit("`command` is empty".to_owned()));
        };
        let mut command = Command::new(program);
        command.args(first).args(&call.arguments).current_dir(&call.directory).env_clear().process_group(0);
        command.envs([("PATH", PATH), ("LANG", "C.UTF-8"), ("DOCKER_CLI_HINTS", "false")]);
        command.envs([("COMPOSE_ANSI", "never"), ("COMPOSE_PROGRESS", "plain"), ("COMPOSE_MENU", "false")]);
        command.env("HOME", &home).env("DOCKER_HOST", self.engine.address.docker_host());
        if let Some(directory) = &self.engine.client_config {
            command.env("DOCKER_CONFIG", directory);
        }
        if let Some(directory) = self.certificates(&home).await? {
            command.env("DOCKER_TLS_VERIFY", "1").env("DOCKER_CERT_PATH", directory);
        }
        // Their names cannot be any of the above.
        command.envs(call.environment.iter());
        let lock = match call.lock {
            Some(lock) => Some(locked(lock).await?),
            None => None,
        };
        let stdin = lock.as_ref().map(File::try_clone).transpose()?;
        command.stdin(stdin.map_or_else(Stdio::null, Stdio::from)).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut group = Group::spawn(&mut command).map_err(CommandError::Start)?;
        if let Some(lock) = lock {
            note(lock, &group.0)?;
        }
        let (stdout, stderr) = group.pipes()?;
        let mut kept = (Vec::new(), Vec::new());
        let ended = tokio::time::timeout(limit, async {
            tokio::try_join!(
                keep(stdout, &mut kept.0, STDOUT, End::Front),
                keep(stderr, &mut kept.1, STDERR, End::Back)
            )?;
            group.ended().await
        });
        let ended = ended.await;
        let words = |stderr: &[u8]| {
            last_words(&String::from_utf8_lossy(stderr), call.environment.iter().map(|(_, value)| value))
        };
        match ended {
            Ok(status) => Ok(Output {
                is_success: status?.success(),
                stdout: String::from_utf8_lossy(&kept.0).into_owned(),
                words: words(&kept.1),
            }),
            Err(_) => Err(CommandError::TimedOut(words(&kept.1))),
        }
    }

    /// A directory of the program's own.
    async fn home(&self) -> io::Result<PathBuf> {
        let home = self.root.join("home");
        let made = home.clone();
        blocking(move || Disk::default().create_directory(&made, Access::Private)).await?;
        Ok(home)
    }

    /// The certificates under the names that the program looks for.
    async fn certificates(&self, home: &Path) -> io::Result<Option<PathBuf>> {
        let EngineAddress::Tcp(place, Some(tls)) = &self.engine.address else { return Ok(None) };
        let directory = home.join(format!("tls-{}", hex(&Digest::of(place.as_bytes()).as_bytes()[..8])));
        let (tls, made) = (tls.clone(), directory.clone());
        blocking(move || {
            let disk = Disk::default();
            disk.create_directory(&made, Access::Private)?;
            for (from, name) in [(&tls.ca, "ca.pem"), (&tls.certificate, "cert.pem"), (&tls.key, "key.pem")] {
                let (wanted, path) = (std::fs::read(from)?, made.join(name));
                if std::fs::read(&path).ok().as_ref() != Some(&wanted) {
                    disk.replace(&path, &wanted, Access::Private)?;
                }
            }
            Ok(())
        })
        .await?;
        Ok(Some(directory))
    }
}

/// A process and its group, which ends with it.
struct Group(Child);

impl Group {
    fn spawn(command: &mut Command) -> io::Result<Self> {
        command.spawn().map(Self)
    }

    fn pipes(&mut self) -> io::Result<(Receiver, Receiver)> {
        let missing = || io::Error::other("its output is not there");
        let stdout = OwnedFd::from(self.0.stdout.take().ok_or_else(missing)?);
        let stderr = OwnedFd::from(self.0.stderr.take().ok_or_else(missing)?);
        Ok((Receiver::from_owned_fd(stdout)?, Receiver::from_owned_fd(stderr)?))
    }

    /// Once its output has ended, it ends in a moment.
    async fn ended(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(Some(_))) {
            return;
        }
        end_group(self.0.id());
        // After a kill it is gone in a moment; nobody else may be given its number before.
        let _ended = self.0.wait();
    }
}

fn end_group(id: u32) {
    if let Some(group) = i32::try_from(id).ok().and_then(Pid::from_raw) {
        // It may have ended by itself.
        let _gone = kill_process_group(group, Signal::KILL);
    }
}

/// When a process was started, in ticks since the machine was: with its number it names one process.
fn started(id: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name may hold anything, also spaces and brackets.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Notes in the lock file whom it belongs to.
fn note(mut lock: File, child: &Child) -> io::Result<()> {
    let text = format!("{} {}\n", child.id(), started(child.id()).unwrap_or(0));
    lock.set_len(0)?;
    lock.rewind()?;
    lock.write_all(text.as_bytes())
}

/// Takes the lock; a run of a gateway that was killed is ended first.
async fn locked(mut lock: File) -> io::Result<File> {
    let until = tokio::time::Instant::now() + ENDING;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) => {}
        }
        if tokio::time::Instant::now() > until {
            return Err(io::Error::other("a run of before does not end"));
        }
        let mut text = String::new();
        lock.rewind()?;
        lock.read_to_string(&mut text)?;
        let mut words = text.split_whitespace();
        let id = words.next().and_then(|id| id.parse().ok());
        let begun = words.next().and_then(|begun| begun.parse().ok());
        if let (Some(id), Some(begun)) = (id, begun)
            && started(id) == Some(begun)
        {
            end_group(id);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Which end of an output is kept.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Front,
    Back,
}

async fn keep(mut pipe: Receiver, kept: &mut Vec<u8>, most: usize, end: End) -> io::Result<()> {
    let mut piece = vec![0; 8 << 10];
    loop {
        let read = pipe.read(&mut piece).await?;
        if read == 0 {
            return Ok(());
        }
        match end {
            End::Front => kept.extend_from_slice(&piece[..read.min(most.saturating_sub(kept.len()))]),
            End::Back => {
                kept.extend_from_slice(&piece[..read]);
                kept.drain(..kept.len().saturating_sub(most));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::margo::component::compose::Allowed;
    use crate::margo::host::Collector;

    fn engine(script: &str) -> ContainerEngine {
        ContainerEngine {
            command: ["/bin/sh", "-c", script, "compose"].map(str::to_owned).to_vec(),
            address: EngineAddress::Socket("/run/x.sock".into()),
            client_config: None,
            timeout: Duration::from_secs(1),
            check_every: Duration::from_secs(60),
            keep_volumes: false,
            allowed: Allowed::default(),
            collector: Collector {
                http: "http://c".to_owned(),
                grpc: None,
                protocol: "http/protobuf".to_owned(),
                certificate: None,
            },
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn the_program_has_an_environment_of_its_own_and_its_output_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let told = engine("env; echo \"$@\"; cat; echo oops >&2; exit 3");
        let output = Tool::new(&told, dir.path()).ask(&["version"], LONG).await.unwrap();
        assert!(!output.is_success && output.words == "oops", "{output:?}");
        assert!(output.stdout.contains("DOCKER_HOST=unix:///run/x.sock") && output.stdout.ends_with("version\n"));
        assert!(!output.stdout.contains("CARGO"), "{}", output.stdout);
        let much = engine("head -c 3000000 /dev/zero; head -c 3000000 /dev/zero | tr '\\0' x >&2");
        let output = Tool::new(&much, dir.path()).ask(&[], LONG).await.unwrap();
        assert!(output.is_success && output.stdout.len() == STDOUT && output.words.len() < 1_000);
        let none = ContainerEngine { command: vec!["/nowhere/compose".to_owned()], ..engine("") };
        let error = Tool::new(&none, dir.path()).ask(&[], LONG).await.unwrap_err();
        assert!(matches!(error, CommandError::Start(_)), "{error}");
    }

    fn call(directory: &Path) -> Call {
        let lock = File::options().read(true).write(true).create(true).truncate(false).open(directory.join("lock"));
        Call {
            arguments: Vec::new(),
            environment: Environment::default(),
            directory: directory.to_owned(),
            lock: Some(lock.unwrap()),
        }
    }

    #[tokio::test]
    async fn a_slow_program_ends_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let slow = engine("echo waiting >&2; sleep 600 & echo $! >child; wait");
        let error = Tool::new(&slow, dir.path()).run(call(dir.path()), Duration::from_secs(4)).await.unwrap_err();
        assert!(matches!(&error, CommandError::TimedOut(words) if words == "waiting"), "{error}");
        // The lock is free only when its last holder is gone.
        let quick = engine("exit 0");
        assert!(Tool::new(&quick, dir.path()).run(call(dir.path()), LONG).await.unwrap().is_success);
        let child: u32 = std::fs::read_to_string(dir.path().join("child")).unwrap().trim().parse().unwrap();
        let state = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z"), "{state}");
    }

    #[tokio::test]
    async fn a_run_of_a_gateway_that_was_killed_is_ended_first() {
        let dir = tempfile::tempdir().unwrap();
        let held = call(dir.path()).lock.unwrap();
        held.try_lock().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "sleep 600 & wait"]).stdin(Stdio::from(held.try_clone().unwrap())).process_group(0);
        // Nobody waits for it, as after a kill: only its lock is left.
        let mut orphan = command.spawn().unwrap();
        note(held, &orphan).unwrap();
        drop(command);
        let next = engine("exit 0");
        assert!(Tool::new(&next, dir.path()).run(call(dir.path()), LONG).await.unwrap().is_success);
        assert!(!orphan.wait().unwrap().success());
    }
}
