//! The simulated discovery server, OCI registry, page and control API.
#![cfg(feature = "margo")]
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod margo_support;

use std::io::ErrorKind;
use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fieldgate_simulators::margo::{
    Authority, Discovery, DiscoveryFault, Down, Layer, OciRegistry, RegistryFault, RegistryOptions, Scenario, Site,
    Times, WebCertificate,
};
use margo_support::{Caller, MANIFEST, report};
use serde_json::{Value, json};

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[tokio::test]
async fn discovery_leads_to_the_bundle() {
    let authority = Authority::new("plant.example").unwrap();
    let server = Discovery::start(any_port(), authority.clone()).await.unwrap();
    let caller = Caller::stranger(server.address());
    let found = caller.get("/.well-known/margo", &[]).await.json();
    assert_eq!(found["trustDomain"], "plant.example");
    let uri = found["trustBundleUri"].as_str().unwrap();
    assert!(uri.starts_with("https://") && uri.ends_with("/bundle"), "{uri}");
    let bundle = caller.get("/bundle", &[]).await.json();
    assert_eq!((&bundle["spiffe_sequence"], &bundle["spiffe_refresh_hint"]), (&json!(1), &json!(300)));
    let key = &bundle["keys"][0];
    assert_eq!((&key["use"], &key["kty"], &key["crv"]), (&json!("x509-svid"), &json!("EC"), &json!("P-256")));
    let der = STANDARD.decode(key["x5c"][0].as_str().unwrap()).unwrap();
    let (_, root) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert!(root.is_ca());
    authority.add_root().unwrap();
    assert_eq!(caller.get("/bundle", &[]).await.json()["spiffe_sequence"], 2);
}

#[tokio::test]
async fn discovery_can_be_spoilt() {
    let server = Discovery::start(any_port(), Authority::new("plant.example").unwrap()).await.unwrap();
    let caller = Caller::stranger(server.address());
    let spoilt = async |fault: DiscoveryFault, path: &str| {
        server.inject(Times::only(fault, 1));
        caller.get(path, &[]).await
    };
    assert_eq!(spoilt(DiscoveryFault::LowerSequence, "/bundle").await.json()["spiffe_sequence"], 0);
    assert_eq!(spoilt(DiscoveryFault::Empty, "/bundle").await.json()["keys"], json!([]));
    let only_jwt = spoilt(DiscoveryFault::OnlyJwt, "/bundle").await.json();
    assert_eq!(only_jwt["keys"].as_array().unwrap().len(), 1);
    assert!(serde_json::from_slice::<Value>(&spoilt(DiscoveryFault::Garbage, "/bundle").await.body).is_err());
    assert_eq!(spoilt(DiscoveryFault::Bare, "/bundle").await.json().as_object().unwrap().len(), 1);
    assert_eq!(spoilt(DiscoveryFault::BadKey, "/bundle").await.json()["keys"][0]["x5c"], json!(["AAAA"]));
    assert!(spoilt(DiscoveryFault::Huge { mebibytes: 3 }, "/bundle").await.body.len() > 3 << 20);
    let plain = spoilt(DiscoveryFault::PlainHttp, "/.well-known/margo").await.json();
    assert!(plain["trustBundleUri"].as_str().unwrap().starts_with("http://"));
    let other = spoilt(DiscoveryFault::OtherDomain, "/.well-known/margo").await.json();
    assert_eq!(other["trustDomain"], "elsewhere.example");
    assert_eq!(spoilt(DiscoveryFault::Status { status: 503 }, "/bundle").await.status, 503);
    assert_eq!(caller.get("/bundle", &[]).await.json()["spiffe_sequence"], 1);

    let pin = server.pin();
    for certificate in [WebCertificate::OtherName, WebCertificate::Stranger, WebCertificate::Right] {
        server.serve(certificate).unwrap();
        assert_ne!(server.pin(), pin);
        assert_eq!(caller.get("/bundle", &[]).await.status, 200);
    }
    server.set_down(Down::Refused).await.unwrap();
    let refused = caller.call("GET", "/bundle", &[], b"").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    server.set_down(Down::Up).await.unwrap();
    assert_eq!(caller.get("/bundle", &[]).await.status, 200);
}

fn layer(title: &str, content: &[u8]) -> Layer {
    Layer { media_type: "application/json".to_owned(), title: title.to_owned(), content: content.to_vec() }
}

async fn registry(credentials: Option<(&str, &str)>) -> (OciRegistry, Caller, String) {
    let credentials = credentials.map(|(user, password)| (user.to_owned(), password.to_owned()));
    let registry = OciRegistry::start(RegistryOptions { credentials, ..RegistryOptions::default() }).await.unwrap();
    let layers = [layer("recipe.json", b"{\"values\":{}}"), layer("", b"second")];
    let digest = registry.push("plant/recipes", "1.0.0", "application/vnd.example.recipe", &layers);
    let caller = Caller::stranger(registry.address());
    (registry, caller, digest)
}

#[tokio::test]
async fn an_artifact_is_pulled_by_tag_and_by_digest() {
    let (_registry, caller, digest) = registry(None).await;
    let get = async |path: &str| caller.plain("GET", path, &[], b"").await.unwrap();
    assert_eq!(get("/v2/").await.status, 200);
    let by_tag = get("/v2/plant/recipes/manifests/1.0.0").await;
    assert_eq!(by_tag.header("docker-content-digest"), Some(digest.as_str()));
    assert_eq!(sha256(&by_tag.body), digest);
    assert_eq!(get(&format!("/v2/plant/recipes/manifests/{digest}")).await.body, by_tag.body);
    let manifest = by_tag.json();
    assert_eq!(manifest["artifactType"], "application/vnd.example.recipe");
    assert_eq!(manifest["layers"][0]["annotations"]["org.opencontainers.image.title"], "recipe.json");
    for named in [&manifest["config"], &manifest["layers"][0], &manifest["layers"][1]] {
        let blob = get(&format!("/v2/plant/recipes/blobs/{}", named["digest"].as_str().unwrap())).await;
        assert_eq!(
            (sha256(&blob.body), json!(blob.body.len())),
            (named["digest"].as_str().unwrap().to_owned(), named["size"].clone())
        );
    }
    assert_eq!(get("/v2/plant/recipes/tags/list").await.json()["tags"], json!(["1.0.0"]));
    let head = caller.plain("HEAD", "/v2/plant/recipes/manifests/1.0.0", &[], b"").await.unwrap();
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), Some(by_tag.body.len().to_string().as_str()));
    for missing in ["/v2/other/manifests/1", "/v2/plant/recipes/manifests/2", "/v2/plant/recipes/blobs/sha256:0"] {
        assert_eq!(get(missing).await.status, 404, "{missing}");
    }
    assert_eq!(caller.plain("PUT", "/v2/x/manifests/1", &[], b"{}").await.unwrap().status, 405);
}

#[tokio::test]
async fn a_registry_may_want_a_token() {
    let (registry, caller, _) = registry(Some(("reader", "secret"))).await;
    let path = "/v2/plant/recipes/manifests/1.0.0";
    let refused = caller.plain("GET", path, &[], b"").await.unwrap();
    assert_eq!(refused.status, 401);
    let challenge = refused.header("www-authenticate").unwrap();
    assert!(challenge.contains("/token\"") && challenge.contains("repository:plant/recipes:pull"), "{challenge}");
    let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
    let wrong = caller.plain("GET", "/token", &[("Authorization", &basic("reader:guess"))], b"").await.unwrap();
    assert_eq!(wrong.status, 401);
    let token =
        caller.plain("GET", "/token?service=x", &[("Authorization", &basic("reader:secret"))], b"").await.unwrap();
    let bearer = format!("Bearer {}", token.json()["token"].as_str().unwrap());
    let with_token = [("Authorization", bearer.as_str())];
    assert_eq!(caller.plain("GET", path, &with_token, b"").await.unwrap().status, 200);
    registry.inject(Times::only(RegistryFault::TokenRefused, 1));
    assert_eq!(caller.plain("GET", path, &with_token, b"").await.unwrap().status, 401);
    assert_eq!(caller.plain("GET", path, &with_token, b"").await.unwrap().status, 200);
}

#[tokio::test]
async fn pulls_can_be_spoilt() {
    let (registry, caller, digest) = registry(None).await;
    let content = b"{\"values\":{}}";
    let blob = format!("/v2/plant/recipes/blobs/{}", sha256(content));
    let manifest = format!("/v2/plant/recipes/manifests/{digest}");
    let spoilt = async |fault: RegistryFault, path: &str| {
        registry.inject(Times::only(fault, 1));
        caller.plain("GET", path, &[], b"").await
    };
    let wrong = spoilt(RegistryFault::WrongBlob, &blob).await.unwrap();
    assert_eq!((wrong.status, wrong.body.len(), wrong.body == content), (200, content.len(), false));
    assert_ne!(sha256(&spoilt(RegistryFault::WrongManifest, &manifest).await.unwrap().body), digest);
    assert_eq!(spoilt(RegistryFault::BlobMissing, &blob).await.unwrap().status, 404);
    assert_eq!(spoilt(RegistryFault::ManifestMissing, &manifest).await.unwrap().status, 404);
    if let Ok(short) = spoilt(RegistryFault::Truncate { bytes: 3 }, &blob).await {
        assert!(!short.complete, "{} bytes", short.body.len());
    }
    let slow = spoilt(RegistryFault::Dribble { bytes: 1, every_ms: 1 }, &blob).await.unwrap();
    assert_eq!(slow.body, content);
    let busy = spoilt(RegistryFault::Status { status: 429, retry_after: Some(2) }, &manifest).await.unwrap();
    assert_eq!((busy.status, busy.header("retry-after")), (429, Some("2")));
    assert_eq!(caller.plain("GET", &blob, &[], b"").await.unwrap().body, content);
    assert_eq!(registry.log().len(), 8);
}

#[tokio::test]
async fn the_page_and_the_control_api_drive_everything() {
    let scenario = Scenario::parse("built in", Scenario::built_in_text()).unwrap().on_free_ports();
    let site = Site::start(scenario).await.unwrap();
    let control = Caller::stranger(site.control());
    let post = async |path: &str, body: Value| {
        let json = [("Content-Type", "application/json")];
        control.plain("POST", path, &json, body.to_string().as_bytes()).await.unwrap()
    };
    let page = control.plain("GET", "/", &[], b"").await.unwrap();
    assert!(page.header("content-type").unwrap().starts_with("text/html"));

    let client = Caller::client(site.wfm(), site.authority(), "gateway");
    report(&client, "gateway").await;
    report(&client, "gateway/plc").await;
    let state = control.plain("GET", "/api/state", &[], b"").await.unwrap().json();
    assert_eq!(state["records"]["devices"]["gateway/plc"]["client"], "gateway");
    assert_eq!(state["records"]["clients"]["gateway"]["manifest_version"], 2, "the scenario's deployment");
    let wanted = state["records"]["deployments"].as_object().unwrap().values().next().unwrap().clone();
    assert!(wanted["document"]["yaml"].as_str().unwrap().contains(&format!("oci://{}/", site.registry().address())));

    let deployment = json!({ "target": "gateway/*", "component": [{ "name": "c", "repository": "oci://{registry}/x", "revision": "1" }] });
    let id = post("/api/deployments", deployment).await.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(client.get("/api/v1/deployments", &[MANIFEST]).await.json()["manifestVersion"], 3);
    assert_eq!(post("/api/deployments", json!({ "target": "gateway" })).await.status, 400);
    let removed = control.plain("DELETE", &format!("/api/deployments/{id}"), &[], b"").await.unwrap().json();
    assert_eq!(removed["removed"], true);

    assert_eq!(post("/api/faults", json!({ "fault": "retired" })).await.status, 200);
    assert_eq!(client.get("/api/v1/deployments", &[MANIFEST]).await.status, 403);
    control.plain("DELETE", "/api/faults", &[], b"").await.unwrap();
    assert_eq!(client.get("/api/v1/deployments", &[MANIFEST]).await.status, 200);
    assert_eq!(post("/api/faults", json!({ "fault": "no-such-fault" })).await.status, 422);
    assert_eq!(post("/api/faults", json!({ "fault": "retired", "tmies": 1 })).await.status, 422);

    assert_eq!(post("/api/down", json!({ "down": "refused" })).await.status, 200);
    assert!(client.call("GET", "/api/v1/deployments", &[MANIFEST], b"").await.is_err());
    assert_eq!(post("/api/down", json!({ "down": "up" })).await.status, 200);
    assert_eq!(post("/api/serve", json!({ "flaw": "expired" })).await.status, 200);
    assert_eq!(post("/api/clients/gateway/retire", json!({ "retired": true })).await.json()["known"], true);
    assert_eq!(client.get("/api/v1/deployments", &[MANIFEST]).await.status, 403);
    let svid = post("/api/clients/other/svid", json!({})).await.json();
    assert!(svid["key"].as_str().unwrap().contains("PRIVATE KEY"));
    assert_eq!(post("/api/roots", json!({ "act": "add" })).await.json()["sequence"], 2);
    assert_eq!(post("/api/discovery/faults", json!({ "fault": "empty", "times": 1 })).await.status, 200);
    let bundle = Caller::stranger(site.discovery().address()).get("/bundle", &[]).await.json();
    assert_eq!(bundle["keys"], json!([]));
    let artifact =
        json!({ "name": "x", "tag": "1", "type": "t", "layers": [{ "media_type": "m", "text": "content" }] });
    let digest = post("/api/registry/artifacts", artifact).await.json()["digest"].as_str().unwrap().to_owned();
    let pulled = Caller::stranger(site.registry().address()).plain("GET", "/v2/x/manifests/1", &[], b"").await.unwrap();
    assert_eq!(sha256(&pulled.body), digest);
}

#[tokio::test]
async fn files_to_join_with_are_written() {
    let scenario = Scenario::parse("empty", "").unwrap();
    let site = Site::start(scenario).await.unwrap();
    let folder = std::env::temp_dir().join(format!("fieldgate-wfm-{}", std::process::id()));
    site.write_files(&folder, &["gateway".to_owned()], std::time::Duration::from_secs(60)).unwrap();
    for (name, begins) in [
        ("bundle.json", "{"),
        ("roots.pem", "-----BEGIN CERTIFICATE"),
        ("discovery-roots.pem", "-----BEGIN CERTIFICATE"),
        ("gateway.pem", "-----BEGIN CERTIFICATE"),
        ("gateway.key", "-----BEGIN PRIVATE KEY"),
    ] {
        assert!(std::fs::read_to_string(folder.join(name)).unwrap().starts_with(begins), "{name}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
