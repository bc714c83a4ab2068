//! The fleet manager without I/O: a request in, an answer out. Both generations end here; they differ in who the client
//! is, in the paths, and in a few fields.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::Method;
use serde_json::Value;

use super::deployment::Document;
use super::faults::{Fault, Script};
use super::library::Library;
use super::older::Onboarded;
use super::records::{Client, Op, Records, Seen, Wanted};
use super::{Generation, Options, older, problem};
use crate::margo::http::{Answer, Ask};
use crate::margo::schema::Problem;
use crate::margo::spiffe::check;
use crate::margo::tools::{hex, now_millis};

/// Everything that changes.
pub(super) struct Core {
    pub options: Options,
    pub records: Records,
    pub script: Script,
    pub libraries: BTreeMap<String, Library>,
    pub onboarded: BTreeMap<String, Onboarded>,
    pub server_certificate: String,
    seen: u64,
    pub statuses: u64,
}

/// A request that is understood: which call of whom, about what.
pub(super) struct Call<'a> {
    pub op: Op,
    pub client: String,
    pub ask: &'a Ask,
    /// What follows the call's name: a device id, a digest, a deployment and a digest.
    pub rest: &'a str,
    /// What URLs in a manifest start with.
    pub base: String,
    /// What contradicts the reference.
    pub notes: Vec<String>,
}

/// A request that is not.
pub(super) struct Refusal {
    pub answer: Answer,
    pub why: String,
}

impl Core {
    pub fn new(options: Options, server_certificate: String) -> Self {
        Self {
            options,
            records: Records::default(),
            script: Script::default(),
            libraries: BTreeMap::new(),
            onboarded: BTreeMap::new(),
            server_certificate,
            seen: 0,
            statuses: 0,
        }
    }

    pub fn answer(&mut self, ask: &Ask) -> Answer {
        let path = ask.path.strip_prefix(self.options.prefix.as_str()).filter(|rest| rest.starts_with('/'));
        let Some(path) = path else {
            let answer = Answer::with(404, "text/plain", "nothing here");
            self.log(ask, Op::Other, None, &answer, &[], vec!["the path prefix is missing".to_owned()]);
            return answer;
        };
        let identified = match self.options.generation {
            Generation::Rc3 => {
                let rest = path.strip_prefix("/api/v1").unwrap_or_default();
                self.identify(ask).map(|client| (client, rest, "/api/v1".to_owned()))
            }
            Generation::Older => match older::identify(self, ask, path) {
                Ok(older::Entry::Client { client, rest }) => {
                    let base = format!("/api/v1/clients/{client}");
                    Ok((client, rest, base))
                }
                Ok(older::Entry::Done { op, answer }) => {
                    return self.finish(ask, op, None, answer, Vec::new());
                }
                Err(refusal) => Err(refusal),
            },
        };
        let (client, path, base) = match identified {
            Ok(identified) => identified,
            Err(refusal) => {
                self.log(ask, Op::Other, None, &refusal.answer, &[], vec![refusal.why]);
                return refusal.answer;
            }
        };
        let Some((op, rest)) = self.route(&ask.method, path) else {
            let answer = self.refuse(404, "invalid-request", "no such call", &[]);
            self.log(ask, Op::Other, Some(&client), &answer, &[], vec!["no such call".to_owned()]);
            return answer;
        };
        self.call(Call { op, client, ask, rest, base, notes: Vec::new() })
    }

    fn call(&mut self, mut call: Call<'_>) -> Answer {
        let faults = self.script.take(call.op, &call.client, &call.ask.path);
        let instead = faults.iter().find_map(|fault| problem::scripted(fault, self.options.type_root));
        let ends = faults.iter().any(|fault| matches!(fault, Fault::HangUp | Fault::Reset));
        let retired = self.records.clients.get(&call.client).is_some_and(|client| client.retired);
        let answer = if ends {
            Answer::new(0)
        } else if let Some(instead) = instead {
            instead
        } else if retired {
            problem::retired(self.options.type_root)
        } else {
            match call.op {
                Op::Capabilities => self.put_capabilities(&mut call),
                Op::Leave => self.delete_capabilities(&mut call),
                Op::Manifest => self.manifest(&mut call, &faults),
                Op::Bundle | Op::Deployment => self.artifact(&call),
                _ => self.status(&mut call),
            }
        };
        let Call { ask, op, client, notes, .. } = call;
        let answer = manner(answer, &faults);
        self.log(ask, op, Some(&client), &answer, &faults, notes);
        answer
    }

    /// For calls that need no client.
    fn finish(&mut self, ask: &Ask, op: Op, client: Option<&str>, answer: Answer, notes: Vec<String>) -> Answer {
        let faults = self.script.take(op, client.unwrap_or_default(), &ask.path);
        let instead = faults.iter().find_map(|fault| problem::scripted(fault, self.options.type_root));
        let answer = manner(instead.unwrap_or(answer), &faults);
        self.log(ask, op, client, &answer, &faults, notes);
        answer
    }

    /// The client is its SPIFFE ID.
    fn identify(&mut self, ask: &Ask) -> Result<String, Refusal> {
        let not_ours = |core: &Self, why: String| Refusal {
            answer: core.refuse(403, "not-authorized", &why, &[]),
            why: why.clone(),
        };
        let authority = self.options.authority.clone();
        let found = check::spiffe_id(ask.certificate.as_deref().unwrap_or_default(), authority.trust_domain());
        let id = found.map_err(|why| not_ours(self, why))?;
        let Some(client) = check::client_of(&id, &authority.wfm_id(&self.options.wfm)) else {
            return Err(not_ours(self, format!("{id} is no client of this WFM")));
        };
        if !self.options.clients.is_empty() && !self.options.clients.iter().any(|known| known == client) {
            return Err(not_ours(self, format!("the client {client} is not known here")));
        }
        let client = client.to_owned();
        self.meet(&client, &id, ask);
        Ok(client)
    }

    pub fn meet(&mut self, client: &str, identity: &str, ask: &Ask) {
        let first = self.options.first_version;
        let certificate = ask.certificate.as_deref().map(crate::margo::tools::sha256).unwrap_or_default();
        let known = self.records.clients.entry(client.to_owned()).or_insert_with(|| Client {
            identity: identity.to_owned(),
            certificate: String::new(),
            connection: 0,
            requests: 0,
            retired: false,
            manifest_version: first,
            given_version: 0,
        });
        known.certificate = certificate;
        known.connection = ask.connection;
        known.requests += 1;
        self.libraries.entry(client.to_owned()).or_insert_with(|| Library::new(first));
    }

    fn route<'a>(&self, method: &Method, path: &'a str) -> Option<(Op, &'a str)> {
        let path = path.strip_prefix('/')?;
        let (name, rest) = path.split_once('/').unwrap_or((path, ""));
        let older = self.options.generation == Generation::Older;
        Some(match (method.as_str(), name) {
            ("PUT", "capabilities") if !rest.is_empty() => (Op::Capabilities, rest),
            ("POST", "capabilities") if older => (Op::Capabilities, rest),
            ("DELETE", "capabilities") if !rest.is_empty() => (Op::Leave, rest),
            ("GET", "deployments") if rest.is_empty() => (Op::Manifest, rest),
            ("GET", "deployments") if rest.split('/').count() == 2 => (Op::Deployment, path),
            ("GET", "bundles") if !rest.is_empty() => (Op::Bundle, path),
            ("POST", "deployments") => (Op::Status, rest.strip_suffix("/status").filter(|id| !id.contains('/'))?),
            _ => return None,
        })
    }

    pub fn refuse(&self, status: u16, name: &str, detail: &str, errors: &[Problem]) -> Answer {
        problem::answer(self.options.type_root, status, name, detail, errors)
    }

    /// The body as JSON, or a 400.
    pub fn json(&self, call: &mut Call<'_>) -> Result<Value, Answer> {
        let media_type = call.ask.header("content-type").unwrap_or_default();
        if !media_type.starts_with("application/json") {
            call.notes.push(format!("content-type `{media_type}` instead of application/json"));
        }
        serde_json::from_slice(&call.ask.body).map_err(|error| {
            call.notes.push(format!("no JSON: {error}"));
            self.refuse(400, "invalid-request", &format!("the body is no JSON: {error}"), &[])
        })
    }

    pub fn semantic(&self, call: &mut Call<'_>, problems: &[Problem]) -> Answer {
        call.notes.extend(problems.iter().map(|problem| format!("{} {}", problem.field, problem.message)));
        self.refuse(422, "semantic-error", "what was sent contradicts the interface", problems)
    }

    /// Sets what is wanted, and whose it is.
    pub fn want(&mut self, document: Document) {
        let (mut revision, mut earlier) = (1, Vec::new());
        if let Some(known) = self.records.deployments.remove(&document.id) {
            revision += known.revision;
            earlier = known.earlier;
            if known.document.components != document.components {
                earlier.push(known.document.components);
            }
        }
        let wanted = Wanted { document, wanted: true, client: None, revision, earlier };
        self.records.deployments.insert(wanted.document.id.clone(), wanted);
        self.assign();
    }

    /// Makes the clients' manifests follow deployments and devices.
    pub fn assign(&mut self) {
        let mut wanted: BTreeMap<String, Vec<Arc<Document>>> = BTreeMap::new();
        for one in self.records.deployments.values_mut() {
            let owner = self.records.devices.get(one.document.root()).map(|device| device.client.clone());
            // A device that left takes its deployments' owner along; the manifest must not lose them for that.
            one.client = owner.or_else(|| one.client.take());
            if let (true, Some(client)) = (one.wanted, &one.client) {
                wanted.entry(client.clone()).or_default().push(Arc::new(one.document.clone()));
            }
        }
        for (client, library) in &mut self.libraries {
            library.want(wanted.remove(client).unwrap_or_default());
            if let Some(known) = self.records.clients.get_mut(client) {
                known.manifest_version = library.version;
            }
        }
    }

    /// A handshake that failed.
    pub fn refused(&mut self, connection: u64, why: &str) {
        self.records.handshakes_failed += 1;
        self.seen += 1;
        self.records.see(Seen {
            number: self.seen,
            at_ms: now_millis(),
            connection,
            client: None,
            op: Op::Handshake,
            method: String::new(),
            path: String::new(),
            status: 0,
            if_none_match: None,
            bytes: (0, 0),
            faults: Vec::new(),
            notes: vec![why.to_owned()],
        });
    }

    fn log(&mut self, ask: &Ask, op: Op, client: Option<&str>, answer: &Answer, faults: &[Fault], notes: Vec<String>) {
        self.seen += 1;
        let answered = !answer.manner.reset && !answer.manner.hang_up;
        self.records.see(Seen {
            number: self.seen,
            at_ms: now_millis(),
            connection: ask.connection,
            client: client.map(str::to_owned),
            op,
            method: ask.method.to_string(),
            path: ask.path.clone(),
            status: if answered { answer.status } else { 0 },
            if_none_match: ask.header("if-none-match").map(str::to_owned),
            bytes: (ask.body.len(), answer.body.len()),
            faults: faults.iter().map(|fault| format!("{fault:?}")).collect(),
            notes,
        });
    }
}

/// Adds the manner in which the faults want an answer to be given.
fn manner(mut answer: Answer, faults: &[Fault]) -> Answer {
    for fault in faults {
        let manner = &mut answer.manner;
        match fault {
            Fault::Latency { ms } => manner.latency = std::time::Duration::from_millis(*ms),
            Fault::Dribble { bytes, every_ms } => {
                manner.dribble = Some((*bytes, std::time::Duration::from_millis(*every_ms)));
            }
            Fault::Truncate { bytes } => manner.truncate = Some(*bytes),
            Fault::HangUp => manner.hang_up = true,
            Fault::Reset | Fault::LoseAnswer => manner.reset = true,
            _ => {}
        }
    }
    answer
}

/// Id of a key: lowercase hexadecimal SHA-256 of the SubjectPublicKeyInfo.
pub(super) fn key_id(public_key_info: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, public_key_info).as_ref())
}
