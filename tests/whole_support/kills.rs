//! A story that is told while gateways are killed: which of them, and when.

use std::time::{Duration, UNIX_EPOCH};

use super::Gate;

/// Where and when gateways are killed: so many times, spread by a seed over the steps of the story.
pub struct Kills {
    state: u64,
    /// Moments of the year in thousandths of a step, falling, so that the next is at the end.
    moments: Vec<u64>,
    done: usize,
}

/// Longest time from the begin of a step to a kill in it.
const SPREAD: Duration = Duration::from_millis(1_500);

impl Kills {
    /// `count` moments in a story of `steps`.
    pub fn plan(seed: u64, count: usize, steps: usize) -> Self {
        let mut kills = Self { state: seed.max(1), moments: Vec::new(), done: 0 };
        let span = steps as u64 * 1_000;
        let mut moments: Vec<u64> = (0..count).map(|_| kills.next() % span).collect();
        moments.sort_unstable_by(|a, b| b.cmp(a));
        kills.moments = moments;
        kills
    }

    /// The seed that `FIELDGATE_SEED` names, else one from the time.
    pub fn seed() -> u64 {
        let given = std::env::var("FIELDGATE_SEED").ok().and_then(|seed| seed.parse().ok());
        given.unwrap_or_else(|| UNIX_EPOCH.elapsed().map_or(1, |time| time.as_nanos() as u64))
    }

    /// The kills of a step: which of `gates` gateways, and how long after the kill before.
    pub fn of_step(&mut self, step: usize, gates: usize) -> Vec<(usize, Duration)> {
        let end = (step as u64 + 1) * 1_000;
        let mut kills = Vec::new();
        let mut before = Duration::ZERO;
        while self.moments.last().is_some_and(|moment| *moment < end) {
            let moment = self.moments.pop().unwrap() % 1_000;
            let at = SPREAD.mul_f64(moment as f64 / 1_000.0);
            kills.push((self.next() as usize % gates, at.saturating_sub(before)));
            before = at;
        }
        self.done += kills.len();
        kills
    }

    /// Kills given out so far.
    pub fn done(&self) -> usize {
        self.done
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state >> 11
    }
}

/// A title and what happens in it.
pub type Chapter<S> = (&'static str, fn(&mut S));

/// Tells the chapters, while the planned kills happen to `gates`.
pub fn tell<S>(name: &str, story: &mut S, chapters: &[Chapter<S>], gates: &[Gate], kills: &mut Kills) {
    for (number, (title, chapter)) in chapters.iter().enumerate() {
        let planned = kills.of_step(number, gates.len());
        eprintln!("{name} {:>2}. {title}{}", number + 1, if planned.is_empty() { "" } else { ", with kills" });
        // The story goes on meanwhile.
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for (which, after) in planned {
                    std::thread::sleep(after);
                    gates[which].kill();
                }
            });
            chapter(story);
        });
    }
}
