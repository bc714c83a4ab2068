//! Moments at which work that can wait is done together.
//!
//! To wake a processor that sleeps costs many times what a timer's little work does, above all with the caches cold.
//! Whoever has no reason for a moment of its own takes a beat, so that a gateway with little to do wakes up few times.
//! Beats are counted from the first one that anybody in the process asked for. Nothing here makes anything earlier than
//! one beat before it was wanted, or later than one beat after.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// From one beat to the next.
pub const BEAT: Duration = Duration::from_millis(100);

/// The last beat before `at`.
pub fn before(at: Instant) -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    let origin = *ORIGIN.get_or_init(|| std::time::Instant::now().into());
    let part = |of: Duration| Duration::from_nanos((of.as_nanos() % BEAT.as_nanos()) as u64);
    match at.checked_duration_since(origin) {
        Some(since) => at - part(since),
        // The clock of a test may have begun earlier.
        None => at - part(BEAT - part(origin - at)),
    }
}

/// The last beat that is no later than `wait` from now; the next one, if that has passed.
pub fn after(wait: Duration) -> Instant {
    let now = Instant::now();
    let due = before(now + wait);
    if due > now { due } else { due + BEAT }
}

/// A time counted from any beat, put off to the next multiple of `grid`: a beat, or a part of one.
pub fn put_off(since_a_beat: Duration, grid: Duration) -> Duration {
    let grid = grid.max(Duration::from_nanos(1));
    let lines = since_a_beat.as_nanos().div_ceil(grid.as_nanos());
    u32::try_from(lines).map_or(since_a_beat, |lines| grid * lines)
}

/// Ticks at once and then every `period` on a beat (a whole number of beats); ticks that were missed are left out.
pub fn every(period: Duration) -> Interval {
    let mut ticks = interval_at(before(Instant::now()), period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_put_off_to_the_line_of_the_grid_that_it_is_or_that_follows() {
        let millis = Duration::from_millis;
        for (at, due) in [(0, 0), (1, 100), (100, 100), (101, 200), (86_400_050, 86_400_100)] {
            assert_eq!(put_off(millis(at), BEAT), millis(due));
        }
        assert_eq!(put_off(millis(101), millis(5)), millis(105));
        assert_eq!(put_off(millis(101), Duration::ZERO), millis(101));
        assert_eq!(put_off(Duration::MAX, BEAT), Duration::MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn everybody_waits_for_the_same_moments() {
        let beat = before(Instant::now());
        tokio::time::sleep(Duration::from_millis(33)).await;
        assert_eq!((before(beat), before(beat + BEAT - Duration::from_nanos(1))), (beat, beat));
        let (one, other) = (after(Duration::from_millis(500)), after(BEAT));
        assert_eq!((one - beat).as_nanos() % BEAT.as_nanos(), 0);
        assert_eq!((one - other).as_nanos() % BEAT.as_nanos(), 0);
        assert!(after(Duration::ZERO) > Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn an_interval_begins_at_once_and_keeps_to_the_beat_when_it_was_held_up() {
        let mut ticks = every(BEAT * 5);
        let begun = Instant::now();
        ticks.tick().await;
        assert_eq!(Instant::now(), begun);
        let first = ticks.tick().await;
        tokio::time::sleep(Duration::from_millis(1_234)).await;
        ticks.tick().await;
        let next = ticks.tick().await;
        assert_eq!(next - first, BEAT * 15);
        assert_eq!(before(next), next);
    }
}
