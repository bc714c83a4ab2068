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

/// A point in time on both clocks of the gateway.
///
/// Order and sequence never depend on `wall_ms`; intervals are measured on `mono_ns`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Milliseconds since 1970-01-01T00:00:00Z on the wall clock; may step both ways.
    pub wall_ms: i64,
    /// Nanoseconds since the process started on the monotonic clock; never steps.
    pub mono_ns: u64,
    /// Trust in `wall_ms` when it was read.
    pub trust: ClockTrust,
}
