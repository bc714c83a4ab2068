//! Messages with a time that may have to be mended once the clock is set: what stands beside that time is the same in all.

use crate::contract::{timestamp, v1};
use crate::model::{ClockTrust, Correction, Stamp, Uptime};

use super::mend::Correct;

/// A message that says when something happened.
pub trait Stamped: Sized {
    /// The message with this time: trust in it, and where that is needed the uptime that mends it.
    #[must_use]
    fn stamped(self, at: Stamp) -> Self {
        let trust = v1::ClockTrust::from(at.trust).into();
        self.at(at.wall_ms, trust, at.uptime.unless_synchronised(at.trust))
    }

    /// The same from its parts, as a message or a record of an earlier process has them.
    #[must_use]
    fn at(self, wall_ms: i64, clock: i32, uptime: Uptime) -> Self;

    /// Corrects its time; by how many milliseconds, if at all.
    fn mend(&mut self, by: Correct<'_>) -> Option<i64>;
}

macro_rules! stamped {
    ($($message:ident),*) => { $(
        impl Stamped for v1::$message {
            fn at(self, wall_ms: i64, clock: i32, uptime: Uptime) -> Self {
                Self { time: Some(timestamp(wall_ms)), clock, boot: uptime.boot, uptime_ms: uptime.ms, ..self }
            }

            fn mend(&mut self, by: Correct<'_>) -> Option<i64> {
                let time = self.time.as_ref().filter(|_| self.boot != 0 && !self.mended)?;
                let wall_ms = time.seconds.checked_mul(1_000)?.checked_add(i64::from(time.nanos) / 1_000_000)?;
                let uptime = Uptime { boot: self.boot, ms: self.uptime_ms };
                let Correction { shift_ms, trust } = by(uptime, wall_ms, trust(self.clock)?)?;
                super::mend::shift(&mut self.time, shift_ms);
                (self.clock, self.mended) = (v1::ClockTrust::from(trust).into(), true);
                Some(shift_ms)
            }
        }
    )* };
}

stamped!(Event, AuditEntry, CommandResult, ManagementResult);

/// The trust with this number in messages.
pub(super) fn trust(number: i32) -> Option<ClockTrust> {
    ClockTrust::ALL.into_iter().find(|trust| i32::from(v1::ClockTrust::from(*trust)) == number)
}
