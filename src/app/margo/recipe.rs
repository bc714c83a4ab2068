//! Recipes that a fleet manager deploys: commands like anybody's, with limits, interlocks, read-back and audit.
//!
//! The order's key is the correlation id, so that an order is carried out once, whenever the gateway was killed: asked again,
//! the ledger of commands answers.
//!
//! A recipe that fails half way is set back at once: what was written, or may have been, is written with the values of
//! before, last first, by a command of its own. If that fails, too, the refusal says which points hold what the recipe wrote.

use std::time::Duration;

use serde_json::Value;
use tokio::sync::broadcast;

use super::unreachable;
use crate::app::latest::Latest;
use crate::contract::v1;
use crate::contract::v1::command_result::Outcome;
use crate::management::command::{CommandRequest, CommandService, Receipt};
use crate::margo::component::PointValue;
use crate::margo::plant::{Before, Refusal};
use crate::model::DeviceId;

/// Longest wait for the answer of a command that was stored.
const PATIENCE: Duration = Duration::from_secs(300);
/// Writes that one command may have.
const MOST_WRITES: usize = 32;
/// The ledger's word for a command that a restart ended before anything was written.
const RESTARTED: &str = "restarted";
/// How often such a command is sent again.
const RESTARTS: usize = 16;

/// The ways to one device's points.
#[derive(Debug)]
pub(super) struct Ways<'a> {
    pub latest: &'a Latest,
    pub commands: &'a CommandService,
    pub answers: &'a broadcast::Sender<v1::CommandResult>,
    pub device: &'a DeviceId,
    /// Who writes, for the audit log.
    pub actor: &'a str,
}

impl Ways<'_> {
    /// The values of the points now. A point that is only written, or was never read, has none to go back to.
    pub(super) fn before(&self, values: &[PointValue]) -> Result<Before, Refusal> {
        if values.len() > MOST_WRITES {
            let text = format!(
                "the recipe writes {} points, one command of this gateway writes at most {MOST_WRITES}",
                values.len()
            );
            return Err(Refusal::new("too-many-writes", text));
        }
        self.latest.read(|table| {
            let view = table.get(self.device).ok_or_else(|| unreachable(self.device))?;
            let mut before = Before::default();
            for PointValue { point, .. } in values {
                let at = view.device.points.iter().position(|known| known.id.as_str() == point);
                let unknown = || Refusal::new("unknown-point", format!("{} has no point {point}", self.device));
                let sample = view.samples[at.ok_or_else(unknown)?].as_ref();
                let value = sample.and_then(|sample| sample.value.as_ref()).and_then(json);
                before.values.extend(value.map(|value| (point.clone(), value)));
            }
            Ok(before)
        })
    }

    /// Writes the values, all or, as far as the device lets us, none.
    pub(super) async fn apply(&self, key: &str, values: Vec<PointValue>, back: &Before) -> Result<(), Refusal> {
        let points: Vec<String> = values.iter().map(|value| value.point.clone()).collect();
        let result = self.write(key, values).await?;
        let Err(refusal) = outcome(&result) else { return Ok(()) };
        match result.outcome() {
            Outcome::Failed if refusal.unreachable => Err(refusal),
            Outcome::Failed => Err(self.set_back(key, &touched(&result, &points), back, refusal).await),
            _ => Err(Refusal { untouched: true, ..refusal }),
        }
    }

    /// Writes what was there before.
    pub(super) async fn undo(&self, key: &str, before: Before) -> Result<(), Refusal> {
        let values = before.values.into_iter().map(|(point, value)| PointValue { point, value }).collect();
        outcome(&self.write(key, values).await?)
    }

    /// Sets back what a failed recipe may have written; how it stands then.
    async fn set_back(&self, key: &str, touched: &[String], back: &Before, why: Refusal) -> Refusal {
        let known = |point: &&String| back.values.contains_key(*point);
        let (known, unknown): (Vec<&String>, Vec<&String>) = touched.iter().rev().partition(known);
        let value = |point: &String| PointValue { point: point.clone(), value: back.values[point].clone() };
        let undone = match self.write(&format!("{key}-back"), known.iter().copied().map(value).collect()).await {
            Ok(result) => outcome(&result),
            Err(refusal) => Err(refusal),
        };
        let mut message = why.message.clone();
        match &undone {
            Ok(()) if known.is_empty() => {}
            Ok(()) => message += &format!("; {} set back to the value of before", names(&known)),
            Err(error) => message += &format!("; {} may hold what the recipe wrote: {error}", names(&known)),
        }
        if !unknown.is_empty() {
            message += &format!("; {} cannot be set back, since no value of before is known", names(&unknown));
        }
        Refusal { message, untouched: undone.is_ok() && unknown.is_empty(), ..why }
    }

    /// The answer to a command. One that a restart ended before it wrote anything is sent again, under a key of its own.
    async fn write(&self, key: &str, values: Vec<PointValue>) -> Result<v1::CommandResult, Refusal> {
        if values.is_empty() {
            return Ok(v1::CommandResult { outcome: Outcome::Done.into(), ..v1::CommandResult::default() });
        }
        let mut result = self.send(key, &values).await?;
        for again in 1..=RESTARTS {
            if (result.outcome(), result.code.as_str()) != (Outcome::Rejected, RESTARTED) {
                break;
            }
            result = self.send(&format!("{key}-{again}"), &values).await?;
        }
        Ok(result)
    }

    async fn send(&self, key: &str, values: &[PointValue]) -> Result<v1::CommandResult, Refusal> {
        let write = |value: &PointValue| v1::Write { point: value.point.clone(), value: Some(proto(&value.value)) };
        let command = v1::Command {
            correlation_id: key.to_owned(),
            writes: values.iter().map(write).collect(),
            ..v1::Command::default()
        };
        let (device, actor) = (self.device.clone(), self.actor.to_owned());
        let mut answers = self.answers.subscribe();
        // What a fleet manager may ask is decided by `[margo]`, not by roles.
        let request = CommandRequest { device, command, actor, forbidden: None };
        let stopping = || Refusal { unreachable: true, ..Refusal::new("stopping", "the gateway is stopping") };
        self.commands.submit(request, Receipt::none()).await.map_err(|_| stopping())?;
        let answered = tokio::time::timeout(PATIENCE, async {
            loop {
                match answers.recv().await {
                    Ok(result) if result.correlation_id == key && result.device == self.device.as_str() => {
                        return Some(result);
                    }
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        });
        match answered.await {
            Ok(Some(result)) => Ok(result),
            Ok(None) => Err(stopping()),
            Err(_) => {
                let text = format!("{} gave no answer to the command within five minutes", self.device);
                Err(Refusal::new("no-answer", text))
            }
        }
    }
}

/// The points that a failed command wrote or may have written, in its order; all when it does not say.
fn touched(result: &v1::CommandResult, points: &[String]) -> Vec<String> {
    if result.writes.is_empty() {
        return points.to_vec();
    }
    let writes = result.writes.iter().filter(|write| matches!(write.outcome(), Outcome::Done | Outcome::Failed));
    writes.map(|write| write.point.clone()).collect()
}

fn names(points: &[&String]) -> String {
    points.iter().map(|point| point.as_str()).collect::<Vec<_>>().join(", ")
}

fn outcome(result: &v1::CommandResult) -> Result<(), Refusal> {
    match result.outcome() {
        Outcome::Done => Ok(()),
        Outcome::ConfirmationRequired => Err(Refusal::new(
            "confirmation-required",
            "a point of the recipe needs a person's confirmation, which a deployment cannot give",
        )),
        _ => {
            let code = if result.code.is_empty() { "failed" } else { &result.code };
            let unreachable = matches!(code, "timeout" | "offline" | "unreachable" | "link-down");
            Err(Refusal { unreachable, ..Refusal::new(code, result.message.clone()) })
        }
    }
}

/// A value of a point as a recipe writes it.
fn json(value: &crate::model::Value) -> Option<Value> {
    use crate::model::Value as V;
    Some(match value {
        V::Bool(bool) => (*bool).into(),
        V::Int(number) => (*number).into(),
        V::Uint(number) => (*number).into(),
        V::Float(number) => serde_json::Number::from_f64(f64::from(*number))?.into(),
        V::Double(number) => serde_json::Number::from_f64(*number)?.into(),
        V::Text(text) => text.as_ref().into(),
        V::Bytes(_) => return None,
    })
}

fn proto(value: &Value) -> pbjson_types::Value {
    use pbjson_types::value::Kind;
    let kind = match value {
        Value::Bool(bool) => Kind::BoolValue(*bool),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Null | Value::Array(_) | Value::Object(_) => Kind::NullValue(0),
    };
    pbjson_types::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_points_go_both_ways() {
        use crate::model::Value as V;
        for (value, wanted) in
            [(V::Bool(true), Value::from(true)), (V::Int(-3), Value::from(-3)), (V::Double(1.5), Value::from(1.5))]
        {
            assert_eq!(json(&value), Some(wanted));
        }
        assert_eq!(json(&V::Bytes(vec![1].into())), None);
        assert_eq!(proto(&Value::from(2)), pbjson_types::Value::from(2.0));
    }

    #[test]
    fn what_a_failed_command_does_not_say_may_have_been_written() {
        let points = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        assert_eq!(touched(&v1::CommandResult::default(), &points), points);
        let write = |point: &str, outcome: Outcome| v1::WriteResult {
            point: point.to_owned(),
            outcome: outcome.into(),
            ..v1::WriteResult::default()
        };
        let writes = vec![write("a", Outcome::Done), write("b", Outcome::Failed), write("c", Outcome::Rejected)];
        assert_eq!(touched(&v1::CommandResult { writes, ..v1::CommandResult::default() }, &points), ["a", "b"]);
    }
}
