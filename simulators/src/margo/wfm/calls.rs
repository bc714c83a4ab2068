//! The calls of the interface.

use std::collections::BTreeSet;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::body::Bytes;

use super::Generation;
use super::core::{Call, Core};
use super::faults::Fault;
use super::records::{Device, Given, Status, Wanted};
use crate::margo::http::Answer;
use crate::margo::schema::{self, Expected, Shape, is_device_id};
use crate::margo::tools::now_millis;

const MANIFEST: &str = "application/vnd.margo.manifest.v1+json";

impl Core {
    pub(super) fn put_capabilities(&mut self, call: &mut Call<'_>) -> Answer {
        let manifest = match self.json(call) {
            Ok(manifest) => manifest,
            Err(answer) => return answer,
        };
        // The older interface's first report may leave the id to the body.
        let in_body = manifest.pointer("/properties/id").and_then(serde_json::Value::as_str);
        let id = if call.rest.is_empty() { in_body.unwrap_or_default() } else { call.rest }.to_owned();
        if !is_device_id(&id) {
            call.notes.push(format!("`{id}` is no device id"));
            return self.refuse(400, "invalid-request", "the path holds no device id", &[]);
        }
        if let Some(answer) = self.foreign(call, &id) {
            return answer;
        }
        let shape = Shape { older: self.options.generation == Generation::Older, mode: self.options.mode };
        let problems = schema::capabilities(&manifest, &id, shape);
        if !problems.is_empty() {
            return self.semantic(call, &problems);
        }
        if let Some((parent, _)) = id.rsplit_once('/')
            && !self.records.devices.contains_key(parent)
        {
            call.notes.push(format!("{id} before its parent {parent}"));
            return self.refuse(404, "gateway-not-found", &format!("{parent} was not reported yet"), &[]);
        }
        let now = now_millis();
        let client = call.client.clone();
        let known = self.records.devices.get(&id);
        let is_new = known.is_none();
        if known.is_some_and(|known| known.capabilities == manifest) {
            call.notes.push("nothing changed since the last report".to_owned());
        }
        let since_ms = known.map_or(now, |known| known.since_ms);
        let reports = known.map_or(0, |known| known.reports) + 1;
        self.records.devices.insert(id, Device { client, capabilities: manifest, since_ms, at_ms: now, reports });
        self.assign();
        Answer::new(if is_new || shape.older { 201 } else { 200 })
    }

    pub(super) fn delete_capabilities(&mut self, call: &mut Call<'_>) -> Answer {
        if let Some(answer) = self.foreign(call, call.rest) {
            return answer;
        }
        if self.records.devices.remove(call.rest).is_none() {
            return self.refuse(404, "device-not-found", &format!("{} is not known", call.rest), &[]);
        }
        let below = format!("{}/", call.rest);
        let before = self.records.devices.len();
        self.records.devices.retain(|id, _| !id.starts_with(&below));
        let left = before - self.records.devices.len();
        if left > 0 {
            call.notes.push(format!("{} left before its {left} children, which are gone with it", call.rest));
        }
        self.assign();
        Answer::new(204)
    }

    /// 403 for a device below another client's.
    fn foreign(&self, call: &mut Call<'_>, id: &str) -> Option<Answer> {
        let root = id.split('/').next().unwrap_or_default();
        let owner = self.records.devices.get(root).map(|device| &device.client);
        let assigned = self.options.owners.get(root);
        if owner.or(assigned).is_none_or(|owner| *owner == call.client) {
            return None;
        }
        call.notes.push(format!("{root} belongs to another client"));
        Some(self.refuse(403, "not-authorized", &format!("{id} is not yours"), &[]))
    }

    pub(super) fn manifest(&mut self, call: &mut Call<'_>, faults: &[Fault]) -> Answer {
        match call.ask.header("accept") {
            Some(accept) if accept.contains(MANIFEST) => {}
            Some(accept) if accept.contains("*/*") => call.notes.push("Accept should name the manifest".to_owned()),
            None => call.notes.push("Accept is missing; it must always be sent".to_owned()),
            Some(accept) => {
                call.notes.push(format!("Accept `{accept}`"));
                return self.refuse(406, "invalid-request", &format!("only {MANIFEST} can be had"), &[]);
            }
        }
        let content: Vec<Fault> = faults.iter().filter(|fault| fault.is_content()).cloned().collect();
        let ignored = content.contains(&Fault::EtagIgnored);
        let missing = content.contains(&Fault::EtagMissing);
        let Some(library) = self.libraries.get_mut(&call.client) else {
            return self.refuse(403, "not-authorized", "nothing is known of this client", &[]);
        };
        let served = library.serve(&call.base, &content);
        let mut answer = Answer::with(200, MANIFEST, served.body.clone());
        if !missing {
            answer = answer.header("etag", served.etag.clone());
        }
        let unchanged = matches(call.ask.header("if-none-match"), &served.etag) && !ignored && !missing;
        if served.is_new {
            let faults = content.iter().map(|fault| format!("{fault:?}")).collect();
            self.records.give(Given {
                client: call.client.clone(),
                version: served.written,
                deployments: served.deployments.clone(),
                at_ms: now_millis(),
                faults,
            });
        }
        if let Some(known) = self.records.clients.get_mut(&call.client) {
            known.given_version = known.given_version.max(served.written);
        }
        if unchanged {
            answer.status = 304;
            answer.body = Bytes::new();
        }
        answer
    }

    pub(super) fn artifact(&self, call: &Call<'_>) -> Answer {
        let found = self.libraries.get(&call.client).and_then(|library| library.artifact(&format!("/{}", call.rest)));
        let Some(artifact) = found else {
            return self.refuse(404, "deployment-not-found", "there is no such artifact", &[]);
        };
        let etag = format!("\"{}\"", artifact.digest);
        if matches(call.ask.header("if-none-match"), &etag) {
            return Answer::new(304).header("etag", etag);
        }
        let gzip = call.ask.header("accept-encoding").is_some_and(|accepted| accepted.contains("gzip"));
        let answer = Answer::with(200, artifact.media_type, artifact.content.clone()).header("etag", etag);
        if gzip && self.options.compress && artifact.media_type == "application/yaml" {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            if encoder.write_all(&artifact.content).is_ok()
                && let Ok(packed) = encoder.finish()
            {
                return answer.body(packed).header("content-encoding", "gzip");
            }
        }
        answer
    }

    pub(super) fn status(&mut self, call: &mut Call<'_>) -> Answer {
        let body = match self.json(call) {
            Ok(body) => body,
            Err(answer) => return answer,
        };
        let id = call.rest.to_owned();
        let Some(wanted) = self.records.deployments.get(&id) else {
            let unknown = schema::Problem { field: "deploymentId".to_owned(), message: "is not known".to_owned() };
            return self.semantic(call, &[unknown]);
        };
        if wanted.client.as_deref() != Some(call.client.as_str()) {
            call.notes.push(format!("{id} belongs to another client"));
            return self.refuse(403, "not-authorized", &format!("{id} is not yours"), &[]);
        }
        let newest = self.records.clients.get(&call.client).map_or(0, |client| client.given_version);
        let problems = schema::status(
            &body,
            &Expected {
                older: self.options.generation == Generation::Older,
                deployment: &id,
                components: expected_components(wanted, &body),
                newest,
                root: wanted.document.root(),
            },
        );
        if !problems.is_empty() {
            return self.semantic(call, &problems);
        }
        let text = |pointer: &str| body.pointer(pointer).and_then(serde_json::Value::as_str).map(str::to_owned);
        let device = text("/deviceId");
        let adopted = body["adoptedManifestVersion"].as_u64();
        let state = text("/status/state").unwrap_or_default();
        let before = self.records.status(&id, device.as_deref());
        let is_new = before.is_none();
        if let Some(before) = before {
            if before.body == body {
                call.notes.push("the same status again".to_owned());
            }
            if adopted < before.adopted {
                call.notes.push(format!("adoptedManifestVersion went back from {:?} to {adopted:?}", before.adopted));
            }
        }
        self.statuses += 1;
        let (number, client) = (self.statuses, call.client.clone());
        let at_ms = now_millis();
        self.records.report(Status { number, client, deployment: id, device, adopted, state, body, at_ms });
        Answer::new(if is_new { 201 } else { 200 })
    }
}

/// The components of the content that the status is about: an earlier one when it names exactly those, else the present.
fn expected_components<'a>(wanted: &'a Wanted, status: &serde_json::Value) -> Vec<&'a str> {
    let items = status["components"].as_array().into_iter().flatten();
    let named: BTreeSet<&str> = items.filter_map(|item| item["name"].as_str()).collect();
    let about = wanted.earlier.iter().find(|names| names.iter().map(String::as_str).collect::<BTreeSet<_>>() == named);
    about.unwrap_or(&wanted.document.components).iter().map(String::as_str).collect()
}

/// `If-None-Match` (RFC 9110, 13.1.2): a list, compared weakly.
fn matches(header: Option<&str>, etag: &str) -> bool {
    let strong = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    header.is_some_and(|header| header.split(',').any(|tag| strong(tag) == strong(etag) || tag.trim() == "*"))
}
