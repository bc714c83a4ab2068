//! The older interface: onboarding with a certificate, a client id in every path, and signed requests.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use x509_parser::pem::parse_x509_pem;

use super::core::{Core, Refusal, key_id};
use super::records::Op;
use super::signature::{self, Key};
use crate::margo::http::{Answer, Ask};
use crate::margo::tools::uuid;

/// A client that was onboarded.
pub(super) struct Onboarded {
    pub key: Key,
    pub key_id: String,
}

/// What a request turned out to be.
pub(super) enum Entry<'a> {
    /// A call of a client, whose signature is right.
    Client { client: String, rest: &'a str },
    /// Onboarding, which is answered already.
    Done { op: Op, answer: Answer },
}

/// Tells onboarding from calls, and verifies the signature of a call.
pub(super) fn identify<'a>(core: &mut Core, ask: &Ask, path: &'a str) -> Result<Entry<'a>, Refusal> {
    let refusal = |core: &Core, status: u16, name: &str, why: &str| Refusal {
        answer: core.refuse(status, name, why, &[]),
        why: why.to_owned(),
    };
    match (ask.method.as_str(), path) {
        ("GET", "/api/v1/onboarding/certificate") => {
            let answer = Answer::json(200, &json!({ "certificate": core.server_certificate }));
            return Ok(Entry::Done { op: Op::Certificate, answer });
        }
        ("POST", "/api/v1/onboarding") => return Ok(Entry::Done { op: Op::Onboarding, answer: onboard(core, ask) }),
        _ => {}
    }
    let below = path.strip_prefix("/api/v1/clients/").and_then(|rest| rest.split_once('/'));
    let Some((client, _)) = below else { return Err(refusal(core, 404, "invalid-request", "no such call")) };
    let Some(known) = core.onboarded.get(client) else {
        return Err(refusal(core, 404, "not-authorized", "this client was never onboarded"));
    };
    if let Err(error) = signature::verify(ask, &known.key, &known.key_id) {
        let status = match error {
            signature::Error::Unsigned => core.options.unsigned_status,
            signature::Error::Digest(_) => 400,
            signature::Error::Wrong(_) => 401,
        };
        return Err(refusal(core, status, "not-authorized", &error.to_string()));
    }
    let (client, identity) = (client.to_owned(), known.key_id.clone());
    core.meet(&client, &identity, ask);
    // As the newer interface has it, from `/api/v1` on: `/clients/{id}` is cut out.
    let rest = &path["/api/v1/clients/".len() + client.len()..];
    Ok(Entry::Client { client, rest })
}

fn onboard(core: &mut Core, ask: &Ask) -> Answer {
    let body: Option<Value> = serde_json::from_slice(&ask.body).ok();
    let text = |key: &str| body.as_ref().and_then(|body| body.get(key)).and_then(Value::as_str).unwrap_or_default();
    if text("apiVersion") != "onboarding.margo.org/v1alpha1" || text("kind") != "OnboardingRequest" {
        return core.refuse(400, "invalid-request", "no OnboardingRequest", &[]);
    }
    let pem = STANDARD.decode(text("certificate")).ok().and_then(|pem| parse_x509_pem(&pem).ok().map(|(_, pem)| pem));
    let Some(pem) = pem else { return core.refuse(400, "invalid-request", "certificate: no base64 of PEM", &[]) };
    let Ok(certificate) = pem.parse_x509() else {
        return core.refuse(400, "invalid-request", "certificate: no X.509", &[]);
    };
    if core.options.reject_onboarding {
        return core.refuse(403, "not-authorized", "this certificate is not welcome", &[]);
    }
    let key_id = key_id(certificate.public_key().raw);
    let known = core.onboarded.iter().find(|(_, known)| known.key_id == key_id).map(|(client, _)| client.clone());
    let client = known.unwrap_or_else(uuid);
    let Some(key) = Key::of(&certificate) else {
        return core.refuse(400, "invalid-request", "certificate: a key that the interface does not allow", &[]);
    };
    core.onboarded.insert(client.clone(), Onboarded { key, key_id });
    Answer::json(201, &json!({ "clientId": client }))
}
