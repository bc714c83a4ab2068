//! Configurations that a fleet manager deploys: versions of `config/desired` like any other, with their proof by values and
//! their way back.
//!
//! An order is recognised by its key in the words of the version, so that it is carried out once, whenever the gateway was
//! killed: asked again, the version that is there answers.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::contract::v1;
use crate::contract::v1::management_result::Outcome;
use crate::management::core::{Core, Request};
use crate::management::desired::{ConfigState, Target, Version};
use crate::management::request::{Actor, Ask, FieldError};
use crate::management::service::{Management, Stopped};
use crate::margo::plant::{Before, Refusal};
use crate::model::DeviceId;

/// Code of a version that was taken back.
pub(super) const NOT_PROVEN: &str = "health-gate";
/// How often a version in work is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// Settings up to this length are kept themselves, so that the way back does not depend on the history.
const KEPT_BYTES: usize = 12 * 1024;

/// What was in force before.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kept {
    /// The overlay.
    Settings(Value),
    /// Its number in the history.
    Version(u64),
}

/// Where the version of an order stands.
#[derive(Debug, PartialEq)]
enum Standing {
    Absent,
    /// The device is not polled now.
    Waiting,
    InWork,
    /// It is, or was, in force.
    Proven,
    RolledBack(Vec<FieldError>),
}

/// What is in force now.
pub(super) async fn before(management: &Management, device: &DeviceId) -> Result<Before, Refusal> {
    let target = Target::Device(device.clone());
    let version = management.look(move |core| core.desired().job(&target).map(|job| job.in_force.clone()));
    let kept = match version.await.map_err(stopping)? {
        None => Kept::Settings(Value::Object(serde_json::Map::new())),
        Some(version) if version.settings.to_string().len() <= KEPT_BYTES => Kept::Settings(version.settings),
        Some(version) => Kept::Version(version.version),
    };
    Ok(Before { token: serde_json::to_string(&kept).ok(), ..Before::default() })
}

/// Puts a document of `config/desired` in force and waits for its proof.
pub(super) async fn apply(
    management: &Management,
    key: &str,
    device: &DeviceId,
    actor: &str,
    document: Value,
) -> Result<(), Refusal> {
    let wanted: v1::DesiredConfig = serde_json::from_value(document).map_err(|error| {
        Refusal::new("invalid", format!("the configuration is no document of config/desired: {error}"))
    })?;
    if wanted.version != 0 || wanted.restore != 0 || !wanted.correlation_id.is_empty() {
        return Err(Refusal::new("invalid", "`version`, `restore` and `correlationId` have no place in a deployment"));
    }
    put(management, key, device, actor, wanted).await
}

/// Goes back to what was in force before.
pub(super) async fn undo(
    management: &Management,
    key: &str,
    device: &DeviceId,
    actor: &str,
    before: &Before,
) -> Result<(), Refusal> {
    let kept = before.token.as_deref().and_then(|token| serde_json::from_str(token).ok());
    let wanted = match kept {
        Some(Kept::Settings(settings)) => {
            let settings = serde_json::from_value(settings)
                .map_err(|error| Refusal::new("invalid", format!("the settings of before cannot be read: {error}")))?;
            v1::DesiredConfig { settings: Some(settings), ..v1::DesiredConfig::default() }
        }
        Some(Kept::Version(restore)) => v1::DesiredConfig { restore, ..v1::DesiredConfig::default() },
        None => return Err(Refusal::new("invalid", "it is not known what was in force before")),
    };
    put(management, key, device, actor, wanted).await
}

async fn put(
    management: &Management,
    key: &str,
    device: &DeviceId,
    actor: &str,
    mut wanted: v1::DesiredConfig,
) -> Result<(), Refusal> {
    let target = Target::Device(device.clone());
    wanted.comment = if wanted.comment.is_empty() { key.to_owned() } else { format!("{} ({key})", wanted.comment) };
    let comment = wanted.comment.clone();
    let look = async || {
        let (target, comment) = (target.clone(), comment.clone());
        management.look(move |core| standing(core, &target, &comment)).await.map_err(stopping)
    };
    if look().await? == Standing::Absent {
        let known = target.clone();
        let highest = management.look(move |core| core.desired().job(&known).map_or(0, |job| job.highest));
        wanted.version = highest.await.map_err(stopping)? + 1;
        key.clone_into(&mut wanted.correlation_id);
        let ask = Ask::Desire { target: target.clone(), document: wanted };
        let result = management.ask(Request { actor: Actor::named(actor), ask }).await.map_err(stopping)?;
        if result.outcome() != Outcome::Done {
            return Err(Refusal::new(&result.code, with_errors(result.message, &result.errors)));
        }
    }
    loop {
        match look().await? {
            Standing::Proven => return Ok(()),
            Standing::InWork => tokio::time::sleep(LOOK).await,
            Standing::Waiting => {
                let text = format!("{device} is not polled now; the configuration waits for it");
                return Err(Refusal { unreachable: true, ..Refusal::new("unreachable", text) });
            }
            Standing::RolledBack(errors) => {
                let why: Vec<String> = errors.iter().map(ToString::to_string).collect();
                let text = format!("not proven, what was in force before is in force again: {}", why.join("; "));
                return Err(Refusal::new(NOT_PROVEN, text));
            }
            Standing::Absent => {
                return Err(Refusal::new("superseded", "another version took its place before it was proven"));
            }
        }
    }
}

fn standing(core: &Core, target: &Target, comment: &str) -> Standing {
    let Some(job) = core.desired().job(target) else { return Standing::Absent };
    if job.in_force.comment == comment {
        return Standing::Proven;
    }
    let in_work = |version: &Option<Version>| version.as_ref().is_some_and(|version| version.comment == comment);
    if in_work(&job.candidate) {
        return if job.state == ConfigState::Waiting { Standing::Waiting } else { Standing::InWork };
    }
    if in_work(&job.queued) {
        return Standing::InWork;
    }
    let history = core.desired().history(target);
    match history.iter().rev().find(|version| version.comment == comment) {
        None => Standing::Absent,
        Some(version) if version.result == "rolled-back" => {
            let errors = (job.result_version == version.version).then(|| job.errors.clone());
            Standing::RolledBack(errors.unwrap_or_default())
        }
        Some(_) => Standing::Proven,
    }
}

fn with_errors(message: String, errors: &[v1::FieldError]) -> String {
    let errors = errors.iter().map(|error| format!("{}: {}", error.path, error.message));
    std::iter::once(message).chain(errors).collect::<Vec<_>>().join("; ")
}

fn stopping(_: Stopped) -> Refusal {
    Refusal { unreachable: true, ..Refusal::new("stopping", "the gateway is stopping") }
}
