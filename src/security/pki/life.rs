//! Time as certificates see it: validity, when to renew, and how far the clock may be believed. Pure.
//!
//! A gateway without a battery-backed clock boots in 1970, and a broken one may boot in 2099. Three rules keep that from
//! doing harm: an unset clock decides nothing; a clock below the newest trusted time we wrote down is not believed; and a
//! clock that jumped without being under discipline is watched for a quarter of an hour before anything is renewed.

use crate::model::{ClockTrust, Stamp};

/// 2024-01-01, in seconds: no real clock is earlier than this program.
pub(super) const EARLIEST: i64 = 1_704_067_200;
/// One day in seconds.
pub(super) const DAY: i64 = 86_400;
/// Certificates start this long before they are made: the clocks of devices are late.
pub(super) const BACKDATED: i64 = 3_600;
/// How far wall and monotonic time may drift apart between two looks before that counts as a jump, in seconds.
const JUMP: i64 = DAY;
/// How long a jump is watched, in nanoseconds.
const SETTLE_NS: u64 = 15 * 60 * 1_000_000_000;

/// From when to when something is valid: Unix seconds, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Validity {
    /// First valid second.
    pub not_before: i64,
    /// Last valid second.
    pub not_after: i64,
}

impl Validity {
    /// Length in seconds, at least 1.
    pub fn life(&self) -> i64 {
        self.not_after.saturating_sub(self.not_before).max(1)
    }

    /// What is left at `now`, as a share of the whole life: 1.0 before the start, 0.0 after the end.
    pub fn remaining(&self, now: i64) -> f64 {
        (self.not_after.saturating_sub(now) as f64 / self.life() as f64).clamp(0.0, 1.0)
    }

    /// The second at which `share` of the life is over.
    pub fn at(&self, share: f64) -> i64 {
        self.not_before.saturating_add((self.life() as f64 * share) as i64)
    }

    /// Whether `now` lies inside.
    pub fn contains(&self, now: i64) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }
}

/// The wall clock after a sanity check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Best guess of the time, in Unix seconds.
    pub seconds: i64,
    /// Whether decisions may be built on it.
    pub firm: bool,
}

/// Reads a stamp against `floor`, the newest trusted time that was ever written down here (Unix seconds).
pub fn read_clock(now: Stamp, floor: i64) -> Reading {
    let wall = now.wall_ms.div_euclid(1_000);
    let floor = floor.max(EARLIEST);
    match now.trust {
        ClockTrust::Synchronised => Reading { seconds: wall, firm: true },
        ClockTrust::Holdover if wall >= floor - DAY => Reading { seconds: wall, firm: true },
        ClockTrust::Holdover | ClockTrust::Unsynchronised => Reading { seconds: floor, firm: false },
    }
}

/// Watches for jumps of an undisciplined wall clock.
#[derive(Debug, Default)]
pub struct ClockGuard {
    last: Option<Stamp>,
    suspicious_until_ns: u64,
}

impl ClockGuard {
    /// Whether renewals may be decided on `now`. Call it regularly.
    pub fn settled(&mut self, now: Stamp) -> bool {
        if let Some(last) = self.last.replace(now) {
            let wall_s = (now.wall_ms - last.wall_ms) / 1_000;
            let mono_s = (now.mono_ns.saturating_sub(last.mono_ns) / 1_000_000_000) as i64;
            if (wall_s - mono_s).abs() > JUMP {
                self.suspicious_until_ns = now.mono_ns + SETTLE_NS;
            }
        }
        match now.trust {
            ClockTrust::Synchronised => true,
            ClockTrust::Holdover => now.mono_ns >= self.suspicious_until_ns,
            ClockTrust::Unsynchronised => false,
        }
    }
}

/// What to do about one certificate now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// Nothing before this Unix second.
    At(i64),
    /// Renew it now.
    Due,
    /// The clock cannot be believed: decide nothing.
    Hold,
}

/// The share of its life after which the certificate with this serial is renewed, inside `low..high`.
///
/// It is drawn from the serial, so a restart does not draw again and a thousand certificates made in one minute do not
/// come back in one minute.
pub fn renewal_share(serial: &[u8], low: f64, high: f64) -> f64 {
    let hash = ring::digest::digest(&ring::digest::SHA256, serial);
    let drawn = u32::from_be_bytes([hash.as_ref()[0], hash.as_ref()[1], hash.as_ref()[2], hash.as_ref()[3]]);
    low + (high - low) * (f64::from(drawn) / f64::from(u32::MAX))
}

/// Whether a certificate is to be renewed after `share` of its life. `provisional` ones, made while the clock was not
/// set, are renewed as soon as it is.
pub fn renewal(validity: Validity, share: f64, provisional: bool, now: Reading) -> Renewal {
    let due = validity.at(share);
    match now {
        Reading { firm: false, .. } => Renewal::Hold,
        _ if provisional => Renewal::Due,
        // Made by a clock that was ahead: peers with a right clock refuse it.
        Reading { seconds, .. } if seconds + DAY < validity.not_before => Renewal::Due,
        Reading { seconds, .. } if seconds >= due => Renewal::Due,
        _ => Renewal::At(due),
    }
}

/// Lets a limited number of renewals through: `burst` at once, then one per `every_ns`.
#[derive(Debug)]
pub struct Throttle {
    burst: u64,
    every_ns: u64,
    spent_until_ns: u64,
}

impl Throttle {
    /// A throttle on monotonic time.
    pub const fn new(burst: u64, every_ns: u64) -> Self {
        Self { burst, every_ns, spent_until_ns: 0 }
    }

    /// Takes one permit if there is one.
    pub fn take(&mut self, now: Stamp) -> bool {
        let spent = self.spent_until_ns.max(now.mono_ns);
        if spent - now.mono_ns > self.every_ns * (self.burst - 1) {
            return false;
        }
        self.spent_until_ns = spent + self.every_ns;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_790_000_000;
    const YEAR: Validity = Validity { not_before: NOW, not_after: NOW + 365 * DAY };

    fn stamp(wall_s: i64, mono_s: u64, trust: ClockTrust) -> Stamp {
        Stamp { wall_ms: wall_s * 1_000, mono_ns: mono_s * 1_000_000_000, uptime: Default::default(), trust }
    }

    #[test]
    fn an_unset_clock_decides_nothing_and_a_late_one_is_lifted_to_the_floor() {
        let unset = read_clock(stamp(0, 1, ClockTrust::Unsynchronised), NOW);
        assert_eq!(unset, Reading { seconds: NOW, firm: false });
        assert_eq!(renewal(YEAR, 0.6, true, unset), Renewal::Hold);
        let late = read_clock(stamp(NOW - 30 * DAY, 1, ClockTrust::Holdover), NOW);
        assert_eq!(late, Reading { seconds: NOW, firm: false });
        let disciplined = read_clock(stamp(NOW - 30 * DAY, 1, ClockTrust::Synchronised), NOW);
        assert_eq!(disciplined, Reading { seconds: NOW - 30 * DAY, firm: true });
    }

    #[test]
    fn a_jump_without_discipline_is_watched_and_one_under_discipline_is_believed() {
        let mut guard = ClockGuard::default();
        assert!(guard.settled(stamp(NOW, 10, ClockTrust::Holdover)));
        assert!(!guard.settled(stamp(NOW + 900 * DAY, 20, ClockTrust::Holdover)), "2099 for all we know");
        assert!(!guard.settled(stamp(NOW + 900 * DAY + 60, 80, ClockTrust::Holdover)));
        assert!(guard.settled(stamp(NOW + 900 * DAY + 70, 90, ClockTrust::Synchronised)));
        assert!(
            guard.settled(stamp(NOW + 900 * DAY + 1_000, 20 + 901, ClockTrust::Holdover)),
            "it stayed for 15 minutes"
        );
    }

    #[test]
    fn a_certificate_from_the_future_and_a_provisional_one_are_replaced() {
        let now = Reading { seconds: NOW - 400 * DAY, firm: true };
        assert_eq!(renewal(YEAR, 0.6, false, now), Renewal::Due);
        assert_eq!(renewal(YEAR, 0.6, true, Reading { seconds: NOW, firm: true }), Renewal::Due);
        assert_eq!(renewal(YEAR, 0.6, false, Reading { seconds: NOW, firm: true }), Renewal::At(YEAR.at(0.6)));
    }

    #[test]
    fn the_throttle_lets_a_burst_through_and_then_one_at_a_time() {
        let mut throttle = Throttle::new(3, 60_000_000_000);
        let granted = |throttle: &mut Throttle, second| throttle.take(stamp(NOW, second, ClockTrust::Synchronised));
        assert_eq!((0..10).filter(|_| granted(&mut throttle, 0)).count(), 3);
        assert!(!granted(&mut throttle, 59));
        assert!(granted(&mut throttle, 60));
        assert!(!granted(&mut throttle, 61));
    }

    proptest! {
        #[test]
        fn every_serial_draws_inside_the_window_and_always_the_same(serial in any::<[u8; 16]>()) {
            let share = renewal_share(&serial, 0.6, 0.7);
            prop_assert!((0.6..=0.7).contains(&share));
            prop_assert_eq!(share, renewal_share(&serial, 0.6, 0.7));
        }

        #[test]
        fn renewal_never_waits_past_the_end(before in 0i64..4_000_000_000, life in 1i64..700_000_000, now in 0i64..5_000_000_000, share in 0.0f64..1.0) {
            let validity = Validity { not_before: before, not_after: before + life };
            match renewal(validity, share, false, Reading { seconds: now, firm: true }) {
                Renewal::Due => prop_assert!(now >= validity.at(share) || now + DAY < before),
                Renewal::At(at) => prop_assert!(now < at && at <= validity.not_after),
                Renewal::Hold => prop_assert!(false, "the clock was firm"),
            }
        }
    }
}
