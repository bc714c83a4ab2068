//! What the fleet manager knows and has seen. Tests and the page read it.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::deployment::Document;

/// Entries that are kept of each history.
const KEPT: usize = 20_000;

/// A call of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// `PUT` (older: also `POST`) of capabilities.
    Capabilities,
    /// `DELETE` of capabilities.
    Leave,
    /// `GET` of the manifest.
    Manifest,
    /// `GET` of a bundle.
    Bundle,
    /// `GET` of one YAML.
    Deployment,
    /// `POST` of a status.
    Status,
    /// Older: `POST` of a certificate.
    Onboarding,
    /// Older: `GET` of the server's certificate.
    Certificate,
    /// A TLS handshake that failed.
    Handshake,
    /// Anything else.
    Other,
}

/// A client.
#[derive(Debug, Clone, Serialize)]
pub struct Client {
    /// Its SPIFFE ID, or the id of its key (older interface).
    pub identity: String,
    /// SHA-256 of the certificate that it last showed.
    pub certificate: String,
    /// Number of the connection that it last used.
    pub connection: u64,
    /// Its requests.
    pub requests: u64,
    /// Whether the relationship is over.
    pub retired: bool,
    /// Version of its manifest now.
    pub manifest_version: u64,
    /// The newest version that it was given.
    pub given_version: u64,
}

/// A device as reported.
#[derive(Debug, Clone, Serialize)]
pub struct Device {
    /// Who reported it.
    pub client: String,
    /// The newest report.
    pub capabilities: Value,
    /// Time of the first report, ms since 1970.
    pub since_ms: u64,
    /// Time of the newest.
    pub at_ms: u64,
    /// How many.
    pub reports: u64,
}

/// A deployment as wanted.
#[derive(Debug, Clone, Serialize)]
pub struct Wanted {
    /// What is wanted.
    pub document: Document,
    /// Whether it is still wanted; if not, it is absent from the manifest.
    pub wanted: bool,
    /// Whose manifest it is in; none while nobody reported its target's first segment.
    pub client: Option<String>,
    /// How often its content was set.
    pub revision: u64,
    /// Names of the components of earlier contents: a status may still be about one of them.
    #[serde(skip)]
    pub earlier: Vec<Vec<String>>,
}

/// A manifest as it was given for the first time.
#[derive(Debug, Clone, Serialize)]
pub struct Given {
    /// To whom.
    pub client: String,
    /// Version as written there.
    pub version: u64,
    /// Ids of its deployments.
    pub deployments: Vec<String>,
    /// Time, ms since 1970.
    pub at_ms: u64,
    /// The faults in it.
    pub faults: Vec<String>,
}

/// A status as accepted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// Counts up, over all deployments.
    pub number: u64,
    /// Who reported it.
    pub client: String,
    /// Id of the deployment.
    pub deployment: String,
    /// The device, when it was named.
    pub device: Option<String>,
    /// `adoptedManifestVersion`.
    pub adopted: Option<u64>,
    /// Overall state.
    pub state: String,
    /// The body as sent.
    pub body: Value,
    /// Time, ms since 1970.
    pub at_ms: u64,
}

/// A request as it came, or a handshake that failed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Seen {
    /// Counts up.
    pub number: u64,
    /// Time, ms since 1970.
    pub at_ms: u64,
    /// Number of the connection.
    pub connection: u64,
    /// The client, when it is known.
    pub client: Option<String>,
    /// Which call.
    pub op: Op,
    /// HTTP method.
    pub method: String,
    /// Path.
    pub path: String,
    /// HTTP status of the answer, 0 for none.
    pub status: u16,
    /// `If-None-Match`, when it was sent.
    pub if_none_match: Option<String>,
    /// Bytes of the request's and the answer's body.
    pub bytes: (usize, usize),
    /// Faults of this request.
    pub faults: Vec<String>,
    /// What contradicts the reference: why it was refused, or what was let pass.
    pub notes: Vec<String>,
}

/// Everything.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Records {
    /// Clients by id.
    pub clients: BTreeMap<String, Client>,
    /// Devices by id.
    pub devices: BTreeMap<String, Device>,
    /// Deployments by id, those that are not wanted any more included.
    pub deployments: BTreeMap<String, Wanted>,
    /// Manifests, oldest first.
    pub manifests: VecDeque<Given>,
    /// Statuses, oldest first.
    pub statuses: VecDeque<Status>,
    /// Requests, oldest first.
    pub requests: VecDeque<Seen>,
    /// Number of requests by call and status, such as `status 201`.
    pub counts: BTreeMap<String, u64>,
    /// Number of handshakes that failed.
    pub handshakes_failed: u64,
}

impl Records {
    /// Newest status of a deployment, for one device; `None` asks for the one that names none.
    pub fn status(&self, deployment: &str, device: Option<&str>) -> Option<&Status> {
        self.statuses.iter().rev().find(|one| one.deployment == deployment && one.device.as_deref() == device)
    }

    /// Newest state of a deployment, whichever device it was reported for.
    pub fn state(&self, deployment: &str) -> Option<&str> {
        let newest = self.statuses.iter().rev().find(|one| one.deployment == deployment)?;
        Some(&newest.state)
    }

    /// Newest status of a deployment for each device that was named, in the order of the devices.
    pub fn latest(&self, deployment: &str) -> Vec<&Status> {
        let of_it = self.statuses.iter().filter(|one| one.deployment == deployment);
        let by_device: BTreeMap<_, _> = of_it.map(|one| (one.device.as_deref(), one)).collect();
        by_device.into_values().collect()
    }

    /// Ids of the devices of a client.
    pub fn devices_of<'a>(&'a self, client: &'a str) -> impl Iterator<Item = &'a str> {
        self.devices.iter().filter(move |(_, device)| device.client == client).map(|(id, _)| id.as_str())
    }

    /// Requests of one kind that are still in the log.
    pub fn requests_of(&self, op: Op) -> impl Iterator<Item = &Seen> {
        self.requests.iter().filter(move |seen| seen.op == op)
    }

    /// How many requests of that kind were answered with that status, since the start.
    pub fn count(&self, op: Op, status: u16) -> u64 {
        self.counts.get(&count_key(op, status)).copied().unwrap_or(0)
    }

    /// Everything in the log that contradicts the reference.
    pub fn notes(&self) -> Vec<String> {
        let noted = self.requests.iter().filter(|seen| !seen.notes.is_empty());
        noted.map(|seen| format!("{} {}: {}", seen.method, seen.path, seen.notes.join("; "))).collect()
    }

    pub(super) fn see(&mut self, seen: Seen) {
        *self.counts.entry(count_key(seen.op, seen.status)).or_default() += 1;
        push(&mut self.requests, seen);
    }

    pub(super) fn report(&mut self, status: Status) {
        push(&mut self.statuses, status);
    }

    pub(super) fn give(&mut self, given: Given) {
        push(&mut self.manifests, given);
    }
}

fn count_key(op: Op, status: u16) -> String {
    let op = serde_json::to_value(op).ok();
    format!("{} {status}", op.as_ref().and_then(Value::as_str).unwrap_or_default())
}

fn push<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.len() >= KEPT {
        queue.pop_front();
    }
    queue.push_back(item);
}
