//! Requests of clients: read from topics, checked, handed to management, or answered with a refusal.
//!
//! Promise: nothing that a client asks is dropped silently. What cannot be handed over (malformed, retained, too large,
//! the queue is full) is answered on the result topic at once and counted. A message that arrived with QoS 1 is
//! acknowledged to the broker only when management has stored it.

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::message::{Inbound, Sender};
use crate::contract::topics::{self, ManagementTopic, RequestTopic};
use crate::contract::{ContractMessage, Encoding, v1};
use crate::model::DeviceId;

/// Largest command in bytes.
pub const MAX_REQUEST: usize = 64 * 1024;
/// Largest request of device management in bytes: a document of a transfer holds devices with their history.
pub const MAX_MANAGEMENT: usize = 1024 * 1024;

/// Where a request came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The consumer whose session received it.
    pub consumer: String,
    /// Who sent it, as far as the carrier knows; an uplink's broker does not tell.
    pub sender: Sender,
}

impl Origin {
    /// The identity that roles are given to, such as `mqtt:local:operator1`; the uplink alone, such as `mqtt:site`, when its
    /// broker does not tell who asks.
    pub fn name(&self) -> String {
        match self.sender.name.as_str() {
            "" => format!("mqtt:{}", self.consumer),
            name => format!("mqtt:{}:{name}", self.consumer),
        }
    }

    /// The actor for the audit log, such as `mqtt:local:operator1@192.0.2.4`.
    pub fn actor(&self) -> String {
        match self.sender.address.as_str() {
            "" => self.name(),
            address => format!("{}@{address}", self.name()),
        }
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub enum RequestKind {
    /// Write points of a device.
    Command {
        /// The device.
        device: DeviceId,
        /// The command; its correlation id is not empty.
        command: v1::Command,
    },
    /// A request of device management, not read yet.
    Management {
        /// The topic, relative to the root.
        topic: String,
        /// How the payload is encoded.
        encoding: Encoding,
        /// The message.
        payload: Bytes,
    },
}

/// Tells the session that the request is stored, so that the broker may forget it.
#[derive(Debug)]
pub struct Receipt(oneshot::Sender<()>);

impl Receipt {
    /// A receipt and what waits for it.
    pub fn new() -> (Self, oneshot::Receiver<()>) {
        let (tx, rx) = oneshot::channel();
        (Self(tx), rx)
    }

    /// The request is stored (or was answered finally): never deliver it again. Dropping the receipt instead makes the
    /// broker deliver a QoS 1 request again after the next connection.
    pub fn accept(self) {
        // The connection may be gone: then the request comes again, and is done once by its correlation id.
        let _ = self.0.send(());
    }
}

/// A request on its way to management. Its answer is a record of the store (`CommandResult` or `ManagementResult`).
#[derive(Debug)]
pub struct Request {
    /// Where it came from.
    pub origin: Origin,
    /// What is asked.
    pub kind: RequestKind,
    /// To be accepted when stored.
    pub receipt: Receipt,
}

/// Where an MQTT 5 requester wants its answer too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReplyTo {
    pub(super) topic: String,
    pub(super) correlation: Option<Bytes>,
}

/// What became of an inbound message.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Handed over; the broker is told when `stored` resolves.
    Handed { stored: oneshot::Receiver<()>, answer: Answer },
    /// Refused: send this answer and acknowledge the message.
    Refused { refused: Refused, answer: Answer, code: &'static str, message: String },
    /// No request topic.
    Ignored,
}

/// The answer to a request that is not handed over.
#[derive(Debug)]
pub(super) enum Refused {
    Command(Box<v1::CommandResult>),
    Management(Box<v1::ManagementResult>),
}

/// Which result belongs to which MQTT 5 response topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// Topic of the result, relative to the root.
    pub(super) topic: String,
    /// Empty for the gateway.
    pub(super) device: String,
    pub(super) correlation_id: String,
    pub(super) reply: Option<ReplyTo>,
}

/// Checks requests of one consumer and hands them over.
#[derive(Debug)]
pub(super) struct Gate {
    consumer: String,
    root: String,
    out: mpsc::Sender<Request>,
}

impl Gate {
    pub(super) fn new(consumer: &str, root: &str, out: mpsc::Sender<Request>) -> Self {
        Self { consumer: consumer.to_owned(), root: root.to_owned(), out }
    }

    /// Subscriptions that bring every request.
    pub(super) fn filters(&self) -> Vec<String> {
        RequestTopic::FILTERS.iter().map(|f| format!("{}/{f}", self.root)).collect()
    }

    /// Reads one inbound message.
    pub(super) fn receive(&self, inbound: Inbound) -> Outcome {
        let relative = inbound.topic.strip_prefix(self.root.as_str()).and_then(|t| t.strip_prefix('/'));
        let reply = self.reply_to(&inbound);
        match relative.and_then(RequestTopic::parse) {
            None => Outcome::Ignored,
            Some(RequestTopic::Command(device)) => {
                let topic = topics::command_result(device.as_str());
                let answer = |correlation_id| Answer { topic, device: device.to_string(), correlation_id, reply };
                match read_command(&inbound) {
                    Ok(command) => {
                        let answer = answer(command.correlation_id.clone());
                        self.hand_over(RequestKind::Command { device, command }, inbound.sender, answer)
                    }
                    Err((code, message)) => refuse(answer(guess_correlation(&inbound.payload)), code, message),
                }
            }
            // A retained message was cleared: nothing is asked.
            Some(RequestTopic::Management(_)) if inbound.payload.is_empty() => Outcome::Ignored,
            Some(RequestTopic::Management(asked)) => self.manage(asked, inbound, reply),
        }
    }

    /// Device management reads the message itself; here only what must not get that far is refused.
    fn manage(&self, asked: ManagementTopic, inbound: Inbound, reply: Option<ReplyTo>) -> Outcome {
        let result = asked.result();
        let ManagementTopic { topic, device, is_desired, .. } = asked;
        let device = device.map_or_else(String::new, |d| d.to_string());
        let answer = |correlation_id| Answer { topic: result, device, correlation_id, reply };
        let length = inbound.payload.len();
        if length > MAX_MANAGEMENT {
            let text = format!("the request has {length} bytes; at most {MAX_MANAGEMENT} are read");
            return refuse(answer(String::new()), "too-large", text);
        }
        let correlation_id = guess_management_correlation(&inbound.payload);
        if inbound.retain && !is_desired {
            let text = "a request must not be retained: it would be done again; publish it without the retain flag";
            return refuse(answer(correlation_id), "retained", text.to_owned());
        }
        let kind = RequestKind::Management { topic, encoding: encoding_of(&inbound.payload), payload: inbound.payload };
        self.hand_over(kind, inbound.sender, answer(correlation_id))
    }

    fn hand_over(&self, kind: RequestKind, sender: Sender, answer: Answer) -> Outcome {
        let (receipt, stored) = Receipt::new();
        let origin = Origin { consumer: self.consumer.clone(), sender };
        match self.out.try_send(Request { origin, kind, receipt }) {
            Ok(()) => Outcome::Handed { stored, answer },
            Err(mpsc::error::TrySendError::Full(_)) => {
                let message = "the gateway has too many requests in hand; send this one again later".to_owned();
                refuse(answer, "busy", message)
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                refuse(answer, "stopping", "the gateway is stopping; send this again later".into())
            }
        }
    }

    /// The response topic, unless it could be used to write where only the gateway may: under its own root, under `$`,
    /// or a pattern.
    fn reply_to(&self, inbound: &Inbound) -> Option<ReplyTo> {
        let topic = inbound.response_topic.as_ref()?;
        let inside =
            topic.strip_prefix(self.root.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let legal = !topic.is_empty()
            && topic.len() <= 512
            && !topic.starts_with('$')
            && !topic.contains(['+', '#', '\0'])
            && !inside;
        legal.then(|| ReplyTo { topic: topic.clone(), correlation: inbound.correlation.clone() })
    }
}

/// What a request is about, in words.
pub(super) fn answer_of(device: &str) -> &str {
    if device.is_empty() { "the gateway" } else { device }
}

fn refuse(answer: Answer, code: &'static str, message: String) -> Outcome {
    let (correlation_id, device) = (answer.correlation_id.clone(), answer.device.clone());
    let (code_text, text) = (code.to_owned(), message.clone());
    let refused = if answer.topic.ends_with("/command/result") {
        Refused::Command(Box::new(v1::CommandResult {
            correlation_id,
            device,
            outcome: v1::command_result::Outcome::Rejected.into(),
            code: code_text,
            message: text,
            ..v1::CommandResult::default()
        }))
    } else {
        Refused::Management(Box::new(v1::ManagementResult {
            correlation_id,
            device,
            outcome: v1::management_result::Outcome::Rejected.into(),
            code: code_text,
            message: text,
            ..v1::ManagementResult::default()
        }))
    };
    Outcome::Refused { refused, answer, code, message }
}

/// JSON begins with a brace; no protobuf message of the contract can (field 15 with wire type 3).
fn encoding_of(payload: &[u8]) -> Encoding {
    match payload.iter().find(|b| !b.is_ascii_whitespace()) {
        Some(b'{') => Encoding::Json,
        _ => Encoding::Protobuf,
    }
}

fn read_command(inbound: &Inbound) -> Result<v1::Command, (&'static str, String)> {
    if inbound.payload.len() > MAX_REQUEST {
        return Err((
            "too-large",
            format!("the request has {} bytes; at most {MAX_REQUEST} are read", inbound.payload.len()),
        ));
    }
    if inbound.retain {
        return Err((
            "retained",
            "a command must not be retained: it would be done again; publish it without the retain flag".into(),
        ));
    }
    let command = v1::Command::decode_as(encoding_of(&inbound.payload), &inbound.payload)
        .map_err(|e| ("malformed", e.to_string()))?;
    match command.correlation_id.chars().count() {
        1..=64 => Ok(command),
        n => Err((
            "malformed",
            format!("correlationId has {n} characters; give 1 to 64 so that the answer can be told apart"),
        )),
    }
}

/// The correlation id of a request that could not be read, if it can be found, so that its sender recognises the answer.
fn guess_correlation(payload: &[u8]) -> String {
    if payload.len() > MAX_REQUEST {
        return String::new();
    }
    let id = match encoding_of(payload) {
        Encoding::Json => serde_json::from_slice::<serde_json::Value>(payload).ok().and_then(|v| {
            ["correlationId", "correlation_id"].iter().find_map(|k| v.get(k)?.as_str().map(str::to_owned))
        }),
        Encoding::Protobuf => v1::Command::decode_as(Encoding::Protobuf, payload).ok().map(|c| c.correlation_id),
    };
    id.filter(|id| id.chars().count() <= 64).unwrap_or_default()
}

/// The same for a request of device management: in all of its messages the id is a text, in protobuf the first or second
/// field. Large documents are not read twice for it.
fn guess_management_correlation(payload: &[u8]) -> String {
    if payload.len() > MAX_REQUEST {
        return String::new();
    }
    let id = match encoding_of(payload) {
        Encoding::Json => return guess_correlation(payload),
        Encoding::Protobuf => v1::ManagementRequest::decode_as(Encoding::Protobuf, payload).ok(),
    };
    id.map(|request| request.correlation_id).filter(|id| id.chars().count() <= 64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gate(capacity: usize) -> (Gate, mpsc::Receiver<Request>) {
        let (tx, rx) = mpsc::channel(capacity);
        (Gate::new("local", "r/x", tx), rx)
    }

    fn inbound(payload: impl Into<Bytes>) -> Inbound {
        Inbound {
            topic: "r/x/devices/pump/command".into(),
            payload: payload.into(),
            retain: false,
            sender: Sender { name: "anna".into(), ..Sender::default() },
            response_topic: None,
            correlation: None,
        }
    }

    const GOOD: &str = r#" {"correlationId":"c1","writes":[{"point":"setpoint","value":4.5}]}"#;

    fn code(outcome: Outcome) -> (&'static str, String) {
        match outcome {
            Outcome::Refused { answer, code, .. } => (code, answer.correlation_id),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn both_encodings_are_handed_over_and_acknowledged_when_stored() {
        let (gate, mut requests) = gate(4);
        let protobuf = v1::Command::decode_as(Encoding::Json, GOOD.as_bytes()).unwrap().encode_as(Encoding::Protobuf);
        for payload in [Bytes::from(GOOD), protobuf] {
            let Outcome::Handed { mut stored, answer } = gate.receive(inbound(payload)) else { panic!() };
            assert_eq!((answer.device.as_str(), answer.correlation_id.as_str()), ("pump", "c1"));
            let request = requests.recv().await.unwrap();
            assert_eq!(request.origin.actor(), "mqtt:local:anna");
            assert!(stored.try_recv().is_err());
            request.receipt.accept();
            stored.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_full_queue_is_an_answer_and_not_silence() {
        let (gate, _requests) = gate(1);
        assert!(matches!(gate.receive(inbound(GOOD)), Outcome::Handed { .. }));
        assert_eq!(code(gate.receive(inbound(GOOD))), ("busy", "c1".into()));
    }

    #[tokio::test]
    async fn bad_requests_are_refused_with_their_correlation_id_where_it_can_be_found() {
        let (gate, _requests) = gate(1);
        assert_eq!(code(gate.receive(Inbound { retain: true, ..inbound(GOOD) })), ("retained", "c1".into()));
        assert_eq!(code(gate.receive(inbound(r#"{"correlationId":"c2","write":[]}"#))), ("malformed", "c2".into()));
        assert_eq!(code(gate.receive(inbound("{"))), ("malformed", String::new()));
        assert_eq!(code(gate.receive(inbound(""))), ("malformed", String::new()));
        assert_eq!(code(gate.receive(inbound(vec![b' '; MAX_REQUEST + 1]))), ("too-large", String::new()));
        assert!(matches!(gate.receive(Inbound { topic: "r/x/status".into(), ..inbound(GOOD) }), Outcome::Ignored));
        assert!(matches!(
            gate.receive(Inbound { topic: "r/xy/devices/pump/command".into(), ..inbound(GOOD) }),
            Outcome::Ignored
        ));
    }

    #[tokio::test]
    async fn response_topics_cannot_reach_the_gateways_own() {
        let (gate, _requests) = gate(10);
        let reply = |topic: &str| gate.reply_to(&Inbound { response_topic: Some(topic.into()), ..inbound(GOOD) });
        assert!(reply("answers/me").is_some() && reply("r/xyz").is_some());
        for bad in ["", "r/x", "r/x/devices/fan/command", "$SYS/x", "a/+", "a/#"] {
            assert_eq!(reply(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_payload_is_handed_over_or_refused(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (gate, _requests) = gate(1);
            prop_assert!(!matches!(gate.receive(inbound(payload)), Outcome::Ignored));
        }
    }
}
