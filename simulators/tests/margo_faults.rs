//! Every scripted fault of the simulated fleet manager, as a client meets it.
#![cfg(feature = "margo")]
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod margo_support;

use std::io::{ErrorKind, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fieldgate_simulators::margo::{Authority, Deployment, Down, Fault, Flaw, Op, Rule, TypeRoot, Wfm, WfmOptions};
use flate2::read::GzDecoder;
use margo_support::{Caller, MANIFEST, capabilities, report};
use serde_json::{Value, json};

const DEPLOYMENTS: &str = "/api/v1/deployments";

/// A fleet manager that wants ten deployments of a gateway.
async fn ten() -> (Wfm, Arc<Authority>, Caller) {
    let authority = Authority::new("plant.example").unwrap();
    let wfm = Wfm::start(WfmOptions::new(authority.clone())).await.unwrap();
    let caller = Caller::client(&wfm, &authority, "gateway-7");
    report(&caller, "gw").await;
    for number in 0..10 {
        let one = Deployment::custom("gw", &format!("app-{number}")).component("c", "oci://r.example/x", "1.0.0");
        wfm.deploy(one).unwrap();
    }
    (wfm, authority, caller)
}

async fn manifest(caller: &Caller) -> Value {
    let reply = caller.get(DEPLOYMENTS, &[MANIFEST]).await;
    assert_eq!(reply.status, 200);
    reply.json()
}

fn digest(algorithm: &'static ring::digest::Algorithm, bytes: &[u8]) -> String {
    ring::digest::digest(algorithm, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", digest(&ring::digest::SHA256, bytes))
}

async fn artifact(caller: &Caller, named: &Value) -> Vec<u8> {
    let reply = caller.get(named["url"].as_str().unwrap(), &[]).await;
    assert_eq!(reply.status, 200);
    reply.body
}

/// Which of the manifest's digests hold: those of the YAMLs alone, and the bundle's.
async fn holding(caller: &Caller, manifest: &Value) -> (Vec<bool>, bool) {
    let mut single = Vec::new();
    for entry in manifest["deployments"].as_array().unwrap() {
        single.push(sha256(&artifact(caller, entry).await) == entry["digest"]);
    }
    let bundle = sha256(&artifact(caller, &manifest["bundle"]).await) == manifest["bundle"]["digest"];
    (single, bundle)
}

async fn names(caller: &Caller, manifest: &Value) -> Vec<String> {
    let bytes = artifact(caller, &manifest["bundle"]).await;
    assert_eq!(sha256(&bytes), manifest["bundle"]["digest"], "the bundle itself is as announced");
    let mut archive = tar::Archive::new(GzDecoder::new(&bytes[..]));
    let entries = archive.entries().unwrap();
    entries.map(|entry| String::from_utf8_lossy(&entry.unwrap().path_bytes()).into_owned()).collect()
}

fn all_but(index: usize) -> Vec<bool> {
    (0..10).map(|at| at != index).collect()
}

#[tokio::test]
async fn one_wrong_digest_among_ten() {
    let (wfm, _, caller) = ten().await;
    assert_eq!(holding(&caller, &manifest(&caller).await).await, (vec![true; 10], true));

    wfm.inject(Rule::from(Fault::EntryDigest { index: 3 }).times(1));
    assert_eq!(holding(&caller, &manifest(&caller).await).await, (all_but(3), true));

    wfm.inject(Rule::from(Fault::AlteredDeployment { index: 7 }).times(1));
    assert_eq!(holding(&caller, &manifest(&caller).await).await, (all_but(7), true));

    wfm.inject(Rule::from(Fault::BundleDigest).times(1));
    assert_eq!(holding(&caller, &manifest(&caller).await).await, (vec![true; 10], false));

    assert_eq!(holding(&caller, &manifest(&caller).await).await, (vec![true; 10], true), "the faults are used up");
}

#[tokio::test]
async fn versions_that_do_not_rise() {
    let (wfm, _, caller) = ten().await;
    let right = manifest(&caller).await;
    let version = right["manifestVersion"].as_u64().unwrap();
    assert_eq!(version, 11);

    wfm.inject(Rule::from(Fault::Rollback { by: 4 }).times(1));
    let old = manifest(&caller).await;
    assert_eq!((old["manifestVersion"].as_u64(), old["deployments"].as_array().unwrap().len()), (Some(7), 6));

    wfm.inject(Rule::from(Fault::SameVersion).times(1));
    let same = manifest(&caller).await;
    assert_eq!(same["manifestVersion"], version);
    assert_ne!(same["deployments"], right["deployments"]);
    assert_eq!(holding(&caller, &same).await, (vec![true; 10], true), "nothing but the version is wrong");

    wfm.inject(Rule::from(Fault::Version { value: u64::MAX }).times(1));
    assert_eq!(manifest(&caller).await["manifestVersion"], u64::MAX);
    assert_eq!(manifest(&caller).await, right);
}

#[tokio::test]
async fn digests_of_another_algorithm() {
    let (wfm, _, caller) = ten().await;
    wfm.inject(Rule::from(Fault::Sha512).times(1));
    let all = manifest(&caller).await;
    let bytes = artifact(&caller, &all["bundle"]).await;
    assert_eq!(all["bundle"]["digest"], format!("sha512:{}", digest(&ring::digest::SHA512, &bytes)));
    wfm.inject(Rule::from(Fault::Sha512Entry { index: 9 }).times(1));
    let one = manifest(&caller).await;
    let kinds = one["deployments"].as_array().unwrap().iter();
    let kinds: Vec<_> = kinds.map(|entry| entry["digest"].as_str().unwrap().starts_with("sha256:")).collect();
    assert_eq!(kinds, all_but(9));
}

#[tokio::test]
async fn bundles_that_hold_something_else() {
    let (wfm, _, caller) = ten().await;
    let right = names(&caller, &manifest(&caller).await).await;
    assert_eq!(right.len(), 10);
    for (fault, count) in [
        (Fault::ExtraFile, 11),
        (Fault::MissingFile { index: 2 }, 9),
        (Fault::DuplicateFile, 11),
        (Fault::Symlink, 11),
        (Fault::NestedFiles, 10),
        (Fault::Names { names: vec!["../../evil".to_owned(), "/etc/evil".to_owned()] }, 10),
    ] {
        wfm.inject(Rule::from(fault.clone()).times(1));
        let found = names(&caller, &manifest(&caller).await).await;
        assert_eq!(found.len(), count, "{fault:?}");
        assert_ne!(found, right, "{fault:?}");
    }
    wfm.inject(Rule::from(Fault::Bomb { mebibytes: 4 }).times(1));
    let bomb = artifact(&caller, &manifest(&caller).await["bundle"]).await;
    assert!(bomb.len() < 64 * 1024);
    assert!(std::io::copy(&mut GzDecoder::new(&bomb[..]), &mut std::io::sink()).unwrap() > 4 << 20);
    wfm.inject(Rule::from(Fault::BundleGarbage).times(1));
    let garbage = artifact(&caller, &manifest(&caller).await["bundle"]).await;
    assert!(GzDecoder::new(&garbage[..]).read_to_end(&mut Vec::new()).is_err());
}

#[tokio::test]
async fn deployments_that_are_not_what_they_claim() {
    let (wfm, _, caller) = ten().await;
    wfm.inject(Rule::from(Fault::WrongId { index: 0 }).times(1));
    let wrong = manifest(&caller).await;
    assert_eq!(holding(&caller, &wrong).await, (vec![true; 10], true));
    let yaml = String::from_utf8(artifact(&caller, &wrong["deployments"][0]).await).unwrap();
    assert!(!yaml.contains(wrong["deployments"][0]["deploymentId"].as_str().unwrap()), "{yaml}");
    wfm.inject(Rule::from(Fault::DeploymentGarbage { index: 0 }).times(1));
    let garbage = artifact(&caller, &manifest(&caller).await["deployments"][0]).await;
    assert!(garbage.starts_with(b"{ this"));
}

#[tokio::test]
async fn manifests_that_say_more_or_less() {
    let (wfm, _, caller) = ten().await;
    let right = manifest(&caller).await;
    let size = |manifest: &Value| manifest["deployments"][0]["sizeBytes"].as_u64();
    let once = |fault| wfm.inject(Rule::from(fault).times(1));
    once(Fault::SizesLie { by: 100 });
    assert_eq!(size(&manifest(&caller).await), size(&right).map(|size| size + 100));
    once(Fault::SizesMissing);
    assert_eq!(size(&manifest(&caller).await), None);
    once(Fault::UnknownFields);
    let strange = manifest(&caller).await;
    assert!(strange["xFuture"].is_object() && strange["bundle"]["xFuture"].is_object());
    once(Fault::BundleNull);
    assert_eq!(manifest(&caller).await["bundle"], Value::Null);
    once(Fault::ManifestGarbage);
    let reply = caller.get(DEPLOYMENTS, &[MANIFEST]).await;
    assert!(serde_json::from_slice::<Value>(&reply.body).is_err());
    assert_eq!(manifest(&caller).await, right);
}

#[tokio::test]
async fn etags_that_do_not_help() {
    let (wfm, _, caller) = ten().await;
    let reply = caller.get(DEPLOYMENTS, &[MANIFEST]).await;
    let etag = reply.header("etag").unwrap().to_owned();
    assert!(!sha256(&reply.body).contains(&etag[etag.len() - 17..etag.len() - 1]), "an ETag is no digest");
    let conditional = [MANIFEST, ("If-None-Match", etag.as_str())];
    assert_eq!(caller.get(DEPLOYMENTS, &conditional).await.status, 304);

    wfm.inject(Rule::from(Fault::EtagIgnored).times(1));
    let ignored = caller.get(DEPLOYMENTS, &conditional).await;
    assert_eq!((ignored.status, &ignored.body), (200, &reply.body), "byte for byte the same");
    wfm.inject(Rule::from(Fault::EtagMissing).times(1));
    let missing = caller.get(DEPLOYMENTS, &conditional).await;
    assert_eq!((missing.status, missing.header("etag")), (200, None));
    assert_eq!(caller.get(DEPLOYMENTS, &conditional).await.status, 304);
}

#[tokio::test]
async fn artifacts_that_are_not_there() {
    let (wfm, _, caller) = ten().await;
    let right = manifest(&caller).await;
    wfm.inject(Rule::from(Fault::ArtifactMissing).on(Op::Bundle).times(1));
    let bundle = right["bundle"]["url"].as_str().unwrap();
    assert_eq!(caller.get(bundle, &[]).await.problem(), (404, "deployment-not-found".to_owned()));
    assert_eq!(caller.get(bundle, &[]).await.status, 200);
    wfm.inject(Fault::ArtifactMissing);
    for entry in right["deployments"].as_array().unwrap() {
        assert_eq!(caller.get(entry["url"].as_str().unwrap(), &[]).await.status, 404);
    }
    assert_eq!(manifest(&caller).await, right, "the manifest still names them");
}

#[tokio::test]
async fn every_problem_in_every_dress() {
    const NAMES: [(&str, u16); 10] = [
        ("invalid-request", 400),
        ("semantic-error", 422),
        ("not-authorized", 403),
        ("gateway-not-found", 404),
        ("device-not-found", 404),
        ("invalid-bundle", 400),
        ("deployment-not-found", 404),
        ("server-cannot-generate-response", 500),
        ("server-cannot-generate-response", 503),
        ("wfm-client-relationship-retired", 403),
    ];
    let (wfm, _, caller) = ten().await;
    for root in TypeRoot::ALL {
        for (name, status) in NAMES {
            for after in [None, Some(7)] {
                wfm.inject(
                    Rule::from(Fault::Problem {
                        name: name.to_owned(),
                        status,
                        root,
                        retry_after: after,
                        retryable: Some(true),
                        retry_after_seconds: after,
                        backoff: Some("exponential".to_owned()),
                    })
                    .times(1),
                );
                let reply = caller.get(DEPLOYMENTS, &[MANIFEST]).await;
                assert_eq!(reply.problem(), (status, name.to_owned()));
                assert_eq!(reply.header("content-type"), Some("application/problem+json"));
                assert_eq!(reply.header("retry-after").map(str::to_owned), after.map(|after| after.to_string()));
                assert_eq!(reply.json()["retryable"], true);
            }
        }
    }
    let dresses = [
        Fault::PlainJson { status: 500, retry_after: Some(3) },
        Fault::Empty { status: 503, retry_after: Some("Wed, 21 Oct 2026 07:28:00 GMT".to_owned()) },
        Fault::Html { status: 502 },
        Fault::Retired,
    ];
    let mut seen = Vec::new();
    for fault in dresses {
        wfm.inject(Rule::from(fault).on(Op::Status).times(1));
        let reply = caller.send("POST", "/api/v1/deployments/x/status", &json!({})).await;
        seen.push((reply.status, reply.header("content-type").map(str::to_owned), reply.body.is_empty()));
    }
    let kind = |kind: &str| Some(kind.to_owned());
    let expected = [
        (500, kind("application/json"), false),
        (503, None, true),
        (502, kind("text/html"), false),
        (403, kind("application/problem+json"), false),
    ];
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn answers_that_come_late_in_dribs_cut_short_or_not_at_all() {
    let (wfm, _, caller) = ten().await;
    let right = caller.get(DEPLOYMENTS, &[MANIFEST]).await;
    let once = |fault| wfm.inject(Rule::from(fault).times(1));

    once(Fault::Latency { ms: 300 });
    let before = Instant::now();
    assert_eq!(caller.get(DEPLOYMENTS, &[MANIFEST]).await.body, right.body);
    assert!(before.elapsed() >= Duration::from_millis(300));

    once(Fault::Dribble { bytes: right.body.len().div_ceil(5), every_ms: 60 });
    let before = Instant::now();
    assert_eq!(caller.get(DEPLOYMENTS, &[MANIFEST]).await.body, right.body);
    assert!(before.elapsed() >= Duration::from_millis(300));

    once(Fault::Truncate { bytes: 100 });
    // The end comes as an abrupt close, with or without the bytes before it.
    if let Ok(reply) = caller.call("GET", DEPLOYMENTS, &[MANIFEST], b"").await {
        assert!(!reply.complete && right.body.starts_with(&reply.body), "{} bytes", reply.body.len());
    }

    once(Fault::HangUp);
    assert!(caller.call("GET", DEPLOYMENTS, &[MANIFEST], b"").await.is_err());
    once(Fault::Reset);
    let reset = caller.call("GET", DEPLOYMENTS, &[MANIFEST], b"").await.unwrap_err();
    assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
    assert_eq!(caller.get(DEPLOYMENTS, &[MANIFEST]).await.body, right.body);
}

#[tokio::test]
async fn a_lost_answer_was_given_effect() {
    let (wfm, _, caller) = ten().await;
    wfm.inject(Rule::from(Fault::LoseAnswer).on(Op::Capabilities).path("gw/a").times(1));
    let json = [("Content-Type", "application/json")];
    let body = capabilities("gw/a").to_string();
    assert!(caller.call("PUT", "/api/v1/capabilities/gw/a", &json, body.as_bytes()).await.is_err());
    assert!(wfm.with(|seen| seen.devices.contains_key("gw/a")));
    let again = caller.send("PUT", "/api/v1/capabilities/gw/a", &capabilities("gw/a")).await;
    assert_eq!(again.status, 200);
}

#[tokio::test]
async fn down_and_up_again_on_the_same_port() {
    let (wfm, _, caller) = ten().await;
    for _ in 0..3 {
        wfm.set_down(Down::Refused).await.unwrap();
        let refused = caller.call("GET", DEPLOYMENTS, &[MANIFEST], b"").await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        wfm.set_down(Down::Up).await.unwrap();
        assert_eq!(caller.get(DEPLOYMENTS, &[MANIFEST]).await.status, 200);
    }
    wfm.set_down(Down::Reset).await.unwrap();
    assert!(caller.call("GET", DEPLOYMENTS, &[MANIFEST], b"").await.is_err());
    wfm.set_down(Down::Silent).await.unwrap();
    let silent = caller.call("GET", DEPLOYMENTS, &[MANIFEST], b"");
    assert!(tokio::time::timeout(Duration::from_millis(300), silent).await.is_err());
    wfm.set_down(Down::Up).await.unwrap();
    assert_eq!(caller.get(DEPLOYMENTS, &[MANIFEST]).await.status, 200);
}

#[tokio::test]
async fn every_bad_svid_can_be_served() {
    let (wfm, _, caller) = ten().await;
    for flaw in Flaw::ALL {
        wfm.serve(flaw).unwrap();
        assert_eq!(caller.get(DEPLOYMENTS, &[MANIFEST]).await.status, 200, "this client takes anything");
        let seen = caller.seen.lock().unwrap().last().unwrap().clone();
        let (_, leaf) = x509_parser::parse_x509_certificate(&seen).unwrap();
        let uris: Vec<_> = leaf
            .subject_alternative_name()
            .unwrap()
            .map(|names| names.value.general_names.iter().map(|name| format!("{name}")).collect())
            .unwrap_or_default();
        let right = vec!["URI(spiffe://plant.example/margo/wfm/wfm-1)".to_owned()];
        let usage = leaf.key_usage().unwrap().unwrap().value;
        match flaw {
            Flaw::Expired | Flaw::NotYetValid => assert!(!leaf.validity().is_valid(), "{flaw:?}"),
            Flaw::CaLeaf => assert!(leaf.is_ca()),
            Flaw::KeyCertSign => assert!(usage.key_cert_sign()),
            Flaw::CrlSign => assert!(usage.crl_sign()),
            Flaw::Stranger => assert!(leaf.issuer().to_string().contains("stranger")),
            Flaw::NoIntermediate => assert_eq!(uris, right),
            _ => assert_ne!(uris, right, "{flaw:?}"),
        }
    }
    assert_eq!(wfm.serving(), Flaw::NoIntermediate);
}
