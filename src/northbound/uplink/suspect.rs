//! Finds a message that makes the broker close the connection (too large for it, a topic it cannot stand). Pure.
//!
//! MQTT 3.1.1 has no way to refuse one message, so a broker closes the connection instead, and a faithful sender would
//! send the same message for ever while everything behind it waits. When the broker has closed two connections in a row,
//! what was on the wire is suspected, and messages go out one at a time until the broker has confirmed all of that: the
//! culprit is then alone on the wire, so that no lost confirmation throws the blame on another. A message with which the
//! broker closes the connection three times although nothing else was on the wire is given up, which a gap and an alarm
//! say. Only connections in which the broker had confirmed something count for that: one that confirmed nothing may be
//! a broker that is starting, or its confirmations were lost with the reset. A network that breaks, a broker that is
//! silent or refuses the connection accuses nobody.

use std::sync::Arc;

use crate::model::{Lane, Seq};

/// Closed connections in a row after which messages go out one at a time.
const CAREFUL: u32 = 2;
/// Connections closed with the same message alone on the wire after which it is given up.
const GUILTY: u32 = 3;

/// What stays the same of a message from one connection to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mark {
    Record(Lane, Seq),
    Topic(Arc<str>),
}

#[derive(Debug, Default)]
pub(super) struct Suspect {
    /// Connections that the broker closed since the last time that all was well.
    closures: u32,
    /// Messages among which the culprit must be; at most a window of them.
    suspects: Vec<Mark>,
    /// How often the broker closed with the same message alone on the wire.
    alone: Option<(Mark, u32)>,
}

impl Suspect {
    /// Messages that may be on the wire at once.
    pub(super) fn window(&self, normal: usize) -> usize {
        if self.closures >= CAREFUL { 1 } else { normal }
    }

    /// The broker closed a connection with these messages on the wire, the oldest first; `proved`: after it had confirmed
    /// something. True: give that one up.
    pub(super) fn closed(&mut self, on_wire: Vec<Mark>, proved: bool) -> bool {
        let Some(first) = on_wire.first().cloned() else { return false };
        self.closures += 1;
        if on_wire.len() > 1 {
            (self.suspects, self.alone) = (on_wire, None);
            return false;
        }
        if !proved {
            return false;
        }
        let times = self.alone.take().filter(|(mark, _)| *mark == first).map_or(1, |(_, times)| times + 1);
        if times >= GUILTY {
            self.clear();
            return true;
        }
        if self.suspects.is_empty() {
            self.suspects = on_wire;
        }
        self.alone = Some((first, times));
        false
    }

    /// The broker confirmed a message: it is innocent. True: so are all.
    pub(super) fn confirmed(&mut self, mark: &Mark) -> bool {
        if self.closures == 0 {
            return false;
        }
        self.alone.take_if(|(alone, _)| alone == mark);
        self.suspects.retain(|suspect| suspect != mark);
        let over = self.suspects.is_empty() && self.alone.is_none();
        if over {
            self.clear();
        }
        over
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NORMAL: usize = 4;

    fn mark(seq: Seq) -> Mark {
        Mark::Record(Lane::Bulk, seq)
    }

    fn marks(seqs: std::ops::Range<Seq>) -> Vec<Mark> {
        seqs.map(mark).collect()
    }

    #[test]
    fn a_message_is_given_up_when_it_alone_ended_three_connections() {
        let mut suspect = Suspect::default();
        assert!(!suspect.closed(marks(1..5), true));
        assert_eq!(suspect.window(NORMAL), NORMAL);
        assert!(!suspect.closed(marks(1..5), true));
        assert_eq!(suspect.window(NORMAL), 1);
        assert!(!suspect.confirmed(&mark(1)));
        let verdicts: Vec<_> = (0..3).map(|_| suspect.closed(marks(2..3), true)).collect();
        assert_eq!(verdicts, [false, false, true]);
        assert_eq!(suspect.window(NORMAL), NORMAL);
    }

    /// A reset takes confirmations with it: whoever is oldest then is not the one.
    #[test]
    fn a_message_among_others_is_never_given_up_and_one_that_is_confirmed_starts_anew() {
        let mut suspect = Suspect::default();
        for _ in 0..20 {
            assert!(!suspect.closed(marks(1..3), true));
        }
        for _ in 0..20 {
            assert!(!suspect.closed(marks(1..2), true));
            assert!(!suspect.closed(marks(1..2), true));
            suspect.confirmed(&mark(1));
        }
        assert!(!suspect.closed(Vec::new(), true));
    }

    #[test]
    fn a_connection_that_confirmed_nothing_calls_for_care_and_accuses_nobody() {
        let mut suspect = Suspect::default();
        suspect.closed(marks(1..5), false);
        suspect.closed(marks(1..5), false);
        assert_eq!(suspect.window(NORMAL), 1);
        for _ in 0..20 {
            assert!(!suspect.closed(marks(1..2), false));
        }
        for seq in 1..5 {
            suspect.confirmed(&mark(seq));
        }
        assert_eq!(suspect.window(NORMAL), NORMAL);
    }

    #[test]
    fn care_ends_when_all_that_were_on_the_wire_are_confirmed() {
        let mut suspect = Suspect::default();
        suspect.closed(marks(1..5), true);
        suspect.closed(marks(1..5), true);
        for seq in [7, 1, 2, 8, 3] {
            assert!(!suspect.confirmed(&mark(seq)));
            assert_eq!(suspect.window(NORMAL), 1);
        }
        assert!(suspect.confirmed(&mark(4)));
        assert_eq!(suspect.window(NORMAL), NORMAL);
    }
}
