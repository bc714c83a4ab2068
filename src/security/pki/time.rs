//! The time that certificates are checked against, for TLS: the wall clock, but never earlier than what was written down
//! by a trusted clock. Without it a gateway that boots in 1970 would refuse every client until NTP answers, and would
//! never reach the servers that it needs before that.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

use super::life::{Reading, read_clock};
use crate::platform::clock::SharedClock;

/// A [`TimeProvider`] for rustls that an unset clock does not fool. Clones share the floor.
#[derive(Debug, Clone)]
pub struct BelievedTime {
    clock: SharedClock,
    floor: Arc<AtomicI64>,
}

impl BelievedTime {
    /// Believes `clock`, but nothing before `floor` (Unix seconds; [`super::Book::floor`]) unless it is under discipline.
    pub fn new(clock: SharedClock, floor: i64) -> Self {
        Self { clock, floor: Arc::new(AtomicI64::new(floor)) }
    }

    /// Raises the floor; it never sinks.
    pub fn raise(&self, floor: i64) {
        self.floor.fetch_max(floor, Ordering::Relaxed);
    }

    /// The time now.
    pub fn reading(&self) -> Reading {
        read_clock(self.clock.now(), self.floor.load(Ordering::Relaxed))
    }
}

impl TimeProvider for BelievedTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.reading().seconds).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}
