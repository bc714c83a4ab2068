//! Answers and their lines in the audit log.

use super::check::Refusal;
use super::{CommandKey, WriteFailure};
use crate::contract::v1::command_result::Outcome;
use crate::contract::{Stamped, json_value, v1};
use crate::management::audit::{self, Deed};
use crate::model::{Stamp, Value};

/// How one write went.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Attempt {
    Done { read_back: Option<Value> },
    Failed(WriteFailure),
    NotTried,
}

/// A refusal: nothing was written.
pub(super) fn refused(key: &CommandKey, command: &v1::Command, refusal: &Refusal, at: Stamp) -> v1::CommandResult {
    let writes = refusal.write.and_then(|i| command.writes.get(i)).map(|write| v1::WriteResult {
        point: audit::printable(&write.point),
        requested: write.value.clone().filter(|v| !is_large(v)),
        read_back: None,
        outcome: Outcome::Rejected.into(),
        message: refusal.message.clone(),
    });
    v1::CommandResult {
        correlation_id: key.correlation_id.clone(),
        device: key.device.to_string(),
        outcome: match refusal.confirmation {
            Some(_) => Outcome::ConfirmationRequired.into(),
            None => Outcome::Rejected.into(),
        },
        confirmation: refusal.confirmation.clone().unwrap_or_default(),
        code: refusal.code.to_owned(),
        message: refusal.message.clone(),
        writes: writes.into_iter().collect(),
        ..v1::CommandResult::default()
    }
    .stamped(at)
}

/// A refusal does not send a large value back.
fn is_large(value: &pbjson_types::Value) -> bool {
    prost::Message::encoded_len(value) > 1_024
}

/// The result of a command that was tried. `attempts` are parallel to the writes of the command.
pub(super) fn tried(key: &CommandKey, command: &v1::Command, attempts: &[Attempt], at: Stamp) -> v1::CommandResult {
    let failure = attempts.iter().find_map(|a| match a {
        Attempt::Failed(failure) => Some(failure),
        _ => None,
    });
    let touched = attempts.iter().any(|a| match a {
        Attempt::Done { .. } => true,
        Attempt::Failed(failure) => failure.may_have_happened,
        Attempt::NotTried => false,
    });
    let outcome = match (failure, touched) {
        (None, _) => Outcome::Done,
        (Some(_), true) => Outcome::Failed,
        (Some(_), false) => Outcome::Rejected,
    };
    let writes = command.writes.iter().zip(attempts).map(|(write, attempt)| write_result(write, attempt));
    v1::CommandResult {
        correlation_id: key.correlation_id.clone(),
        device: key.device.to_string(),
        outcome: outcome.into(),
        code: failure.map_or_else(String::new, |f| f.code.clone()),
        message: failure.map_or_else(String::new, |f| f.message.clone()),
        writes: writes.collect(),
        ..v1::CommandResult::default()
    }
    .stamped(at)
}

fn write_result(write: &v1::Write, attempt: &Attempt) -> v1::WriteResult {
    let (outcome, message, read_back) = match attempt {
        Attempt::Done { read_back } => (Outcome::Done, String::new(), read_back.as_ref().map(json_value)),
        Attempt::Failed(f) => {
            let outcome = if f.may_have_happened { Outcome::Failed } else { Outcome::Rejected };
            (outcome, f.message.clone(), None)
        }
        Attempt::NotTried => (Outcome::Rejected, "not tried, because an earlier write failed".to_owned(), None),
    };
    v1::WriteResult {
        point: write.point.clone(),
        requested: write.value.clone(),
        read_back,
        outcome: outcome.into(),
        message,
    }
}

/// The answer to a command that a restart interrupted.
pub(super) fn interrupted(key: &CommandKey, started: bool, at: Stamp) -> v1::CommandResult {
    let (outcome, code, message) = if started {
        (
            Outcome::Failed,
            "outcome-unknown",
            "outcome unknown: the gateway restarted while writing; read the points before sending the command again",
        )
    } else {
        (
            Outcome::Rejected,
            "restarted",
            "the gateway restarted before anything was written; send the command again with another correlation id",
        )
    };
    v1::CommandResult {
        correlation_id: key.correlation_id.clone(),
        device: key.device.to_string(),
        outcome: outcome.into(),
        code: code.to_owned(),
        message: message.to_owned(),
        ..v1::CommandResult::default()
    }
    .stamped(at)
}

/// The line in the audit log for a result.
pub(super) fn audited(
    actor: &str,
    command: Option<&v1::Command>,
    result: &v1::CommandResult,
    note: &str,
    at: Stamp,
) -> v1::AuditEntry {
    let outcome = match (result.outcome(), result.code.as_str()) {
        (Outcome::Done, _) => "done".to_owned(),
        (Outcome::Rejected, code) => format!("rejected: {code}"),
        (Outcome::ConfirmationRequired, _) => "confirmation required".to_owned(),
        (Outcome::Failed | Outcome::Unspecified, code) => format!("failed: {code}"),
    };
    let points: Vec<_> = match command {
        Some(command) => command.writes.iter().take(super::check::MAX_WRITES).map(|w| w.point.as_str()).collect(),
        None => result.writes.iter().map(|w| w.point.as_str()).collect(),
    };
    let object = match points[..] {
        [one] => format!("devices/{}/points/{one}", result.device),
        _ => format!("devices/{}/points/{}", result.device, points.join(",")),
    };
    let mut detail: Vec<_> = result.writes.iter().map(shown).collect();
    detail.extend([&result.message, note].into_iter().filter(|t| !t.is_empty()).map(str::to_owned));
    let deed = Deed {
        actor,
        action: "write",
        object: &object,
        detail: &detail.join("; "),
        outcome: &outcome,
        correlation_id: &result.correlation_id,
    };
    audit::entry(at, &deed)
}

fn shown(write: &v1::WriteResult) -> String {
    let text = |v: &Option<pbjson_types::Value>| {
        v.as_ref().and_then(crate::contract::value_from_json).map_or_else(|| "?".to_owned(), |v| v.to_string())
    };
    match &write.read_back {
        Some(_) => format!("{} = {} (reads {})", write.point, text(&write.requested), text(&write.read_back)),
        None => format!("{} = {}", write.point, text(&write.requested)),
    }
}
