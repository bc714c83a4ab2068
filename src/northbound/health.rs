//! What a consumer shows of itself.

use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant};

use std::collections::HashMap;

use super::schedule::Usage;
use crate::contract::v1;
use crate::model::Depth;

/// Health of one consumer, refreshed every second and on change.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ConsumerHealth {
    /// Name of the consumer.
    pub name: String,
    /// Whether messages can flow.
    pub connected: bool,
    /// Why not connected, or what is wrong while connected, in words; empty when all is well.
    pub reason: String,
    /// The broker of the current or last connection; empty for the local one.
    pub server: String,
    /// What is not confirmed yet.
    pub depth: Depth,
    /// Records confirmed since start.
    pub confirmed: u64,
    /// Records that this consumer will never get: evicted by the store, or given up here.
    pub lost: u64,
    /// The part of `lost` that was given up here: too large, refused by the broker, or damaged.
    pub undeliverable: u64,
    /// Records confirmed per second, smoothed over about 10 s.
    pub records_per_second: f64,
    /// While a backlog drains: the part done, 0 to 1.
    pub replay_progress: Option<f64>,
    /// While a backlog drains: estimated seconds to its end.
    pub replay_seconds_left: Option<f64>,
    /// Requests answered with a refusal here: malformed, retained, too large, busy.
    pub requests_refused: u64,
    /// Requests that could not be read or are too large.
    pub requests_malformed: u64,
    /// Connections made since start.
    pub connections: u64,
    /// Bytes sent today (UTC); hand it back at the next start of a metered link.
    pub usage: Usage,
}

impl ConsumerHealth {
    /// The contract's form; `now_ms` is the wall clock for the age of the oldest record.
    pub fn to_contract(&self, now_ms: i64) -> v1::ConsumerHealth {
        v1::ConsumerHealth {
            name: self.name.clone(),
            connected: self.connected,
            reason: self.reason.clone(),
            pending_records: self.depth.records,
            pending_bytes: self.depth.bytes,
            oldest_seconds: self.depth.oldest_ms.map_or(0.0, |ms| (now_ms - ms).max(0) as f64 / 1000.0),
            confirmed: self.confirmed,
            lost: self.lost,
            records_per_second: self.records_per_second,
            replay_progress: self.replay_progress.unwrap_or(0.0),
            replay_seconds_left: self.replay_seconds_left.unwrap_or(0.0),
        }
    }
}

/// How serious a notice is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Good to know.
    Info,
    /// Recovers by itself, or costs nothing yet.
    Warning,
    /// Data was lost or an operator must act.
    Alarm,
}

/// Something worth an event; the application appends it to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The consumer it is about.
    pub consumer: String,
    /// How serious.
    pub severity: Severity,
    /// Stable name, such as `uplink-connected`.
    pub kind: &'static str,
    /// What happened and what to do.
    pub message: String,
}

impl From<Severity> for v1::event::Severity {
    fn from(severity: Severity) -> Self {
        match severity {
            Severity::Info => v1::event::Severity::Info,
            Severity::Warning => v1::event::Severity::Warning,
            Severity::Alarm => v1::event::Severity::Alarm,
        }
    }
}

/// At most one notice of a kind and object in this time; the next one tells how many were left out.
const NOTICE_EVERY: Duration = Duration::from_secs(60);
/// Objects remembered; beyond that the memory starts afresh.
const NOTICES: usize = 1024;

/// Sends notices without flooding and without waiting: when the channel is full the notice stands in the log only.
#[derive(Debug)]
pub(super) struct Notices {
    consumer: String,
    out: mpsc::Sender<Notice>,
    sent: HashMap<(&'static str, String), (Instant, u64)>,
}

impl Notices {
    pub(super) fn new(consumer: &str, out: mpsc::Sender<Notice>) -> Self {
        Self { consumer: consumer.to_owned(), out, sent: HashMap::new() }
    }

    /// Reports; `object` is what the limit is counted on, such as a topic.
    pub(super) fn report(&mut self, severity: Severity, kind: &'static str, object: &str, mut message: String) {
        if self.sent.len() >= NOTICES {
            self.sent.clear();
        }
        let entry = self.sent.entry((kind, object.to_owned()));
        let now = Instant::now();
        match entry {
            std::collections::hash_map::Entry::Occupied(mut known) => {
                let (at, left_out) = known.get_mut();
                if now.duration_since(*at) < NOTICE_EVERY {
                    *left_out += 1;
                    return;
                }
                if *left_out > 0 {
                    message = format!("{message} ({left_out} more like this since the last notice)");
                }
                (*at, *left_out) = (now, 0);
            }
            std::collections::hash_map::Entry::Vacant(new) => {
                new.insert((now, 0));
            }
        }
        match severity {
            Severity::Alarm => tracing::error!(consumer = %self.consumer, kind, "{message}"),
            Severity::Warning => tracing::warn!(consumer = %self.consumer, kind, "{message}"),
            Severity::Info => tracing::info!(consumer = %self.consumer, kind, "{message}"),
        }
        let notice = Notice { consumer: self.consumer.clone(), severity, kind, message };
        if self.out.try_send(notice).is_err() {
            tracing::warn!(consumer = %self.consumer, kind, "the queue of events is full; the notice stands in this log only");
        }
    }
}

/// Keeps the health of one consumer.
#[derive(Debug)]
pub(super) struct Meter {
    pub(super) health: ConsumerHealth,
    out: watch::Sender<ConsumerHealth>,
    counted: u64,
    counted_at: Instant,
    /// Confirmed count when the backlog began to drain.
    replay: Option<u64>,
    /// So few records pending are those in flight.
    window: u64,
}

impl Meter {
    pub(super) fn new(name: &str, window: u16, usage: Usage) -> (Self, watch::Receiver<ConsumerHealth>) {
        let health =
            ConsumerHealth { name: name.to_owned(), reason: "starting".into(), usage, ..ConsumerHealth::default() };
        let (out, watch) = watch::channel(health.clone());
        (Self { health, out, counted: 0, counted_at: Instant::now(), replay: None, window: window.into() }, watch)
    }

    pub(super) fn connected(&mut self, server: String) {
        self.health.connected = true;
        self.health.reason.clear();
        self.health.server = server;
        self.health.connections += 1;
        self.publish();
    }

    pub(super) fn disconnected(&mut self, reason: String) {
        self.health.connected = false;
        self.health.reason = reason;
        self.replay = None;
        self.publish();
    }

    pub(super) fn replay_begins(&mut self) {
        self.replay = Some(self.health.confirmed);
    }

    pub(super) fn replay_ends(&mut self) {
        self.replay = None;
    }

    /// Takes the figures in; call about once a second.
    pub(super) fn refresh(&mut self, confirmed: u64, depth: Depth) {
        let passed = self.counted_at.elapsed().as_secs_f64();
        if passed >= 0.5 {
            let now = (confirmed - self.counted) as f64 / passed;
            let weight = (passed / 10.0).min(1.0);
            self.health.records_per_second += (now - self.health.records_per_second) * weight;
            (self.counted, self.counted_at) = (confirmed, Instant::now());
        }
        self.health.confirmed = confirmed;
        self.health.depth = depth;
        if depth.records <= self.window {
            self.replay = None;
        }
        self.health.lost = depth.lost + self.health.undeliverable;
        (self.health.replay_progress, self.health.replay_seconds_left) = self.progress(depth.records);
        self.publish();
    }

    /// What was pending at the begin and is not any more, and how long the rest takes at the present rate. Live records
    /// that come meanwhile count on both sides.
    fn progress(&self, left: u64) -> (Option<f64>, Option<f64>) {
        let Some(confirmed) = self.replay else { return (None, None) };
        let done = self.health.confirmed.saturating_sub(confirmed);
        let rate = self.health.records_per_second;
        let share = if done + left == 0 { 1.0 } else { done as f64 / (done + left) as f64 };
        (Some(share), (rate > 0.0).then(|| left as f64 / rate))
    }

    fn publish(&self) {
        self.out.send_if_modified(|shown| {
            let changed = *shown != self.health;
            if changed {
                *shown = self.health.clone();
            }
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn notices_of_one_kind_and_object_are_thinned_and_counted() {
        let (out, mut notices) = mpsc::channel(10);
        let mut sender = Notices::new("site", out);
        for _ in 0..5 {
            sender.report(Severity::Warning, "k", "a", "m".into());
        }
        sender.report(Severity::Warning, "k", "b", "m".into());
        tokio::time::advance(NOTICE_EVERY).await;
        sender.report(Severity::Warning, "k", "a", "m".into());
        let mut got = Vec::new();
        while let Ok(n) = notices.try_recv() {
            got.push(n.message);
        }
        assert_eq!(got, ["m", "m", "m (4 more like this since the last notice)"]);
    }

    #[tokio::test(start_paused = true)]
    async fn progress_and_estimate_follow_the_rate() {
        let (mut meter, watch) = Meter::new("site", 10, Usage::default());
        meter.connected("b".into());
        meter.replay_begins();
        for second in 1..=5u64 {
            tokio::time::advance(Duration::from_secs(1)).await;
            meter.refresh(second * 100, Depth { records: 1000 - second * 100, ..Depth::default() });
        }
        let health = watch.borrow().clone();
        assert_eq!(health.replay_progress, Some(0.5));
        let left = health.replay_seconds_left.unwrap();
        assert!(left > 5.0 && left < 20.0, "{left}");
        assert_eq!(health.to_contract(0).pending_records, 500);
    }
}
