//! When something happened, and how far that time can be trusted.

/// How far the wall clock could be trusted when a stamp was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum ClockTrust {
    /// Never synchronised since boot (no RTC, 1970): the wall time may be wrong by years.
    #[default]
    Unsynchronised,
    /// Plausible (RTC, or synchronised once) but not under discipline now.
    Holdover,
    /// Disciplined by NTP or PTP.
    Synchronised,
}

impl ClockTrust {
    /// All of them, the least first.
    pub const ALL: [ClockTrust; 3] = [ClockTrust::Unsynchronised, ClockTrust::Holdover, ClockTrust::Synchronised];

    /// Name in files.
    pub const fn as_str(self) -> &'static str {
        match self {
            ClockTrust::Unsynchronised => "unsynchronised",
            ClockTrust::Holdover => "holdover",
            ClockTrust::Synchronised => "synchronised",
        }
    }

    /// The trust of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|trust| trust.as_str() == name)
    }
}

/// A moment by the uptime of the machine, which no step of the wall clock changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Uptime {
    /// Which boot of the machine; 0 when that is unknown.
    pub boot: u32,
    /// Milliseconds since then.
    pub ms: u64,
}

impl Uptime {
    /// What is kept beside a stamp of this trust: nothing when the clock was right.
    pub fn unless_synchronised(self, trust: ClockTrust) -> Self {
        if trust == ClockTrust::Synchronised { Self::default() } else { self }
    }
}

/// How a stamp is to be changed that was taken before the clock was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Correction {
    /// To be added to the wall time.
    pub shift_ms: i64,
    /// Trust in the result.
    pub trust: ClockTrust,
}

/// A point in time on both clocks of the gateway.
///
/// Order and sequence never depend on `wall_ms`; intervals are measured on `mono_ns`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Milliseconds since 1970-01-01T00:00:00Z on the wall clock; may step both ways.
    pub wall_ms: i64,
    /// Nanoseconds since the process started on the monotonic clock; never steps.
    pub mono_ns: u64,
    /// The same moment by the uptime of the machine, which outlives the process.
    pub uptime: Uptime,
    /// Trust in `wall_ms` when it was read.
    pub trust: ClockTrust,
}
