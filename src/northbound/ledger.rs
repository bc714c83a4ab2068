//! Which records are under way and which may be confirmed to the store. Pure.
//!
//! A record is confirmed when every one of its messages is. With a re-send window the confirmation is held back until it
//! is older than the window: should the connection break meanwhile, the store hands the record out again. Nothing else
//! is needed for a broker that confirms and then forgets, and a crash of the gateway keeps the promise too.

use std::collections::VecDeque;

use crate::model::{Delivery, Lane, Seq};

/// Names one record under way; grows by one with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Token(u64);

/// Records to confirm to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) lane: Lane,
    pub(super) first: Seq,
    pub(super) last: Seq,
}

impl Ack {
    pub(super) fn of(delivery: &Delivery) -> Self {
        match delivery {
            Delivery::Record { record, .. } => Self { lane: record.lane, first: record.seq, last: record.seq },
            Delivery::Gap(gap) => Self { lane: gap.lane, first: gap.from_seq, last: gap.to_seq },
        }
    }
}

#[derive(Debug)]
struct Entry {
    ack: Ack,
    messages: u32,
}

/// The records under way of one session.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Entries from token `base` on; finished ones at the front are dropped.
    entries: VecDeque<Entry>,
    base: u64,
    /// Confirmed and held back, oldest first, with the time of their confirmation in milliseconds.
    held: VecDeque<(u64, Ack)>,
    ready: Vec<Ack>,
    hold_ms: u64,
    open: usize,
    confirmed: u64,
}

impl Ledger {
    pub(super) fn new(hold_ms: u64) -> Self {
        Self { hold_ms, ..Self::default() }
    }

    /// Forgets what is under way: the store will hand it out again.
    pub(super) fn begin_session(&mut self) {
        self.base += self.entries.len() as u64;
        self.entries.clear();
        self.held.clear();
        self.ready.clear();
        self.open = 0;
    }

    /// A record that became `messages` messages; with none it is confirmed at once.
    pub(super) fn open(&mut self, ack: Ack, messages: u32) -> Token {
        let token = Token(self.base + self.entries.len() as u64);
        if messages == 0 {
            // Nothing was sent, so no broker can forget it.
            self.ready_now(ack);
        } else {
            self.open += 1;
        }
        self.entries.push_back(Entry { ack, messages });
        self.trim();
        token
    }

    /// One message of a record is confirmed.
    pub(super) fn confirm(&mut self, token: Token, now_ms: u64) {
        let Some(index) = token.0.checked_sub(self.base) else { return };
        let Some(entry) = self.entries.get_mut(index as usize) else { return };
        if entry.messages == 0 {
            return;
        }
        entry.messages -= 1;
        if entry.messages == 0 {
            let ack = entry.ack;
            self.open -= 1;
            self.confirmed += 1;
            if self.hold_ms == 0 { self.ready_now(ack) } else { self.hold(ack, now_ms) }
        }
        self.trim();
    }

    /// The record is confirmed with its next message, however many there are.
    pub(super) fn give_up(&mut self, token: Token) {
        let entry = token.0.checked_sub(self.base).and_then(|index| self.entries.get_mut(index as usize));
        if let Some(entry) = entry {
            entry.messages = entry.messages.min(1);
        }
    }

    /// What the store may be told now.
    pub(super) fn take_ready(&mut self, now_ms: u64) -> Vec<Ack> {
        while self.held.front().is_some_and(|(at, _)| now_ms.saturating_sub(*at) >= self.hold_ms) {
            let Some((_, ack)) = self.held.pop_front() else { break };
            self.ready_now(ack);
        }
        std::mem::take(&mut self.ready)
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Records with unconfirmed messages.
    pub(super) fn open_records(&self) -> usize {
        self.open
    }

    /// Records confirmed by the broker since start.
    pub(super) fn confirmed(&self) -> u64 {
        self.confirmed
    }

    /// Neighbours confirmed within a second share an entry, so that an hour's window stays small; they wait for the last.
    fn hold(&mut self, ack: Ack, now_ms: u64) {
        match self.held.back_mut() {
            Some((at, last)) if last.lane == ack.lane && last.last + 1 == ack.first && *at / 1000 == now_ms / 1000 => {
                (*at, last.last) = (now_ms, ack.last);
            }
            _ => self.held.push_back((now_ms, ack)),
        }
    }

    fn ready_now(&mut self, ack: Ack) {
        match self.ready.last_mut() {
            Some(last) if last.lane == ack.lane && last.last + 1 == ack.first => last.last = ack.last,
            _ => self.ready.push(ack),
        }
    }

    fn trim(&mut self) {
        while self.entries.front().is_some_and(|e| e.messages == 0) {
            self.entries.pop_front();
            self.base += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn ack(seq: Seq) -> Ack {
        Ack { lane: Lane::Bulk, first: seq, last: seq }
    }

    #[test]
    fn a_record_is_confirmed_with_its_last_message() {
        let mut ledger = Ledger::new(0);
        let token = ledger.open(ack(1), 2);
        ledger.confirm(token, 0);
        assert_eq!(ledger.take_ready(0), []);
        ledger.confirm(token, 0);
        assert_eq!(ledger.take_ready(0), [ack(1)]);
        ledger.confirm(token, 0);
        assert_eq!((ledger.confirmed(), ledger.open_records()), (1, 0));
        let token = ledger.open(ack(2), 5);
        ledger.give_up(token);
        ledger.confirm(token, 0);
        assert_eq!(ledger.take_ready(0), [ack(2)]);
    }

    #[test]
    fn a_resend_window_holds_confirmations_back() {
        let mut ledger = Ledger::new(1000);
        let token = ledger.open(ack(1), 1);
        ledger.confirm(token, 5_000);
        assert_eq!(ledger.take_ready(5_999), []);
        assert_eq!(ledger.take_ready(6_000), [ack(1)]);
        let token = ledger.open(ack(2), 1);
        ledger.confirm(token, 7_000);
        ledger.begin_session();
        assert_eq!(ledger.take_ready(99_000), []);
    }

    #[test]
    fn tokens_of_an_earlier_session_confirm_nothing() {
        let mut ledger = Ledger::new(0);
        let old = ledger.open(ack(1), 1);
        ledger.begin_session();
        ledger.open(ack(2), 1);
        ledger.confirm(old, 0);
        assert_eq!(ledger.take_ready(0), []);
    }

    proptest! {
        /// Whatever the order of confirmations, exactly the records whose messages are all confirmed are ready.
        #[test]
        fn agrees_with_a_naive_model(ops in proptest::collection::vec((any::<bool>(), 0..4u32, any::<prop::sample::Index>()), 1..60)) {
            let mut ledger = Ledger::new(0);
            let mut open: BTreeMap<Seq, (Token, u32)> = BTreeMap::new();
            let (mut expected, mut got) = (BTreeSet::new(), BTreeSet::new());
            for (seq, (add, messages, pick)) in ops.into_iter().enumerate() {
                let seq = seq as Seq + 1;
                if add || open.is_empty() {
                    let token = ledger.open(ack(seq), messages);
                    if messages == 0 { expected.insert(seq); } else { open.insert(seq, (token, messages)); }
                } else {
                    let key = *open.keys().nth(pick.index(open.len())).unwrap();
                    let (token, left) = open.get_mut(&key).unwrap();
                    ledger.confirm(*token, 0);
                    *left -= 1;
                    if *left == 0 { open.remove(&key); expected.insert(key); }
                }
                for a in ledger.take_ready(0) { got.extend(a.first..=a.last); }
                prop_assert_eq!(&got, &expected);
                prop_assert_eq!(ledger.open_records(), open.len());
            }
        }
    }
}
