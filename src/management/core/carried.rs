//! Requests that somebody else carries out: firmware. Here they are authorised, told apart, audited and answered.

use super::{Core, Done, Request};
use crate::management::desired::Target;
use crate::management::request::{Ask, Refusal, is_correlation_id};
use crate::management::step::{Cause, Step};
use crate::model::Stamp;

impl Core {
    /// Whether a request about firmware may be carried out: its sender may ask it, and it was not answered before. If not,
    /// the request itself goes in, and is answered.
    pub fn admits(&self, request: &Request) -> bool {
        let Request { actor, ask } = request;
        let correlation_id = ask.correlation_id().into_owned();
        let cause = Cause { actor: actor.name.clone(), from: actor.from.clone(), correlation_id };
        is_correlation_id(&cause.correlation_id)
            && self.authorise(actor, ask).is_ok()
            && self.answers.known(actor, &cause, ask).is_none()
    }
}

/// Writes down what came of a request. Without an outcome nobody carried it out, and its sender may ask again.
pub(super) fn carried_out(
    now: Stamp,
    target: &Target,
    ask: &Ask,
    cause: &Cause,
    outcome: Option<Result<String, Refusal>>,
    step: &mut Step,
) -> Result<Done, Refusal> {
    let busy = "firmware is not looked after at this moment; ask again under another correlation id";
    let message = outcome.unwrap_or_else(|| Err(Refusal::new("busy", busy)))?;
    // The parts of an upload are many, and say nothing that the offer and its end do not say.
    if ask.action() != "firmware-chunk" {
        step.audit(now, cause, ask.action(), target.to_string(), message.clone(), "done");
    }
    Ok(Done { message, ..Done::default() })
}
