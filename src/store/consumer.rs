//! One reader of the log.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::error::Closed;
use super::inbox::{Control, Inbox};
use super::log::progress::{ConsumerShared, Item, Offer};
use super::log::tail::{Tail, Taken};
use crate::model::{Delivery, Depth, Lane, Order, Seq};

/// How long to wait before an unreadable place of the disk is tried again.
const READ_RETRY: Duration = Duration::from_millis(100);
/// Most records handed out at once, whatever is asked for.
const MAX_AT_ONCE: usize = 4096;

/// A registered consumer. It is used by one session at a time; dropping it keeps its place in the log.
#[derive(Debug)]
pub struct Consumer {
    shared: Arc<ConsumerShared>,
    tail: Arc<Tail>,
    inbox: Arc<Inbox>,
    order: Order,
    live_start: [Seq; 2],
    live_next: [Seq; 2],
    backlog_next: [Seq; 2],
}

impl Consumer {
    pub(crate) fn new(shared: Arc<ConsumerShared>, tail: Arc<Tail>, inbox: Arc<Inbox>) -> Self {
        let places = [0; 2];
        let mut consumer = Self {
            shared,
            tail,
            inbox,
            order: Order::LiveFirst,
            live_start: places,
            live_next: places,
            backlog_next: places,
        };
        consumer.begin_session(Order::LiveFirst);
        consumer
    }

    /// The name it is registered under.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Begins anew: everything that was handed out and not acknowledged is handed out again.
    ///
    /// When acknowledgements lie so scattered that the log can hardly keep track of them ([`Consumer::is_crowded`]), the
    /// session is in order whatever is asked for; that closes the holes.
    pub fn begin_session(&mut self, order: Order) {
        self.order = if self.shared.is_crowded() { Order::InOrder } else { order };
        for lane in Lane::ALL {
            let i = lane as usize;
            let first = self.shared.lanes()[i].next_open(1);
            self.live_start[i] = self.tail.next(lane);
            self.backlog_next[i] = first;
            self.live_next[i] = if self.order == Order::LiveFirst { self.live_start[i].max(first) } else { first };
        }
    }

    /// The order of this session.
    pub fn order(&self) -> Order {
        self.order
    }

    /// Whether sessions are in order for now; see [`Consumer::begin_session`].
    pub fn is_crowded(&self) -> bool {
        self.shared.is_crowded()
    }

    /// Waits for records: those appended since [`Consumer::begin_session`], or all from the cursor on in order. Critical
    /// ones come first. Cancel safe.
    ///
    /// # Errors
    /// The store is closed or the consumer was removed.
    pub async fn live(&mut self, max: usize) -> Result<Vec<Delivery>, Closed> {
        let max = max.clamp(1, MAX_AT_ONCE);
        let tail = self.tail.clone();
        loop {
            let mut changed = pin!(tail.changed.notified());
            changed.as_mut().enable();
            self.check_open()?;
            let (ready, behind) = self.take_live(max);
            if !ready.is_empty() {
                return Ok(ready);
            }
            let Some(lane) = behind else {
                changed.await;
                continue;
            };
            let (from, to) = (self.live_next[lane as usize], self.tail.next(lane));
            let (offers, next) = self.read(lane, from, to, max).await?;
            // Nothing is awaited between here and the return, so a cancelled call loses nothing.
            self.live_next[lane as usize] = next;
            if !offers.is_empty() {
                return Ok(self.deliver(lane, offers));
            }
            if next == from {
                tokio::time::sleep(READ_RETRY).await;
            }
        }
    }

    /// What the rings have, and the lane for which the log must be asked instead.
    fn take_live(&mut self, max: usize) -> (Vec<Delivery>, Option<Lane>) {
        let mut ready = Vec::new();
        for lane in Lane::ALL {
            let mut records = Vec::new();
            match self.tail.take(lane, self.live_next[lane as usize], max - ready.len(), &mut records) {
                Taken::Until(next) => self.live_next[lane as usize] = next,
                Taken::Nothing => continue,
                Taken::Elsewhere if ready.is_empty() => return (ready, Some(lane)),
                Taken::Elsewhere => return (ready, None),
            }
            let mut offers = Vec::with_capacity(records.len());
            for record in records {
                self.shared.offer(lane, Item::Record(record), &mut offers);
            }
            ready.extend(self.deliver(lane, offers));
            if ready.len() >= max {
                break;
            }
            if ready.is_empty() {
                // All of it was settled or internal: there may be more behind.
                return self.take_live(max);
            }
        }
        (ready, None)
    }

    /// Waits for older records that are not acknowledged, critical ones first, oldest first. Waits for ever when there
    /// are none, and in a session in order. Cancel safe.
    ///
    /// # Errors
    /// The store is closed or the consumer was removed.
    pub async fn backlog(&mut self, max: usize) -> Result<Vec<Delivery>, Closed> {
        let max = max.clamp(1, MAX_AT_ONCE);
        let tail = self.tail.clone();
        loop {
            let mut changed = pin!(tail.changed.notified());
            changed.as_mut().enable();
            self.check_open()?;
            let behind = Lane::ALL.into_iter().find(|&l| self.backlog_next[l as usize] < self.live_start[l as usize]);
            let Some(lane) = behind.filter(|_| self.order == Order::LiveFirst) else {
                changed.await;
                continue;
            };
            let (from, to) = (self.backlog_next[lane as usize], self.live_start[lane as usize]);
            let (offers, next) = self.read(lane, from, to, max).await?;
            self.backlog_next[lane as usize] = next;
            if !offers.is_empty() {
                return Ok(self.deliver(lane, offers));
            }
            if next == from {
                tokio::time::sleep(READ_RETRY).await;
            }
        }
    }

    async fn read(&self, lane: Lane, from: Seq, to: Seq, max: usize) -> Result<(Vec<Offer>, Seq), Closed> {
        let consumer = self.shared.clone();
        self.inbox.ask(|reply| Control::Read { consumer, lane, from, to, max, reply }).await
    }

    fn deliver(&self, lane: Lane, offers: Vec<Offer>) -> Vec<Delivery> {
        let start = self.live_start[lane as usize];
        let deliver = |offer| match offer {
            Offer::Record(record) => Delivery::Record { historical: record.seq < start, record },
            Offer::Gap(gap) => Delivery::Gap(gap),
        };
        offers.into_iter().map(deliver).collect()
    }

    fn check_open(&self) -> Result<(), Closed> {
        if self.shared.is_removed() || self.inbox.is_closed() { Err(Closed) } else { Ok(()) }
    }

    /// Acknowledges `first..=last` of a lane, in any order. Numbers that were not given out yet are ignored.
    pub fn ack(&self, lane: Lane, first: Seq, last: Seq) {
        let last = last.min(self.tail.next(lane) - 1);
        self.shared.lanes()[lane as usize].settle(first, last);
        self.inbox.acked((last + 1).saturating_sub(first));
    }

    /// How far behind. `records` and `lost` are exact, the rest is an estimate renewed twice a second.
    pub fn depth(&self) -> Depth {
        let mut depth = *self.shared.depth();
        (depth.records, depth.lost) = (0, 0);
        for lane in Lane::ALL {
            let last = self.tail.next(lane) - 1;
            let progress = &self.shared.lanes()[lane as usize];
            depth.records += progress.open_until(last);
            depth.lost += progress.lost_in_all();
        }
        if depth.records == 0 {
            (depth.bytes, depth.oldest_ms) = (0, None);
        }
        depth
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.shared.in_use.store(false, Ordering::Release);
    }
}
