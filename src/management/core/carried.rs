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
    let busy = "firmware is not looked after at this moment; ask again";
    let message = outcome.unwrap_or_else(|| Err(Refusal::new("busy", busy)))?;
    // The parts of an upload are many, and say nothing that the offer and its end do not say.
    if ask.action() != "firmware-chunk" {
        step.audit(now, cause, ask.action(), target.to_string(), message.clone(), "done");
    }
    Ok(Done { message, ..Done::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::v1;
    use crate::management::core::{Input, Settings};
    use crate::management::desired::Watcher;
    use crate::management::journal::Records;
    use crate::management::lifecycle::Policy;
    use crate::management::request::Actor;
    use crate::management::roles::Role;
    use crate::management::step::Effect;
    use crate::model::{ClockTrust, GatewayId};

    const NOW: Stamp = Stamp {
        wall_ms: 1_000,
        mono_ns: 1,
        uptime: crate::model::Uptime { boot: 0, ms: 0 },
        trust: ClockTrust::Synchronised,
    };

    fn core() -> Core {
        let settings = Settings {
            gateway: GatewayId::new("plant").unwrap(),
            policy: Policy::default(),
            roles: vec![("mqtt:local:eve".to_owned(), Role::Viewer), ("mqtt:local:ada".to_owned(), Role::Engineer)],
            partners: Default::default(),
            signing_key: None,
            counters: Default::default(),
        };
        Core::load(&Records::default(), settings, Watcher::default()).unwrap()
    }

    fn request(who: &str, id: &str, target: Target, action: &str) -> Request {
        let request = v1::FirmwareRequest {
            correlation_id: id.to_owned(),
            action: action.to_owned(),
            ..v1::FirmwareRequest::default()
        };
        Request { actor: Actor::named(&format!("mqtt:local:{who}")), ask: Ask::Firmware { target, request } }
    }

    fn pump() -> Target {
        Target::Device(crate::model::DeviceId::new("pump").unwrap())
    }

    /// Codes of the answers, and how many audit entries were written.
    fn told(core: &mut Core, input: Input) -> (Vec<String>, usize) {
        let before = core.audit_outbox().count();
        let (_, effects) = core.handle(NOW, vec![input]).into_parts();
        let codes = effects.into_iter().filter_map(|effect| match effect {
            Effect::Answer(answer) => Some(answer.body.code),
            _ => None,
        });
        (codes.collect(), core.audit_outbox().count() - before)
    }

    fn carried(request: &Request, outcome: Result<String, Refusal>) -> Input {
        Input::Carried { request: Box::new(request.clone()), outcome }
    }

    #[test]
    fn an_outcome_is_answered_as_often_as_it_comes_and_written_down_once() {
        let mut core = core();
        let approve = request("ada", "a1", pump(), "approve");
        assert!(core.admits(&approve));
        let done = || carried(&approve, Ok("approved".to_owned()));
        assert_eq!(told(&mut core, done()), (vec![String::new()], 1));
        assert!(!core.admits(&approve), "it was answered");
        assert_eq!(told(&mut core, done()), (vec![String::new()], 0));
        assert_eq!(told(&mut core, Input::Request(Box::new(approve.clone()))), (vec![String::new()], 0));
        let other = request("ada", "a1", pump(), "abort");
        assert_eq!(told(&mut core, Input::Request(Box::new(other))).0, ["correlation-reused"]);
    }

    #[test]
    fn without_the_right_nothing_is_admitted_and_the_refusal_is_audited() {
        let mut core = core();
        for (who, target) in [("eve", pump()), ("nobody", pump()), ("ada", Target::Gateway)] {
            let asked = request(who, "r1", target, "approve");
            assert!(!core.admits(&asked), "{who}");
            let refused = (vec!["not-allowed".to_owned()], 1);
            assert_eq!(told(&mut core, Input::Request(Box::new(asked))), refused, "{who}");
        }
        let unknown = request("ada", "r2", pump(), "burn");
        assert!(!core.admits(&unknown));
        assert_eq!(told(&mut core, Input::Request(Box::new(unknown))).0, ["unknown-action"]);
        assert!(!core.admits(&request("ada", "", pump(), "approve")), "without a correlation id");
    }

    #[test]
    fn who_came_at_a_bad_time_may_come_again_with_the_same_request() {
        let mut core = core();
        let approve = request("ada", "a1", pump(), "approve");
        let busy = carried(&approve, Err(Refusal::new("busy", "later")));
        assert_eq!(told(&mut core, busy).0, ["busy"]);
        assert!(core.admits(&approve));
        assert_eq!(told(&mut core, carried(&approve, Ok(String::new()))).0, [""]);
    }
}
