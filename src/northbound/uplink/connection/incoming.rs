//! What comes in on a connection: requests and the broker's answer to our subscription.

use futures::FutureExt;

use super::Connection;
use crate::northbound::health::Severity;
use crate::northbound::message::Inbound;
use crate::northbound::requests::{Outcome, answer_of};
use crate::northbound::uplink::link::ToAck;

/// Requests handed over and not yet stored; more are not acknowledged until the broker delivers them again.
const RECEIPTS: usize = 256;

impl Connection<'_> {
    pub(super) fn request(&mut self, inbound: Inbound, message: ToAck) {
        if self.receipts.len() >= RECEIPTS {
            tracing::warn!(consumer = %self.up.core.config.name, "too many requests wait to be stored; the broker will deliver this one again");
            return;
        }
        match self.up.gate.receive(inbound) {
            Outcome::Handed { stored, answer } => {
                self.up.core.await_answer(answer);
                self.receipts.push(async move { stored.await.ok().map(|()| message) }.boxed());
            }
            Outcome::Refused { refused, answer, code, message: text } => {
                let device = answer.device.clone();
                self.up.core.refuse_request(&refused, answer);
                let text = format!("a request for {} was refused ({code}): {text}", answer_of(&device));
                self.up.core.notices.report(Severity::Warning, "request-refused", &device, text);
                if code != "stopping" {
                    self.client.acknowledge(&message);
                }
            }
            Outcome::Ignored => {
                self.client.acknowledge(&message);
            }
        }
    }

    pub(super) fn subscribed(&mut self, answers: &[Result<(), String>]) {
        self.up.subscribed = answers.iter().all(Result::is_ok);
        for (answer, filter) in answers.iter().zip(self.up.gate.filters()) {
            if let Err(reason) = answer {
                let text = format!(
                    "the broker refuses our subscription to {filter}: {reason}; requests cannot arrive from there"
                );
                self.up.core.meter.health.reason.clone_from(&text);
                self.up.core.notices.report(Severity::Alarm, "subscription-refused", &filter, text);
            }
        }
    }
}
