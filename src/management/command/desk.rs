//! The core: what is to be stored, done and answered. No I/O; time comes in with every call.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use prost::Message;

use super::check::{self, CheckedWrite, Refusal, refuse};
use super::ledger::{CommandKey, LedgerEntry, Progress};
use super::result::{self, Attempt};
use super::{Answer, CommandLimits, CommandRequest, Devices, WriteFailure};
use crate::management::audit::RefusalGate;
use crate::management::permit::{CommandRules, Permits, PointValues};
use crate::model::{DeviceId, PointId, Stamp, Value};

/// Results that are remembered for each device.
const REMEMBERED: usize = 1_000;
/// How long they are remembered.
const REMEMBERED_MS: i64 = 24 * 3_600 * 1_000;
/// Octets of results that are remembered in all.
const REMEMBERED_OCTETS: usize = 4 << 20;
/// Arrivals of one command in hand that are answered each; more are answered as one.
const MAX_ARRIVALS: u32 = 100;

/// What to do with a request.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "lives for one call; the large variant is the usual one")]
pub enum Decision {
    /// Answer it; nothing is done.
    Answer(Box<Answer>),
    /// Store the entry, then call [`CommandDesk::stored`] or [`CommandDesk::not_stored`].
    Store(Box<LedgerEntry>),
    /// The same command is in hand; its answer will be given for this arrival, too.
    InHand,
}

/// Writes to do, in order; the first failure ends them.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Which command.
    pub key: CommandKey,
    pub(super) request: CommandRequest,
    pub(super) writes: Vec<CheckedWrite>,
}

/// What a restart found.
#[derive(Debug, Default)]
pub struct Restored {
    /// Answers to give: to commands that were interrupted, and to commands whose answer may not have been given.
    pub answers: Vec<Answer>,
    /// Entries to store before.
    pub put: Vec<LedgerEntry>,
    /// Entries to forget.
    pub remove: Vec<CommandKey>,
}

/// What follows from a finished command.
#[derive(Debug)]
pub(super) struct Finished {
    pub answers: Vec<Answer>,
    pub put: Vec<LedgerEntry>,
    pub remove: Vec<CommandKey>,
    pub next: Option<Job>,
}

#[derive(Debug)]
struct Waiting {
    job: Job,
    arrivals: u32,
}

/// Commands of one device.
#[derive(Debug)]
struct Lane {
    queue: VecDeque<CommandKey>,
    running: Option<CommandKey>,
    /// Oldest first.
    remembered: VecDeque<CommandKey>,
    tokens: f64,
    refilled_ns: u64,
}

/// Checks commands, keeps their order, remembers their results.
#[derive(Debug)]
pub struct CommandDesk {
    limits: CommandLimits,
    devices: Devices,
    lanes: BTreeMap<DeviceId, Lane>,
    /// Commands in hand and commands remembered.
    entries: BTreeMap<CommandKey, LedgerEntry>,
    in_hand: BTreeMap<CommandKey, Waiting>,
    weight: usize,
    refusals: RefusalGate,
    permits: Permits,
}

impl CommandDesk {
    /// A desk without memory; see [`CommandDesk::restore`].
    pub fn new(limits: CommandLimits, devices: Devices) -> Self {
        let (lanes, entries, in_hand) = Default::default();
        Self {
            limits,
            devices,
            lanes,
            entries,
            in_hand,
            weight: 0,
            refusals: RefusalGate::default(),
            permits: Permits::default(),
        }
    }

    /// Takes over the ledger after a restart. Nothing in it is done again.
    pub fn restore(&mut self, mut entries: Vec<LedgerEntry>, now: Stamp) -> Restored {
        entries.sort_by_key(|e| e.accepted_ms);
        let mut restored = Restored::default();
        for mut entry in entries {
            match &entry.progress {
                Progress::Answered(_) => {}
                Progress::Done(done) => {
                    // The result is known; whether it was published and audited is not. Twice is better than never: the
                    // line in the audit log has the same id both times.
                    let audit = Some(entry.audited(done, None, "", now));
                    restored.answers.push(Answer { result: done.clone(), audit });
                }
                unfinished => {
                    let started = *unfinished == Progress::Started;
                    let answer = result::interrupted(&entry.key, started, now);
                    let audit = Some(entry.audited(&answer, None, "found at start", now));
                    restored.answers.push(Answer { result: answer.clone(), audit });
                    entry.progress = Progress::Done(answer);
                    restored.put.push(entry.clone());
                }
            }
            self.remember(entry, now);
        }
        restored.remove = self.forget(now);
        restored
    }

    /// Other devices from now on. Commands in hand are finished as they were checked.
    pub fn set_devices(&mut self, devices: Devices) {
        self.permits.keep(|id| devices.contains_key(id));
        self.devices = devices;
    }

    /// Other interlocks, critical points, rates and methods for these devices from now on.
    pub fn set_rules(&mut self, rules: BTreeMap<DeviceId, CommandRules>, values: Arc<dyn PointValues>) {
        self.permits.set(rules, values);
    }

    /// Commands in hand: queued and running.
    pub fn in_hand(&self) -> usize {
        self.in_hand.len()
    }

    /// Octets that are remembered, near enough.
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// Takes a request. `fits` says whether a value fits the raw type of a point.
    pub fn handle(
        &mut self,
        mut request: CommandRequest,
        now: Stamp,
        fits: impl Fn(&PointId, &Value) -> Result<(), String>,
    ) -> Decision {
        let key = CommandKey { device: request.device.clone(), correlation_id: request.command.correlation_id.clone() };
        if let Err(refusal) = check::form(&request) {
            let shown = key.correlation_id.chars().take(64).collect();
            return self.refuse(&CommandKey { correlation_id: shown, ..key }, &request, &refusal, now);
        }
        if let Some(why) = &request.forbidden {
            let refusal = refuse("not-allowed", why.clone());
            return self.refuse(&key, &request, &refusal, now);
        }
        let digest = crc32c::crc32c(&request.command.encode_to_vec());
        if let Some(decision) = self.repeated(&key, &request, digest, now) {
            return decision;
        }
        match self.permits.expand(&key.device, &request.command) {
            Ok(writes) => request.command.writes = writes,
            Err(denied) => return self.refuse(&key, &request, &denied.into(), now),
        }
        match self.accept(&key, &request, now, fits) {
            Err(refusal) => self.refuse(&key, &request, &refusal, now),
            Ok(writes) => {
                let actor = crate::management::audit::printable(&request.actor);
                let lane = self.lane(&key.device, now);
                let idle = lane.running.is_none() && lane.queue.is_empty();
                lane.queue.push_back(key.clone());
                let progress = if idle { Progress::Started } else { Progress::Queued };
                let entry = LedgerEntry { key: key.clone(), digest, accepted_ms: now.wall_ms, actor, progress };
                self.entries.insert(key.clone(), entry.clone());
                self.in_hand.insert(key.clone(), Waiting { job: Job { key, request, writes }, arrivals: 1 });
                Decision::Store(Box::new(entry))
            }
        }
    }

    /// The entry is durable. Returns the job when the device is free for it.
    pub fn stored(&mut self, key: &CommandKey) -> Option<Job> {
        let lane = self.lanes.get_mut(&key.device)?;
        let is_started = self.entries.get(key).is_some_and(|e| e.progress == Progress::Started);
        if lane.running.is_some() || lane.queue.front() != Some(key) || !is_started {
            return None;
        }
        lane.queue.pop_front();
        lane.running = Some(key.clone());
        self.in_hand.get(key).map(|w| w.job.clone())
    }

    /// The entry could not be stored: nothing is done.
    pub fn not_stored(&mut self, key: &CommandKey, why: &str, now: Stamp) -> Option<Answer> {
        let waiting = self.in_hand.remove(key)?;
        self.entries.remove(key);
        if let Some(lane) = self.lanes.get_mut(&key.device) {
            lane.queue.retain(|k| k != key);
        }
        let refusal = refuse("not-stored", format!("the command could not be stored, so nothing was written: {why}"));
        let answer = result::refused(key, &waiting.job.request.command, &refusal, now);
        let audit =
            Some(result::audited(&waiting.job.request.actor, Some(&waiting.job.request.command), &answer, "", now));
        Some(Answer { result: answer, audit })
    }

    /// A job ended. Returns its answers (one for each arrival), what to store, and the next job of the device, which may
    /// begin when the entries are stored.
    pub(super) fn finish(&mut self, key: &CommandKey, attempts: &[Attempt], now: Stamp) -> Finished {
        let mut finished = Finished { answers: Vec::new(), put: Vec::new(), remove: Vec::new(), next: None };
        let Some(waiting) = self.in_hand.remove(key) else { return finished };
        let request = &waiting.job.request;
        let answer = result::tried(key, &request.command, attempts, now);
        let entry = self.entries.remove(key);
        let audit = match &entry {
            Some(entry) => entry.audited(&answer, Some(&request.command), "", now),
            None => result::audited(&request.actor, Some(&request.command), &answer, "", now),
        };
        finished.answers.push(Answer { result: answer.clone(), audit: Some(audit) });
        finished.answers.extend((1..waiting.arrivals).map(|_| Answer { result: answer.clone(), audit: None }));
        if let Some(mut entry) = entry {
            entry.progress = Progress::Done(answer);
            finished.put.push(entry.clone());
            self.remember(entry, now);
        }
        finished.next = self.begin_next(&key.device, &mut finished.put);
        finished.remove = self.forget(now);
        finished
    }

    /// The answer was taken; after a restart it need not be given again. Returns the entry to store when convenient.
    pub(super) fn answered(&mut self, key: &CommandKey) -> Option<LedgerEntry> {
        let entry = self.entries.get_mut(key)?;
        let Progress::Done(result) = &entry.progress else { return None };
        entry.progress = Progress::Answered(result.clone());
        Some(entry.clone())
    }

    /// Checks a job again now that its turn has come: it may have expired, and the configuration may have changed while
    /// it waited. When it may not begin, the attempts say so.
    pub(super) fn recheck(
        &self,
        job: &Job,
        now: Stamp,
        fits: impl Fn(&PointId, &Value) -> Result<(), String>,
    ) -> Result<(), Vec<Attempt>> {
        let checked = check::expiry(&job.request, now)
            .and_then(|()| check::writes(&job.request, &self.devices, fits))
            .and_then(|_| Ok(self.permits.interlocks(&job.key.device, &job.request.command.writes)?));
        let Err(refusal) = checked else { return Ok(()) };
        let failure =
            WriteFailure { code: refusal.code.to_owned(), message: refusal.message, may_have_happened: false };
        let mut attempts = vec![Attempt::Failed(failure)];
        attempts.resize(job.writes.len(), Attempt::NotTried);
        Err(attempts)
    }

    fn begin_next(&mut self, device: &DeviceId, put: &mut Vec<LedgerEntry>) -> Option<Job> {
        let lane = self.lanes.get_mut(device)?;
        lane.running = None;
        let key = lane.queue.pop_front()?;
        lane.running = Some(key.clone());
        let entry = self.entries.get_mut(&key)?;
        entry.progress = Progress::Started;
        put.push(entry.clone());
        self.in_hand.get(&key).map(|w| w.job.clone())
    }

    /// The decision for a command that was here before.
    fn repeated(&mut self, key: &CommandKey, request: &CommandRequest, digest: u32, now: Stamp) -> Option<Decision> {
        let entry = self.entries.get(key)?;
        if entry.digest != digest {
            let refusal = refuse(
                "correlation-id-reused",
                "another command with this correlation id came before; choose a new id for each command",
            );
            return Some(self.refuse(key, request, &refusal, now));
        }
        match &entry.progress {
            Progress::Done(done) | Progress::Answered(done) => {
                Some(Decision::Answer(Box::new(Answer { result: done.clone(), audit: None })))
            }
            Progress::Queued | Progress::Started => {
                if let Some(waiting) = self.in_hand.get_mut(key) {
                    waiting.arrivals = (waiting.arrivals + 1).min(MAX_ARRIVALS);
                }
                Some(Decision::InHand)
            }
        }
    }

    fn accept(
        &mut self,
        key: &CommandKey,
        request: &CommandRequest,
        now: Stamp,
        fits: impl Fn(&PointId, &Value) -> Result<(), String>,
    ) -> Result<Vec<CheckedWrite>, Refusal> {
        check::expiry(request, now)?;
        let writes = check::writes(request, &self.devices, fits)?;
        let (queue, per_second) = (self.limits.queue, self.limits.per_second);
        let lane = self.lane(&key.device, now);
        if lane.queue.len() >= queue {
            return Err(refuse(
                "busy",
                format!("{queue} commands wait for this device already; send this one again later"),
            ));
        }
        if lane.tokens < 1.0 {
            return Err(refuse(
                "rate-limited",
                format!("a device takes {per_second} commands per second; send this one again later"),
            ));
        }
        lane.tokens -= 1.0;
        let command = &request.command;
        self.permits.check(now, &key.device, &request.actor, &command.writes, &command.confirmation)?;
        Ok(writes)
    }

    /// The lane of a device that is configured, its tokens refilled.
    fn lane(&mut self, device: &DeviceId, now: Stamp) -> &mut Lane {
        let full = f64::from(self.limits.per_second);
        let lane = self.lanes.entry(device.clone()).or_insert_with(|| Lane {
            queue: VecDeque::new(),
            running: None,
            remembered: VecDeque::new(),
            tokens: full,
            refilled_ns: now.mono_ns,
        });
        let seconds = now.mono_ns.saturating_sub(lane.refilled_ns) as f64 / 1e9;
        lane.tokens = (lane.tokens + seconds * full).min(full);
        lane.refilled_ns = now.mono_ns;
        lane
    }

    fn refuse(&mut self, key: &CommandKey, request: &CommandRequest, refusal: &Refusal, now: Stamp) -> Decision {
        let answer = result::refused(key, &request.command, refusal, now);
        let audit = self.refusals.pass(now).map(|skipped| {
            let note = if skipped == 0 {
                String::new()
            } else {
                format!("{skipped} refusals before this one are not in the log")
            };
            result::audited(&request.actor, Some(&request.command), &answer, &note, now)
        });
        Decision::Answer(Box::new(Answer { result: answer, audit }))
    }

    fn remember(&mut self, entry: LedgerEntry, now: Stamp) {
        self.weight += entry.weight();
        self.lane(&entry.key.device.clone(), now).remembered.push_back(entry.key.clone());
        self.entries.insert(entry.key.clone(), entry);
    }

    /// Forgets what is too old or too much; returns what to remove from the ledger.
    fn forget(&mut self, now: Stamp) -> Vec<CommandKey> {
        let mut forgotten = Vec::new();
        for lane in self.lanes.values_mut() {
            while let Some(key) = lane.remembered.front() {
                let age = self.entries.get(key).map_or(i64::MAX, |e| now.wall_ms.saturating_sub(e.accepted_ms));
                if age <= REMEMBERED_MS && lane.remembered.len() <= REMEMBERED {
                    break;
                }
                forgotten.extend(lane.remembered.pop_front());
            }
        }
        let mut freed = self.drop_entries(&forgotten);
        while self.weight > REMEMBERED_OCTETS {
            let Some(lane) = self.lanes.values_mut().max_by_key(|l| l.remembered.len()) else { break };
            let Some(key) = lane.remembered.pop_front() else { break };
            freed.extend(self.drop_entries(&[key]));
        }
        let devices = &self.devices;
        self.lanes.retain(|id, l| {
            devices.contains_key(id) || l.running.is_some() || !l.queue.is_empty() || !l.remembered.is_empty()
        });
        freed
    }

    fn drop_entries(&mut self, keys: &[CommandKey]) -> Vec<CommandKey> {
        for key in keys {
            if let Some(entry) = self.entries.remove(key) {
                self.weight = self.weight.saturating_sub(entry.weight());
            }
        }
        keys.to_vec()
    }
}
