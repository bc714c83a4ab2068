//! The simulated fleet manager (1.0.0-rc.3) against its reference, through an ordinary HTTPS client.
#![cfg(feature = "margo")]
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod margo_support;

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use fieldgate_simulators::margo::schema::Mode;
use fieldgate_simulators::margo::{Authority, Deployment, Flaw, Op, TlsVersions, Wfm, WfmOptions};
use flate2::read::GzDecoder;
use margo_support::{Caller, MANIFEST, PATIENCE, capabilities, report};
use serde_json::{Value, json};

static TLS12: [&rustls::SupportedProtocolVersion; 1] = [&rustls::version::TLS12];

async fn start(change: impl FnOnce(&mut WfmOptions)) -> (Wfm, Arc<Authority>, Caller) {
    let authority = Authority::new("plant.example").unwrap();
    let mut options = WfmOptions::new(authority.clone());
    change(&mut options);
    let wfm = Wfm::start(options).await.unwrap();
    let caller = Caller::client(&wfm, &authority, "gateway-7");
    (wfm, authority, caller)
}

fn recipe(target: &str) -> Deployment {
    Deployment::custom(target, "recipe-mixer").component("recipe", "oci://r.example/mixer", "1.0.0")
}

fn status(id: &str, device: &str, version: u64, state: &str) -> Value {
    json!({
        "deploymentId": id, "adoptedManifestVersion": version, "deviceId": device, "status": { "state": state },
        "components": [{ "name": "recipe", "state": state }],
    })
}

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[tokio::test]
async fn a_deployment_goes_its_whole_way() {
    let (wfm, _, caller) = start(|options| options.prefix = "/v1alpha2/margo".to_owned()).await;
    let empty = caller.get("/api/v1/deployments", &[MANIFEST]).await;
    assert_eq!((empty.status, empty.header("content-type")), (200, Some(MANIFEST.1)));
    assert_eq!(empty.json(), json!({ "manifestVersion": 1, "bundle": null, "deployments": [] }));

    report(&caller, "gw").await;
    report(&caller, "gw/mixer").await;
    let id = wfm.deploy(recipe("gw/mixer")).unwrap();
    let reply = caller.get("/api/v1/deployments", &[MANIFEST]).await;
    let (etag, manifest) = (reply.header("etag").unwrap(), reply.json());
    assert_eq!(manifest["manifestVersion"], 2);
    let entry = &manifest["deployments"][0];
    assert_eq!(entry["deploymentId"], id);

    // URLs start without the prefix.
    let url = entry["url"].as_str().unwrap();
    assert!(url.starts_with(&format!("/api/v1/deployments/{id}/sha256:")), "{url}");
    let yaml = caller.get(url, &[]).await;
    assert_eq!((yaml.status, yaml.header("content-type")), (200, Some("application/yaml")));
    assert_eq!(sha256(&yaml.body), entry["digest"]);
    assert_eq!(yaml.body.len() as u64, entry["sizeBytes"].as_u64().unwrap());
    let packed = caller.get(url, &[("Accept-Encoding", "gzip")]).await;
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    let mut unpacked = Vec::new();
    GzDecoder::new(&packed.body[..]).read_to_end(&mut unpacked).unwrap();
    assert_eq!(unpacked, yaml.body);

    let bundle = caller.get(manifest["bundle"]["url"].as_str().unwrap(), &[]).await;
    assert_eq!(bundle.header("content-type"), Some("application/vnd.margo.bundle.v1+tar+gzip"));
    assert_eq!(sha256(&bundle.body), manifest["bundle"]["digest"]);
    let mut archive = tar::Archive::new(GzDecoder::new(&bundle.body[..]));
    let mut entries = archive.entries().unwrap();
    let mut content = Vec::new();
    entries.next().unwrap().unwrap().read_to_end(&mut content).unwrap();
    assert_eq!(content, yaml.body);
    assert!(entries.next().is_none());

    let unchanged = caller.get("/api/v1/deployments", &[MANIFEST, ("If-None-Match", etag)]).await;
    assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));

    let path = format!("/api/v1/deployments/{id}/status");
    assert_eq!(caller.send("POST", &path, &status(&id, "gw/mixer", 2, "installing")).await.status, 201);
    assert_eq!(caller.send("POST", &path, &status(&id, "gw/mixer", 2, "installed")).await.status, 200);
    let found = wfm.wait("installed", PATIENCE, |seen| seen.status(&id, Some("gw/mixer")).cloned()).await.unwrap();
    assert_eq!((found.state.as_str(), found.adopted), ("installed", Some(2)));

    assert!(wfm.remove(&id));
    let gone = caller.get("/api/v1/deployments", &[MANIFEST, ("If-None-Match", etag)]).await.json();
    assert_eq!(gone, json!({ "manifestVersion": 3, "bundle": null, "deployments": [] }));
    assert_eq!(caller.send("POST", &path, &status(&id, "gw/mixer", 3, "removed")).await.status, 200);
    assert_eq!(wfm.records().notes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_child_comes_after_its_parent_and_leaves_before_it() {
    let (wfm, _, caller) = start(|_| ()).await;
    let early = caller.send("PUT", "/api/v1/capabilities/gw/a", &capabilities("gw/a")).await;
    assert_eq!(early.problem(), (404, "gateway-not-found".to_owned()));
    for id in ["gw", "gw/line", "gw/line/a", "gw/b"] {
        report(&caller, id).await;
    }
    assert_eq!(caller.send("PUT", "/api/v1/capabilities/gw", &capabilities("gw")).await.status, 200);
    let gone = |id: &str| {
        let path = format!("/api/v1/capabilities/{id}");
        let caller = caller.clone();
        async move { caller.call("DELETE", &path, &[], b"").await.unwrap() }
    };
    assert_eq!(gone("gw/b").await.status, 204);
    assert_eq!(gone("gw/b").await.problem(), (404, "device-not-found".to_owned()));
    // With a parent goes what is below it, and that is noted.
    assert_eq!(gone("gw/line").await.status, 204);
    assert_eq!(wfm.with(|seen| seen.devices.len()), 1);
    assert!(wfm.records().notes().iter().any(|note| note.contains("left before its 1 children")));
}

#[tokio::test]
async fn what_is_not_valid_is_refused_with_its_fields() {
    let (_wfm, _, caller) = start(|options| options.mode = Mode::SeeThru).await;
    let mut wrong = capabilities("gw");
    wrong["kind"] = json!("DeviceCapabilitiesManifest");
    wrong["properties"].as_object_mut().unwrap().remove("vendor");
    let reply = caller.send("PUT", "/api/v1/capabilities/gw", &wrong).await;
    assert_eq!(reply.problem(), (422, "semantic-error".to_owned()));
    let fields: Vec<Value> = reply.json()["errors"].as_array().unwrap().iter().map(|e| e["field"].clone()).collect();
    assert_eq!(fields, [json!("kind"), json!("properties.vendor")]);

    let json = [("Content-Type", "application/json")];
    let reply = caller.call("PUT", "/api/v1/capabilities/gw", &json, b"{").await.unwrap();
    assert_eq!(reply.problem(), (400, "invalid-request".to_owned()));
    let reply = caller.send("PUT", "/api/v1/capabilities/g%20w", &capabilities("g w")).await;
    assert_eq!(reply.status, 400);
    let reply = caller.send("POST", "/api/v1/deployments/unknown/status", &status("unknown", "gw", 1, "failed")).await;
    assert_eq!(reply.status, 422);
    assert_eq!(caller.get("/api/v1/deployments", &[("Accept", "text/html")]).await.status, 406);
    assert_eq!(caller.get("/api/v2/deployments", &[]).await.status, 404);
}

#[tokio::test]
async fn every_client_has_its_own_devices_and_its_own_manifest() {
    let (wfm, authority, caller) = start(|options| options.mode = Mode::Transparent).await;
    let other = Caller::client(&wfm, &authority, "mixer-2");
    report(&caller, "mixer-1").await;
    report(&other, "mixer-2").await;
    let foreign = other.send("PUT", "/api/v1/capabilities/mixer-1", &capabilities("mixer-1")).await;
    assert_eq!(foreign.problem(), (403, "not-authorized".to_owned()));
    assert_eq!(other.call("DELETE", "/api/v1/capabilities/mixer-1", &[], b"").await.unwrap().status, 403);

    let id = wfm.deploy(recipe("mixer-2")).unwrap();
    assert_eq!(caller.get("/api/v1/deployments", &[MANIFEST]).await.json()["manifestVersion"], 1);
    let manifest = other.get("/api/v1/deployments", &[MANIFEST]).await.json();
    assert_eq!(manifest["manifestVersion"], 2);
    assert_eq!(caller.get(manifest["deployments"][0]["url"].as_str().unwrap(), &[]).await.status, 404);
    let path = format!("/api/v1/deployments/{id}/status");
    assert_eq!(caller.send("POST", &path, &status(&id, "mixer-2", 1, "failed")).await.status, 403);

    assert!(wfm.retire("mixer-2", true));
    let retired = other.get("/api/v1/deployments", &[MANIFEST]).await;
    assert_eq!(retired.problem(), (403, "not-authorized".to_owned()));
    assert_eq!(caller.get("/api/v1/deployments", &[MANIFEST]).await.status, 200);
}

#[tokio::test]
async fn bad_svids_are_refused_in_the_handshake() {
    let (wfm, authority, caller) = start(|_| ()).await;
    let later = Duration::from_secs(3600);
    for flaw in Flaw::ALL {
        let svid = authority.client_svid(wfm.id(), "gateway-7", later, flaw).unwrap();
        let bad = Caller { svid: Some(svid), ..caller.clone() };
        let reply = bad.call("GET", "/api/v1/deployments", &[MANIFEST], b"").await;
        if matches!(flaw, Flaw::WrongWfm | Flaw::OtherCase) {
            // A member of the trust domain, but not ours.
            assert_eq!(reply.unwrap().problem(), (403, "not-authorized".to_owned()), "{flaw:?}");
        } else {
            assert!(reply.is_err(), "{flaw:?}: {reply:?}");
        }
    }
    let nobody = Caller { svid: None, ..caller.clone() };
    assert!(nobody.call("GET", "/api/v1/deployments", &[MANIFEST], b"").await.is_err());
    let failed = wfm.with(|seen| seen.handshakes_failed);
    assert_eq!(failed, Flaw::ALL.len() as u64 - 2 + 1, "{:?}", wfm.records().notes());
    assert_eq!(caller.get("/api/v1/deployments", &[MANIFEST]).await.status, 200);
}

#[tokio::test]
async fn tls_1_2_is_an_explicit_choice() {
    let (_wfm, _, caller) = start(|_| ()).await;
    let old = Caller { versions: &TLS12, ..caller };
    assert!(old.call("GET", "/api/v1/deployments", &[MANIFEST], b"").await.is_err());
    let (_wfm, _, caller) = start(|options| options.tls = TlsVersions::Tls12).await;
    let old = Caller { versions: &TLS12, ..caller };
    assert_eq!(old.get("/api/v1/deployments", &[MANIFEST]).await.status, 200);
}

#[tokio::test]
async fn roots_rotate_while_it_runs() {
    let (wfm, authority, before) = start(|_| ()).await;
    assert_eq!(authority.sequence(), 1);
    authority.add_root().unwrap();
    assert_eq!(authority.bundle()["keys"].as_array().unwrap().len(), 3, "two roots and a key for JWTs");
    let after = Caller::client(&wfm, &authority, "gateway-7");
    for caller in [&before, &after] {
        assert_eq!(caller.get("/api/v1/deployments", &[MANIFEST]).await.status, 200);
    }
    authority.retire_old_roots();
    assert_eq!(authority.sequence(), 3);
    assert!(before.call("GET", "/api/v1/deployments", &[MANIFEST], b"").await.is_err());
    assert_eq!(after.get("/api/v1/deployments", &[MANIFEST]).await.status, 200);

    // The served SVID changes for new connections.
    wfm.serve(Flaw::None).unwrap();
    after.get("/api/v1/deployments", &[MANIFEST]).await;
    let seen = after.seen.lock().unwrap().clone();
    assert_ne!(seen[seen.len() - 1], seen[seen.len() - 2]);
    assert_eq!(wfm.count(Op::Manifest, 200), 4);
}

#[tokio::test]
async fn a_certificate_from_a_request_is_as_good_as_any() {
    let (wfm, authority, caller) = start(|_| ()).await;
    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let id = authority.client_id(wfm.id(), "gateway-8");
    let chain = authority.sign_request(&request, &id, Duration::from_secs(600)).unwrap();
    assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 2);
    let ders: Vec<_> = x509_parser::pem::Pem::iter_from_buffer(chain.as_bytes())
        .map(|pem| rustls::pki_types::CertificateDer::from(pem.unwrap().contents))
        .collect();
    let mut svid = caller.svid.clone().unwrap();
    svid.chain = ders;
    svid.key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let reply = Caller { svid: Some(svid), ..caller }.get("/api/v1/deployments", &[MANIFEST]).await;
    assert_eq!(reply.status, 200);
    assert!(wfm.with(|seen| seen.clients.contains_key("gateway-8")));
}

#[tokio::test]
async fn a_status_may_still_be_about_the_content_before() {
    let (wfm, _, caller) = start(|_| ()).await;
    report(&caller, "gw").await;
    report(&caller, "gw/mixer").await;
    let deployment = recipe("gw/mixer");
    let id = wfm.deploy(deployment.clone()).unwrap();
    caller.get("/api/v1/deployments", &[MANIFEST]).await;
    wfm.deploy(Deployment { components: Vec::new(), ..deployment }.component("other", "oci://r.example/x", "2.0.0"))
        .unwrap();
    let path = format!("/api/v1/deployments/{id}/status");
    assert_eq!(caller.send("POST", &path, &status(&id, "gw/mixer", 2, "installed")).await.status, 201);
    let mut wrong = status(&id, "gw/mixer", 2, "installed");
    wrong["components"][0]["name"] = json!("neither");
    assert_eq!(caller.send("POST", &path, &wrong).await.status, 422);
    // A version that this client was never given.
    assert_eq!(caller.send("POST", &path, &status(&id, "gw/mixer", 3, "installed")).await.status, 422);
    let manifest = caller.get("/api/v1/deployments", &[MANIFEST]).await.json();
    assert_eq!(manifest["manifestVersion"], 3);
    let mut new = status(&id, "gw/mixer", 3, "installed");
    new["components"][0]["name"] = json!("other");
    assert_eq!(caller.send("POST", &path, &new).await.status, 200);
    assert_eq!(wfm.with(|seen| seen.latest(&id).len()), 1);
}

#[tokio::test]
async fn a_fleet_manager_restored_from_a_backup_has_forgotten_devices() {
    let (wfm, authority, caller) = start(|_| ()).await;
    report(&caller, "gw").await;
    report(&caller, "gw/mixer").await;
    let id = wfm.deploy(recipe("gw/mixer")).unwrap();
    wfm.forget_devices();
    let early = caller.send("PUT", "/api/v1/capabilities/gw/mixer", &capabilities("gw/mixer")).await;
    assert_eq!(early.problem(), (404, "gateway-not-found".to_owned()));
    let manifest = caller.get("/api/v1/deployments", &[MANIFEST]).await.json();
    assert_eq!(manifest["deployments"][0]["deploymentId"], id, "what is wanted is not forgotten");
    // Every connection ends; the next is welcome.
    wfm.disconnect().await.unwrap();
    authority.renew_intermediate().unwrap();
    let renewed = Caller::client(&wfm, &authority, "gateway-7");
    assert_eq!(renewed.get("/api/v1/deployments", &[MANIFEST]).await.status, 200);
    let client = wfm.with(|seen| seen.clients["gateway-7"].clone());
    assert_eq!(client.identity, "spiffe://plant.example/margo/wfm/wfm-1/client/gateway-7");
}

#[tokio::test]
async fn openssl_agrees_that_the_chains_hold() {
    let authority = Authority::new("plant.example").unwrap();
    let folder = std::env::temp_dir().join(format!("fieldgate-svid-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let verified = |flaw: Flaw| {
        let svid = authority.client_svid("wfm-1", "gateway-7", Duration::from_secs(600), flaw).unwrap();
        std::fs::write(folder.join("chain.pem"), &svid.chain_pem).unwrap();
        std::fs::write(folder.join("roots.pem"), authority.roots_pem()).unwrap();
        let mut openssl = std::process::Command::new("openssl");
        openssl.current_dir(&folder).args(["verify", "-CAfile", "roots.pem", "-untrusted", "chain.pem", "chain.pem"]);
        openssl.output().expect("openssl is installed").status.success()
    };
    let held: Vec<bool> =
        [Flaw::None, Flaw::Expired, Flaw::NotYetValid, Flaw::Stranger, Flaw::NoIntermediate].map(verified).into();
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(held, [true, false, false, false, false]);
}

#[tokio::test]
async fn a_target_may_be_every_child_and_each_reports_for_itself() {
    let (wfm, _, caller) = start(|_| ()).await;
    let id = wfm.deploy(recipe("gw/*")).unwrap();
    assert_eq!(caller.get("/api/v1/deployments", &[MANIFEST]).await.json()["manifestVersion"], 1, "whose is it?");
    for device in ["gw", "gw/a", "gw/b"] {
        report(&caller, device).await;
    }
    let manifest = caller.get("/api/v1/deployments", &[MANIFEST]).await.json();
    let yaml = caller.get(manifest["deployments"][0]["url"].as_str().unwrap(), &[]).await.body;
    assert!(String::from_utf8(yaml).unwrap().contains("deviceId: \"gw/*\""));
    let path = format!("/api/v1/deployments/{id}/status");
    assert_eq!(caller.send("POST", &path, &status(&id, "gw/a", 2, "installed")).await.status, 201);
    assert_eq!(caller.send("POST", &path, &status(&id, "gw/b", 2, "installing")).await.status, 201);
    let states = wfm.with(|seen| seen.latest(&id).iter().map(|one| one.state.clone()).collect::<Vec<_>>());
    assert_eq!(states, ["installed", "installing"]);
    let elsewhere = caller.send("POST", &path, &status(&id, "other/a", 2, "installed")).await;
    assert_eq!(elsewhere.status, 422);
}
