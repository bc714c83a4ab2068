//! Requests about firmware that came on a topic: authorised and told apart by device management, carried out at the desk, and
//! answered, audited and remembered by device management again.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tokio::task::JoinSet;

use super::{FirmwareDesk, GATEWAY, Question, Reply};
use crate::contract::Encoding;
use crate::contract::topics::{RequestTopic, Subject};
use crate::management::command::Receipt;
use crate::management::core::Request;
use crate::management::desired;
use crate::management::firmware::{Offer, Source};
use crate::management::request::{Actor, Ask, Refusal};
use crate::management::service::{Management, Stopped};

/// Requests that are carried out at a time; more of them are refused as `busy`, so that commands do not wait for them.
const AT_A_TIME: usize = 64;
/// Largest part of an upload, in octets.
const MAX_PART: usize = 512 * 1024;

/// What management itself refuses.
const UNKNOWN: &str = "unknown-action";
/// Longest address of an artifact.
const MAX_URL: usize = 2_048;

/// Whether a topic, relative to the root, brings requests about firmware.
pub fn is_about_firmware(topic: &str) -> bool {
    matches!(RequestTopic::parse(topic), Some(RequestTopic::Management(asked)) if asked.subject == Subject::Firmware)
}

/// Carries out requests in the order in which they came.
#[derive(Debug)]
pub struct FirmwareRequests {
    desk: FirmwareDesk,
    management: Management,
    waiting: JoinSet<()>,
}

impl FirmwareRequests {
    /// Requests go to this desk, and their outcome to management.
    pub fn new(desk: FirmwareDesk, management: Management) -> Self {
        Self { desk, management, waiting: JoinSet::new() }
    }

    /// Takes a message that came on a topic; `stored` is told once its outcome is durable.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn take(
        &mut self,
        actor: Actor,
        topic: &str,
        encoding: Encoding,
        payload: &Bytes,
        stored: Receipt,
    ) -> Result<(), Stopped> {
        while self.waiting.try_join_next().is_some() {}
        let Some(Ok(ask)) = Ask::parse(topic, encoding, payload) else {
            return self.management.request_stored(actor, topic, encoding, payload, stored).await.map(drop);
        };
        let question = question(&ask);
        if question.as_ref().is_err_and(|refusal| refusal.code == UNKNOWN) {
            return self.management.request_stored(actor, topic, encoding, payload, stored).await.map(drop);
        }
        let request = Request { actor, ask };
        let looked_at = request.clone();
        if !self.management.look(move |core| core.admits(&looked_at)).await? {
            return self.management.request_stored(request.actor, topic, encoding, payload, stored).await.map(drop);
        }
        let asked = match question {
            _ if self.waiting.len() >= AT_A_TIME => {
                Err(Refusal::new("busy", format!("{AT_A_TIME} requests about firmware are in hand; ask again")))
            }
            Ok(question) => self.desk.submit(question, &request.actor.name, false).await,
            Err(refusal) => Err(refusal),
        };
        let management = self.management.clone();
        self.waiting.spawn(async move {
            let outcome = match asked {
                // A gateway that stops in the middle of it does not accept the request: it comes again.
                Ok(answer) => match answer.await {
                    Ok(outcome) => outcome.map(|reply| words(&reply)),
                    Err(_) => return,
                },
                Err(refusal) => Err(refusal),
            };
            // As above.
            let _stopped = management.carried(request, outcome, stored).await;
        });
        Ok(())
    }
}

/// What is asked of the desk.
fn question(ask: &Ask) -> Result<Question, Refusal> {
    match ask {
        Ask::Offer { desired, .. } if desired.url.len() > MAX_URL => {
            Err(Refusal::new("invalid", format!("`url` has {} characters; at most {MAX_URL}", desired.url.len())))
        }
        Ask::Offer { target, desired } => {
            let source = if desired.url.is_empty() { Source::Upload } else { Source::Url(desired.url.clone()) };
            let offer = Offer {
                id: desired.correlation_id.clone(),
                manifest: desired.manifest.clone(),
                source,
                allow_downgrade: desired.allow_downgrade,
                in_window: desired.in_window,
            };
            Ok(Question::Offer { target: name(target)?, offer })
        }
        Ask::Firmware { target, request } => {
            let (target, id) = (name(target)?, request.job.clone());
            match request.action.as_str() {
                "chunk" if request.data.len() > MAX_PART => {
                    let text = format!("`data` has {} octets; a part has at most {MAX_PART}", request.data.len());
                    Err(Refusal::new("too-large", text))
                }
                "chunk" => {
                    Ok(Question::Chunk { target, id, offset: request.offset, data: STANDARD.encode(&request.data) })
                }
                action @ ("approve" | "abort") => Ok(Question::Decide { target, id, approve: action == "approve" }),
                _ => Err(Refusal::new(UNKNOWN, "`action` is approve, abort or chunk")),
            }
        }
        _ => Err(Refusal::new("invalid", "this is no request about firmware")),
    }
}

fn name(target: &desired::Target) -> Result<String, Refusal> {
    match target.device() {
        None => Ok(GATEWAY.to_owned()),
        Some(device) if device.as_str() == GATEWAY => {
            let text = "a device named gateway cannot be updated here: the name means the gateway itself";
            Err(Refusal::new("not-possible", text))
        }
        Some(device) => Ok(device.to_string()),
    }
}

fn words(reply: &Reply) -> String {
    match reply {
        Reply::Job(job) => format!("version {} for {} is {}", job.version, job.target, job.stage.as_str()),
        Reply::Next(offset) => format!("the next part begins at {offset}"),
        Reply::Jobs(jobs) => format!("{} jobs", jobs.len()),
    }
}
