//! The part of a session that does not depend on what carries it: what to send next, and what each confirmation means.
//!
//! Sans-IO: the shell feeds it records, board changes and confirmations with the time in milliseconds, and takes messages
//! out of its outbox. The outbox is bounded because the shell takes records in only while it is short.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use tokio::sync::watch;

use super::board::{Change, StateBoard};
use super::budget::Budget;
use super::config::ConsumerConfig;
use super::feed::Fed;
use super::health::{Meter, Notices, Severity};
use super::ledger::{Ack, Ledger, Token};
use super::message::{Message, Retain};
use super::publisher::{Directory, Publisher};
use super::requests::{Answer, Refused};
use super::{Context, GatewayInfo};
use crate::contract::{ContractMessage, Encoding, topics, v1};
use crate::model::{Delivery, Lane, Order, RecordKind};

/// Answers awaited for MQTT 5 response topics; the oldest is forgotten beyond that.
const ANSWERS: usize = 256;
/// Own gaps and refusals not confirmed; beyond that the oldest is given up, with a notice.
const KEPT: usize = 1024;
/// Topics given up; beyond that all of them are tried again.
const SHUNNED: usize = 64;
/// Records are taken in while the outbox holds fewer messages than this.
const OUTBOX_LOW: usize = 256;

/// What a message belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// A record; from the backlog or not.
    Record { token: Token, lane: Lane, seq: u64 },
    /// Something that is in no store but must arrive: a gap of this session's own, the answer to a request. It is sent
    /// again after a reconnection.
    Kept(u64),
    /// A state or a last value: whole boards of them are sent again after a reconnection anyway.
    Extra,
}

/// One message with what it belongs to.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) message: Message,
    pub(super) owner: Owner,
}

pub(super) struct Core {
    pub(super) config: ConsumerConfig,
    pub(super) notices: Notices,
    pub(super) meter: Meter,
    pub(super) drained: bool,
    /// Outside its window the link is open for the critical lane only; the rest stays unconfirmed in the store.
    pub(super) critical_only: bool,
    pub(super) session: u64,
    publisher: Publisher,
    ledger: Ledger,
    budget: Budget,
    outbox: VecDeque<Outgoing>,
    board: StateBoard,
    board_version: u64,
    directory: watch::Receiver<Arc<Directory>>,
    gateway: GatewayInfo,
    answers: VecDeque<Answer>,
    kept: VecDeque<(u64, Message)>,
    kept_next: u64,
    shunned: HashSet<Arc<str>>,
    scratch: Vec<Message>,
}

impl Core {
    pub(super) fn new(config: ConsumerConfig, context: &Context, meter: Meter) -> Self {
        let mut publisher = Publisher::new(&config);
        let mut directory = context.directory.clone();
        publisher.set_directory(directory.borrow_and_update().clone());
        publisher.set_clock_book(context.settings.clone());
        Self {
            notices: Notices::new(&config.name, context.notices.clone()),
            meter,
            drained: false,
            critical_only: false,
            session: 0,
            publisher,
            ledger: Ledger::new(config.resend_window.as_millis() as u64),
            budget: Budget::new(config.replay, 0),
            outbox: VecDeque::new(),
            board: context.board.clone(),
            board_version: 0,
            directory,
            gateway: context.gateway.clone(),
            answers: VecDeque::new(),
            kept: VecDeque::new(),
            kept_next: 0,
            shunned: HashSet::new(),
            scratch: Vec::new(),
            config,
        }
    }

    pub(super) fn begin_session(&mut self, now_ms: u64) {
        self.session += 1;
        self.drained = self.config.replay.order == Order::InOrder;
        self.ledger.begin_session();
        self.budget = Budget::new(self.config.replay, now_ms);
        self.outbox.clear();
        self.outbox.extend(
            self.kept.iter().map(|(id, message)| Outgoing { message: message.clone(), owner: Owner::Kept(*id) }),
        );
        self.board_version = 0;
    }

    /// The status message of this gateway for this consumer, as its retained topic or its will.
    pub(super) fn status(&self, state: v1::status::State, since_ms: i64) -> Message {
        let status = v1::Status {
            state: state.into(),
            version: self.gateway.version.clone(),
            epoch: self.gateway.epoch,
            since: Some(crate::contract::timestamp(since_ms)),
        };
        let message = self.publisher.message(topics::STATUS, &status, super::Qos::AtLeastOnce);
        Message { retain: Retain::Persisted, ..message }
    }

    /// Whether more records may be taken in.
    pub(super) fn has_room(&self) -> bool {
        self.outbox.len() < OUTBOX_LOW
    }

    pub(super) fn is_idle(&self) -> bool {
        self.outbox.is_empty() && self.ledger.open_records() == 0
    }

    pub(super) fn pop(&mut self) -> Option<Outgoing> {
        self.outbox.pop_front()
    }

    /// Queues a message that must arrive although no store has it.
    fn keep(&mut self, message: Message) {
        if self.kept.len() >= KEPT
            && let Some((_, old)) = self.kept.pop_front()
        {
            let text = format!("{}: too many gaps and answers wait for the broker; the oldest is given up", old.topic);
            self.notices.report(Severity::Alarm, "answer-lost", "", text);
        }
        self.kept_next += 1;
        self.kept.push_back((self.kept_next, message.clone()));
        self.outbox.push_back(Outgoing { message, owner: Owner::Kept(self.kept_next) });
    }

    fn keep_scratch(&mut self) {
        for message in std::mem::take(&mut self.scratch) {
            self.keep(message);
        }
    }

    fn forget(&mut self, id: u64) {
        self.kept.retain(|(kept, _)| *kept != id);
    }

    /// Takes in what the feed gave.
    pub(super) fn accept(&mut self, fed: Fed) {
        if self.directory.has_changed().unwrap_or(false) {
            self.publisher.set_directory(self.directory.borrow_and_update().clone());
        }
        match fed {
            Fed::Live(batch) => batch.iter().for_each(|delivery| self.deliver(delivery)),
            Fed::Backlog(batch) => {
                self.drained = false;
                let bytes = batch.iter().map(size_of).sum();
                self.budget.spend(batch.len(), bytes);
                batch.iter().for_each(|delivery| self.deliver(delivery));
                // The critical lane comes first; what follows is not for this connection.
                self.drained |= self.critical_only && batch.iter().any(|d| Ack::of(d).lane != Lane::Critical);
            }
            Fed::Drained => {
                self.drained = true;
                self.meter.replay_ends();
                self.publisher.held_points(&mut self.scratch);
                self.queue_extras();
            }
        }
    }

    fn deliver(&mut self, delivery: &Delivery) {
        let ack = Ack::of(delivery);
        if self.critical_only && ack.lane != Lane::Critical {
            return;
        }
        match self.publisher.delivery(delivery, &mut self.scratch) {
            Ok(()) => self.answer_requester(delivery),
            Err(error) => {
                self.meter.health.undeliverable += 1;
                self.notices.report(
                    Severity::Alarm,
                    "record-damaged",
                    "",
                    format!("{error}; it is lost for this consumer"),
                );
                self.publisher.undeliverable(&self.config.name, ack.lane, ack.first, "damaged", &mut self.scratch);
            }
        }
        let token = self.ledger.open(ack, self.scratch.len() as u32);
        let owner = Owner::Record { token, lane: ack.lane, seq: ack.first };
        self.outbox.extend(self.scratch.drain(..).map(|message| Outgoing { message, owner }));
    }

    fn queue_extras(&mut self) {
        self.outbox.extend(self.scratch.drain(..).map(|message| Outgoing { message, owner: Owner::Extra }));
    }

    /// Every last value again.
    pub(super) fn refill_points(&mut self) {
        self.publisher.all_points(&mut self.scratch);
        self.queue_extras();
    }

    /// Queues what changed on the board, everything in a new session.
    pub(super) fn take_board(&mut self) {
        if !self.config.publish.state {
            return;
        }
        let first = self.board_version == 0;
        let (changes, version) = self.board.changes(self.board_version);
        self.board_version = version;
        let queue: Vec<Outgoing> = changes.iter().map(|change| self.state(change)).collect();
        if first {
            // A subscriber wants to know the devices before their data.
            queue.into_iter().rev().for_each(|o| self.outbox.push_front(o));
        } else {
            self.outbox.extend(queue);
        }
    }

    fn state(&self, (topic, message): &Change) -> Outgoing {
        let payload = message.as_ref().map(|m| m.payload(self.config.encoding)).unwrap_or_default();
        let message = Message {
            topic: self.publisher.topic(topic),
            payload,
            qos: self.config.qos.state,
            retain: Retain::Persisted,
            correlation: None,
        };
        Outgoing { message, owner: Owner::Extra }
    }

    /// The broker confirmed a message that was sent `latency_ms` ago.
    pub(super) fn confirmed(&mut self, owner: Owner, latency_ms: f64, now_ms: u64) {
        self.budget.confirmed(latency_ms);
        match owner {
            Owner::Record { token, .. } => self.ledger.confirm(token, now_ms),
            Owner::Kept(id) => self.forget(id),
            Owner::Extra => {}
        }
    }

    /// A message cannot be delivered, ever: its record counts as lost for this consumer, which a gap and a notice say.
    pub(super) fn undeliverable(&mut self, owner: Owner, topic: &str, reason: &'static str, detail: &str, now_ms: u64) {
        if let Owner::Kept(id) = owner {
            self.forget(id);
        }
        let Owner::Record { token, lane, seq } = owner else {
            self.notices.report(Severity::Warning, "message-refused", topic, format!("{topic}: {detail}"));
            return;
        };
        self.meter.health.undeliverable += 1;
        let text = format!("{topic}: {detail}; record {} {seq} is lost for this consumer", lane.as_str());
        self.notices.report(Severity::Alarm, "record-undeliverable", topic, text);
        if !topic.ends_with("/gaps") {
            self.publisher.undeliverable(&self.config.name, lane, seq, reason, &mut self.scratch);
            self.keep_scratch();
        }
        self.ledger.confirm(token, now_ms);
    }

    /// A message that no broker connection survives: its whole record is given up, or its topic from now on.
    pub(super) fn give_up(&mut self, owner: Owner, topic: &Arc<str>, reason: &'static str, detail: &str, now_ms: u64) {
        match owner {
            Owner::Record { token, .. } => self.ledger.give_up(token),
            Owner::Kept(_) => {}
            Owner::Extra => {
                if self.shunned.len() >= SHUNNED {
                    self.shunned.clear();
                }
                self.shunned.insert(topic.clone());
            }
        }
        self.undeliverable(owner, topic, reason, detail, now_ms);
    }

    /// Whether a state or last value on this topic is not to be sent any more.
    pub(super) fn is_shunned(&self, topic: &str) -> bool {
        self.shunned.contains(topic)
    }

    pub(super) fn take_acks(&mut self, now_ms: u64) -> Vec<Ack> {
        self.ledger.take_ready(now_ms)
    }

    pub(super) fn has_acks(&self) -> bool {
        self.ledger.has_ready()
    }

    pub(super) fn confirmed_records(&self) -> u64 {
        self.ledger.confirmed()
    }

    /// Records of the backlog that may be taken in now, beyond those already `granted`.
    pub(super) fn grant(&mut self, granted: usize, now_ms: u64) -> usize {
        if self.drained || !self.has_room() { 0 } else { self.budget.allowance(now_ms).saturating_sub(granted) }
    }

    /// Remembers that the result of this request is also wanted on a response topic.
    pub(super) fn await_answer(&mut self, answer: Answer) {
        if answer.reply.is_some() {
            if self.answers.len() >= ANSWERS {
                self.answers.pop_front();
            }
            self.answers.push_back(answer);
        }
    }

    /// Sends a refusal on the result topic, and on the response topic if there is one.
    pub(super) fn refuse_request(&mut self, refused: &Refused, answer: Answer) {
        let code = match refused {
            Refused::Command(result) => result.code.as_str(),
            Refused::Management(result) => result.code.as_str(),
        };
        match code {
            "malformed" | "too-large" => self.meter.health.requests_malformed += 1,
            _ => self.meter.health.requests_refused += 1,
        }
        let qos = self.config.qos.results;
        let message = match refused {
            Refused::Command(result) => self.publisher.message(&answer.topic, &**result, qos),
            Refused::Management(result) => self.publisher.message(&answer.topic, &**result, qos),
        };
        let payload = message.payload.clone();
        self.keep(message);
        self.reply(answer, payload);
    }

    fn answer_requester(&mut self, delivery: &Delivery) {
        let Delivery::Record { record, .. } = delivery else { return };
        if self.answers.is_empty() {
            return;
        }
        let encoding = self.config.encoding;
        let (topic, id, payload) = match record.kind {
            RecordKind::CommandResult => {
                let Ok(result) = v1::CommandResult::decode_as(Encoding::Protobuf, &record.payload) else { return };
                let (topic, id) = (topics::command_result(&result.device), result.correlation_id.clone());
                (topic, id, v1::CommandResult { seq: record.seq, ..result }.encode_as(encoding))
            }
            RecordKind::ManagementResult => {
                let Ok(result) = v1::ManagementResult::decode_as(Encoding::Protobuf, &record.payload) else { return };
                let topic = topics::management_result(&result.action, &result.device);
                (topic, result.correlation_id.clone(), result.encode_as(encoding))
            }
            _ => return,
        };
        let wanted = |a: &Answer| a.topic == topic && a.correlation_id == id;
        let Some(answer) = self.answers.iter().position(wanted).and_then(|i| self.answers.remove(i)) else { return };
        self.reply(answer, payload);
    }

    fn reply(&mut self, answer: Answer, payload: bytes::Bytes) {
        let Some(reply) = answer.reply else { return };
        self.keep(Message {
            topic: reply.topic.into(),
            payload,
            qos: self.config.qos.results,
            retain: Retain::No,
            correlation: reply.correlation,
        });
    }
}

fn size_of(delivery: &Delivery) -> usize {
    match delivery {
        Delivery::Record { record, .. } => record.payload.len(),
        Delivery::Gap(_) => 64,
    }
}
