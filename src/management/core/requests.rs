//! A request on its way through the core: allowed, not done before, done or refused, answered.

use serde_json::Value as Json;

use super::answers::Answer;
use super::carried::carried_out;
use super::{Core, Request, facts, may_manage, onboard};
use crate::contract::{Stamped, v1};
use crate::management::desired::{Reply, Target, Wanted};
use crate::management::request::{Actor, Ask, FieldError, Refusal, is_correlation_id};
use crate::management::roles::{Right, right_of};
use crate::management::step::{Cause, Effect, Step};
use crate::model::Stamp;

impl Core {
    pub(super) fn request(
        &mut self,
        now: Stamp,
        request: Request,
        carried: Option<Result<String, Refusal>>,
        step: &mut Step,
    ) {
        let Request { actor, ask } = request;
        let correlation_id = ask.correlation_id().into_owned();
        let cause = Cause { actor: actor.name.clone(), from: actor.from.clone(), correlation_id };
        if !is_correlation_id(&cause.correlation_id) {
            let text = "`correlation_id` must be 1 to 64 printable characters without spaces";
            return self.meter.malformed(now, &actor, &Refusal::new("invalid", text), step);
        }
        if let Err(refusal) = self.authorise(&actor, &ask) {
            self.meter.refused(now, &cause, &ask, &refusal, step);
            let body = result(now, &ask, &cause, Err(refusal));
            return step.act(Effect::Answer(Box::new(Answer::new(&actor, &cause, &ask, body))));
        }
        match self.answers.known(&actor, &cause, &ask) {
            Some(Ok(answer)) => {
                self.meter.replayed();
                return step.act(Effect::Answer(Box::new(answer)));
            }
            Some(Err(refusal)) => {
                self.meter.refused(now, &cause, &ask, &refusal, step);
                let body = result(now, &ask, &cause, Err(refusal));
                return step.act(Effect::Answer(Box::new(Answer::new(&actor, &cause, &ask, body))));
            }
            None => {}
        }
        let done = self.perform(now, &actor, &ask, &cause, carried, step);
        if let Err(refusal) = &done {
            self.meter.refused(now, &cause, &ask, refusal, step);
        }
        let answer = Answer::new(&actor, &cause, &ask, result(now, &ask, &cause, done));
        // Desired documents are retained: they come again with every connection, and the desk knows them by version. Who came
        // at a bad time may come again with the very same request.
        let untimely = matches!(answer.body.code.as_str(), "busy" | "stopping");
        if !untimely && !matches!(ask, Ask::Desire { .. }) {
            self.answers.keep(now, &answer, &ask, step);
        }
        step.act(Effect::Answer(Box::new(answer)));
    }

    pub(super) fn authorise(&self, actor: &Actor, ask: &Ask) -> Result<(), Refusal> {
        match ask {
            // A device may only speak of itself; without device credentials the token decides.
            Ask::Announce { device, .. } => match &actor.device {
                Some(own) if own != device => {
                    Err(Refusal::new("not-allowed", format!("{own} may only announce itself, not {device}")))
                }
                _ => Ok(()),
            },
            Ask::Desire { target: Target::Gateway, .. } => self.roles.check(actor, Right::Gateway),
            Ask::Desire { .. } => self.roles.check(actor, Right::Configure),
            Ask::Firmware { .. } if ask.action() == "firmware-request" => {
                Err(Refusal::new("unknown-action", "`action` is approve, abort or chunk"))
            }
            Ask::Offer { target: Target::Gateway, .. } | Ask::Firmware { target: Target::Gateway, .. } => {
                self.roles.check(actor, Right::Gateway)
            }
            Ask::Offer { .. } | Ask::Firmware { .. } => self.roles.check(actor, Right::Firmware),
            Ask::Manage { request, .. } if request.action == "claim" => Ok(()),
            Ask::Manage { request, .. } => match right_of(&request.action) {
                Some(right) => self.roles.check(actor, right),
                None => {
                    let action: String = request.action.chars().take(32).collect();
                    Err(Refusal::new("unknown-action", format!("`action` {action:?} is not known")))
                }
            },
        }
    }

    fn perform(
        &mut self,
        now: Stamp,
        actor: &Actor,
        ask: &Ask,
        cause: &Cause,
        carried: Option<Result<String, Refusal>>,
        step: &mut Step,
    ) -> Result<Done, Refusal> {
        match ask {
            Ask::Offer { target, .. } | Ask::Firmware { target, .. } => {
                carried_out(now, target, ask, cause, carried, step)
            }
            Ask::Announce { device, announcement } => {
                self.lifecycle.announce(now, device, actor, onboard::announced(announcement), cause, step)?;
                let state = self.lifecycle.device(device).map_or_else(String::new, |r| r.state.to_string());
                Ok(Done { message: format!("{device} is {state}"), ..Done::default() })
            }
            Ask::Desire { target, document } => self.desire(now, target, document, cause, step),
            Ask::Manage { device, request } => self.manage(now, actor, device.as_ref(), request, cause, step),
        }
    }

    pub(super) fn desire(
        &mut self,
        now: Stamp,
        target: &Target,
        document: &v1::DesiredConfig,
        cause: &Cause,
        step: &mut Step,
    ) -> Result<Done, Refusal> {
        let settings = serde_json::to_value(&document.settings).unwrap_or(Json::Null);
        let wanted = Wanted {
            version: document.version,
            settings: if document.restore == 0 { settings } else { Json::Object(serde_json::Map::new()) },
            restore: document.restore,
            prove_within: document.prove_within.clone(),
            comment: document.comment.clone(),
        };
        if let Some(device) = target.device() {
            let record = self.lifecycle.device(device).ok_or_else(|| Refusal::unknown_device(device))?;
            // A retained document comes again with every start, also when the device was handed over since: what was done
            // is answered so.
            if record.is_over() && self.desired.was_taken(target, &wanted) {
                return Ok(Done { message: format!("version {} was taken before", wanted.version), ..Done::default() });
            }
            if record.is_over() {
                return Err(Refusal::new("not-possible", format!("{device} is {}", record.state)));
            }
            if let Some(declaration) = self.lifecycle.declaration(device) {
                may_manage(declaration, "config")?;
            }
        }
        let known = facts(&self.lifecycle, &self.profiles, target);
        if target.device().is_some() && known.profile.is_none() {
            return Err(Refusal::new(
                "not-possible",
                format!("{target} has no points here, so nothing can be configured"),
            ));
        }
        let reply = self.desired.desired(now, target, wanted, known, &self.watcher, cause, step)?;
        let message = match reply {
            Reply::Accepted => format!("version {} is taken; see config/reported", document.version),
            Reply::Unchanged => format!("version {} was taken before", document.version),
        };
        Ok(Done { message, ..Done::default() })
    }
}

/// What a request gave.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Done {
    pub message: String,
    pub devices: Vec<String>,
    pub token: String,
    pub document: String,
}

fn result(now: Stamp, ask: &Ask, cause: &Cause, done: Result<Done, Refusal>) -> v1::ManagementResult {
    let base = v1::ManagementResult {
        correlation_id: cause.correlation_id.clone(),
        action: ask.action().chars().take(64).collect(),
        device: ask.device().map_or_else(String::new, |d| d.as_str().to_owned()),
        ..v1::ManagementResult::default()
    }
    .stamped(now);
    match done {
        Ok(done) => v1::ManagementResult {
            outcome: v1::management_result::Outcome::Done.into(),
            message: done.message,
            devices: done.devices,
            token: done.token,
            document: done.document,
            ..base
        },
        Err(refusal) => v1::ManagementResult {
            outcome: v1::management_result::Outcome::Rejected.into(),
            code: refusal.code.to_owned(),
            errors: refusal.errors.iter().map(FieldError::message).collect(),
            message: refusal.message,
            ..base
        },
    }
}
