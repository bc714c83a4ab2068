//! A child process in its own process group: its output by lines, its end by signal, and nothing left behind.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// Lines kept per process; older ones are dropped first.
const KEPT: usize = 200_000;

#[derive(Default)]
struct Output {
    lines: VecDeque<String>,
    dropped: usize,
    open_streams: usize,
}

/// A running child. Dropping it kills its whole process group.
pub struct Child {
    name: String,
    inner: std::process::Child,
    output: Arc<(Mutex<Output>, Condvar)>,
    stdin: Option<ChildStdin>,
}

impl Child {
    /// Starts `command`; `name` stands in failures. Standard output and error are read together.
    pub fn spawn(name: &str, mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut inner = command.spawn().unwrap_or_else(|error| panic!("cannot start {name} ({command:?}): {error}"));
        let output = Arc::new((Mutex::new(Output { open_streams: 2, ..Output::default() }), Condvar::new()));
        collect(inner.stdout.take().expect("piped"), output.clone());
        collect(inner.stderr.take().expect("piped"), output.clone());
        let stdin = inner.stdin.take();
        Self { name: name.to_owned(), inner, output, stdin }
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.inner.id()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.inner.try_wait().unwrap_or_else(|e| panic!("wait for {}: {e}", self.name)).is_some()
    }

    /// All lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.output().lines.iter().cloned().collect()
    }

    /// The first line, old or new, that `wanted` accepts. Fails when the process closes its output first.
    pub fn wait_for(&self, what: &str, limit: Duration, wanted: impl Fn(&str) -> bool) -> String {
        self.wait_for_after(0, what, limit, wanted).1
    }

    /// As [`Child::wait_for`], skipping the first `from` lines. Returns the number to go on from.
    pub fn wait_for_after(
        &self,
        from: usize,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> (usize, String) {
        let began = Instant::now();
        let mut next = from;
        let mut output = self.output();
        loop {
            while next < output.dropped + output.lines.len() {
                let line = &output.lines[next.max(output.dropped) - output.dropped];
                next = next.max(output.dropped) + 1;
                if wanted(line) {
                    return (next, line.clone());
                }
            }
            let left = limit.saturating_sub(began.elapsed());
            if output.open_streams == 0 || left.is_zero() {
                let ended = if output.open_streams == 0 { "ended" } else { "is still running" };
                let tail: Vec<_> = output.lines.iter().rev().take(30).rev().cloned().collect();
                let (name, waited) = (self.name.clone(), began.elapsed());
                drop(output);
                panic!("{name} did not say {what} within {waited:?} ({ended}); its last lines:\n{}", tail.join("\n"));
            }
            output = self.output.1.wait_timeout(output, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Writes a line to its standard input.
    pub fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("standard input is open");
        writeln!(stdin, "{line}").and_then(|()| stdin.flush()).unwrap_or_else(|e| panic!("{}: {e}", self.name));
    }

    /// Closes its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap_or_else(|e| panic!("signal {}: {e}", self.name));
    }

    /// Sends a signal to the process and everything that it started.
    pub fn signal_group(&self, signal: Signal) {
        rustix::process::kill_process_group(self.pid(), signal).unwrap_or_else(|e| panic!("signal {}: {e}", self.name));
    }

    /// Asks it to stop and waits.
    pub fn terminate(mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(limit)
    }

    /// Kills it as a power cut would, and waits.
    pub fn kill(mut self) -> ExitStatus {
        self.signal(Signal::KILL);
        self.wait(super::SOON)
    }

    /// Waits until it has ended.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let name = self.name.clone();
        super::eventually(&format!("the end of {name}"), limit, || self.inner.try_wait().expect("our child"))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.inner.try_wait().expect("our child").is_none()
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("linux says VmRSS");
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") * 1_024
    }

    /// CPU time used so far, of all its threads.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).expect("the process runs");
        let after_name = stat.rsplit_once(')').expect("linux puts the name in parentheses").1;
        let fields: Vec<u64> =
            after_name.split_whitespace().skip(11).take(2).map(|f| f.parse().expect("ticks")).collect();
        let ticks = rustix::param::clock_ticks_per_second();
        Duration::from_secs_f64((fields[0] + fields[1]) as f64 / ticks as f64)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.inner.id() as i32).expect("a process id is not zero")
    }

    fn output(&self) -> MutexGuard<'_, Output> {
        self.output.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // The group also holds what the child started; the child itself is not reaped before, so its id is still ours.
        let _ = rustix::process::kill_process_group(self.pid(), Signal::KILL);
        let _ = self.inner.wait();
    }
}

fn collect(stream: impl Read + Send + 'static, output: Arc<(Mutex<Output>, Condvar)>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let more = matches!(reader.read_until(b'\n', &mut bytes), Ok(1..));
            let mut now = output.0.lock().unwrap_or_else(PoisonError::into_inner);
            if more {
                now.lines.push_back(String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned());
                if now.lines.len() > KEPT {
                    now.lines.pop_front();
                    now.dropped += 1;
                }
            } else {
                now.open_streams -= 1;
            }
            output.1.notify_all();
            if !more {
                return;
            }
        }
    });
}
