//! Finds a message that makes the broker close the connection (too large for it, a topic it cannot stand). Pure.
//!
//! MQTT 3.1.1 has no way to refuse one message, so a broker closes the connection instead, and a faithful sender would
//! send the same message for ever while everything behind it waits. The first unconfirmed message of a connection that
//! the broker closed is the suspect. When it is the same one twice, messages go out one at a time; when it is the same
//! one five times although the broker confirmed others in each of these connections, it is given up, which a gap and an
//! alarm say. A network that breaks, a broker that is silent or refuses the connection accuses nobody.

use std::sync::Arc;

use crate::model::{Lane, Seq};

/// Closed connections after which messages go out one at a time.
const CAREFUL: u32 = 2;
/// Closed connections after which the message is given up.
const GUILTY: u32 = 5;

/// What stays the same of a message from one connection to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mark {
    Record(Lane, Seq),
    Topic(Arc<str>),
}

#[derive(Debug, Default)]
pub(super) struct Suspect {
    mark: Option<Mark>,
    times: u32,
}

impl Suspect {
    /// Messages that may be in flight in the next connection.
    pub(super) fn window(&self, normal: usize) -> usize {
        if self.times >= CAREFUL { 1 } else { normal }
    }

    /// The broker closed a connection in which it had confirmed something; `first` was the first message that it had
    /// not. True: give this message up.
    pub(super) fn closed(&mut self, first: Mark) -> bool {
        if self.mark.as_ref() == Some(&first) {
            self.times += 1;
        } else {
            (self.mark, self.times) = (Some(first), 1);
        }
        let guilty = self.times >= GUILTY;
        if guilty {
            self.clear();
        }
        guilty
    }

    /// Whether this message's confirmation clears the suspicion.
    pub(super) fn is(&self, mark: &Mark) -> bool {
        self.mark.as_ref() == Some(mark)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_message_again_and_again_is_given_up() {
        let mark = |seq| Mark::Record(Lane::Bulk, seq);
        let mut suspect = Suspect::default();
        assert!(!suspect.closed(mark(1)));
        assert_eq!(suspect.window(200), 200);
        assert!(!suspect.closed(mark(1)));
        assert_eq!(suspect.window(200), 1);
        assert!(!suspect.closed(mark(2)));
        assert_eq!(suspect.window(200), 200);
        let verdicts: Vec<_> = (0..4).map(|_| suspect.closed(mark(2))).collect();
        assert_eq!(verdicts, [false, false, false, true]);
        assert_eq!(suspect.window(200), 200);
    }
}
