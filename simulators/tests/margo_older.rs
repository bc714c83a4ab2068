//! The simulated fleet manager's older interface: onboarding, client paths and signed requests.
#![cfg(feature = "margo")]
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod margo_support;

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fieldgate_simulators::margo::{Authority, Deployment, Generation, Wfm, WfmOptions};
use margo_support::{Caller, MANIFEST, Reply};
use rcgen::{CertificateParams, KeyPair};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA512,
    RsaKeyPair,
};
use serde_json::{Value, json};

/// What a client signs with.
enum Key {
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl Key {
    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Ecdsa(key) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                let pss = algorithm == "rsa-pss-sha512";
                let padding: &dyn ring::signature::RsaEncoding = if pss { &RSA_PSS_SHA512 } else { &RSA_PKCS1_SHA256 };
                key.sign(padding, &random, message, &mut signature).unwrap();
                signature
            }
        }
    }
}

/// A client with its key.
struct Signer {
    caller: Caller,
    key: Key,
    key_id: String,
    algorithm: &'static str,
    certificate: String,
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().to_vec()
}

#[allow(clippy::disallowed_methods, reason = "a signature carries the real time")]
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

impl Signer {
    fn new(wfm: &Wfm, algorithm: &'static str) -> Self {
        if algorithm.starts_with("rsa") {
            return Self::rsa(wfm, algorithm);
        }
        let p384 = algorithm == "ecdsa-p384-sha384";
        let (kind, signing) = if p384 {
            (&rcgen::PKCS_ECDSA_P384_SHA384, &ECDSA_P384_SHA384_FIXED_SIGNING)
        } else {
            (&rcgen::PKCS_ECDSA_P256_SHA256, &ECDSA_P256_SHA256_FIXED_SIGNING)
        };
        let pair = KeyPair::generate_for(kind).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(signing, &pair.serialize_der(), &SystemRandom::new()).unwrap();
        Self::with(wfm, &pair, Key::Ecdsa(key), algorithm)
    }

    /// An RSA key comes from openssl: the library at hand makes none.
    fn rsa(wfm: &Wfm, algorithm: &'static str) -> Self {
        let arguments = ["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"];
        let made = std::process::Command::new("openssl").args(arguments).output().expect("openssl is installed");
        let pem = String::from_utf8(made.stdout).unwrap();
        let pair = KeyPair::from_pkcs8_pem_and_sign_algo(&pem, &rcgen::PKCS_RSA_SHA256).unwrap();
        let key = RsaKeyPair::from_pkcs8(&pair.serialize_der()).unwrap();
        Self::with(wfm, &pair, Key::Rsa(key), algorithm)
    }

    fn with(wfm: &Wfm, pair: &KeyPair, key: Key, algorithm: &'static str) -> Self {
        let certificate = CertificateParams::new(["gateway".to_owned()]).unwrap().self_signed(pair).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate.der()).unwrap();
        let key_id = sha256(parsed.public_key().raw).iter().map(|byte| format!("{byte:02x}")).collect();
        let caller = Caller::stranger(wfm.address());
        Self { caller, key, key_id, algorithm, certificate: certificate.pem() }
    }

    async fn onboard(&self) -> Reply {
        let request = json!({
            "apiVersion": "onboarding.margo.org/v1alpha1", "kind": "OnboardingRequest",
            "certificate": STANDARD.encode(&self.certificate),
        });
        self.caller.send("POST", "/api/v1/onboarding", &request).await
    }

    /// A signed call; `spoil` may change the headers afterwards.
    async fn call(
        &self,
        method: &str,
        path: &str,
        body: &[u8],
        created: u64,
        spoil: impl Fn(&mut Vec<(String, String)>),
    ) -> Reply {
        let authority = self.caller.address.to_string();
        let digest = format!("sha-256=:{}:", STANDARD.encode(sha256(body)));
        let mut covered = vec![
            ("@method", method.to_owned()),
            ("@target-uri", format!("https://{authority}{path}")),
            ("@authority", authority),
        ];
        if !body.is_empty() {
            covered.push(("content-digest", digest.clone()));
        }
        let names: Vec<String> = covered.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let (key_id, algorithm) = (&self.key_id, self.algorithm);
        let parameters = format!("({});created={created};keyid=\"{key_id}\";alg=\"{algorithm}\"", names.join(" "));
        let mut base: String = covered.iter().map(|(name, value)| format!("\"{name}\": {value}\n")).collect();
        base += &format!("\"@signature-params\": {parameters}");
        let signature = self.key.sign(algorithm, base.as_bytes());
        let mut headers = vec![
            ("Signature-Input".to_owned(), format!("sig1={parameters}")),
            ("Signature".to_owned(), format!("sig1=:{}:", STANDARD.encode(signature))),
            ("Content-Type".to_owned(), "application/json".to_owned()),
            (MANIFEST.0.to_owned(), MANIFEST.1.to_owned()),
        ];
        if !body.is_empty() {
            headers.push(("Content-Digest".to_owned(), digest));
        }
        spoil(&mut headers);
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        self.caller.call(method, path, &headers, body).await.unwrap()
    }

    async fn signed(&self, method: &str, path: &str, body: &Value) -> Reply {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.call(method, path, body.as_bytes(), now(), |_| ()).await
    }
}

async fn start(change: impl FnOnce(&mut WfmOptions)) -> Wfm {
    let mut options = WfmOptions::new(Authority::new("plant.example").unwrap());
    options.generation = Generation::Older;
    change(&mut options);
    Wfm::start(options).await.unwrap()
}

fn device(id: &str) -> Value {
    json!({
        "apiVersion": "device.margo.org/v1alpha1", "kind": "DeviceCapabilitiesManifest",
        "properties": { "id": id, "vendor": "V", "modelNumber": "M", "serialNumber": "S", "roles": ["standalone device"] },
    })
}

#[tokio::test]
async fn a_client_joins_reports_and_runs_a_deployment() {
    let wfm = start(|_| ()).await;
    for algorithm in ["ecdsa-p256-sha256", "ecdsa-p384-sha384", "rsa-pss-sha512", "rsa-v1_5-sha256"] {
        let signer = Signer::new(&wfm, algorithm);
        let certificate = signer.caller.get("/api/v1/onboarding/certificate", &[]).await.json();
        assert!(certificate["certificate"].as_str().unwrap().contains("BEGIN CERTIFICATE"));
        let joined = signer.onboard().await;
        assert_eq!(joined.status, 201);
        let client = joined.json()["clientId"].as_str().unwrap().to_owned();
        assert_eq!(signer.onboard().await.json()["clientId"], client, "the same key is the same client");

        let base = format!("/api/v1/clients/{client}");
        let id = format!("gw-{algorithm}");
        assert_eq!(signer.signed("POST", &format!("{base}/capabilities"), &device(&id)).await.status, 201);
        assert_eq!(signer.signed("PUT", &format!("{base}/capabilities/{id}"), &device(&id)).await.status, 201);
        let deployment = wfm.deploy(Deployment::custom(&id, "app").component("c", "oci://r/x", "1.0.0")).unwrap();
        let manifest = signer.signed("GET", &format!("{base}/deployments"), &Value::Null).await.json();
        let url = manifest["deployments"][0]["url"].as_str().unwrap();
        assert!(url.starts_with(&base), "{url}");
        let yaml = signer.signed("GET", url, &Value::Null).await;
        assert_eq!(yaml.status, 200);
        let bundle = signer.signed("GET", manifest["bundle"]["url"].as_str().unwrap(), &Value::Null).await;
        assert_eq!(bundle.status, 200);
        let status = json!({
            "apiVersion": "deployment.margo.org/v1alpha1", "kind": "DeploymentStatusManifest",
            "deploymentId": deployment, "status": { "state": "installed" },
            "components": [{ "name": "c", "state": "installed" }],
        });
        let path = format!("{base}/deployments/{deployment}/status");
        assert_eq!(signer.signed("POST", &path, &status).await.status, 201);
        assert_eq!(wfm.with(|seen| seen.state(&deployment).map(str::to_owned)).unwrap(), "installed");
        let gone = signer.signed("DELETE", &format!("{base}/capabilities/{id}"), &Value::Null).await;
        assert_eq!(gone.status, 204);
    }
    assert_eq!(wfm.with(|seen| seen.clients.len()), 4);
}

#[tokio::test]
async fn requests_that_are_not_the_clients_are_refused() {
    let wfm = start(|_| ()).await;
    let signer = Signer::new(&wfm, "ecdsa-p256-sha256");
    let client = signer.onboard().await.json()["clientId"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/clients/{client}/capabilities/gw");
    let body = device("gw").to_string();
    let drop_header =
        |name: &'static str| move |headers: &mut Vec<(String, String)>| headers.retain(|(key, _)| key != name);

    let unsigned = signer.call("PUT", &path, body.as_bytes(), now(), drop_header("Signature")).await;
    assert_eq!(unsigned.status, 401);
    let undigested = signer.call("PUT", &path, body.as_bytes(), now(), drop_header("Content-Digest")).await;
    assert_eq!(undigested.status, 400);
    let other = |headers: &mut Vec<(String, String)>| {
        for (key, value) in headers {
            if key == "Content-Digest" {
                *value = format!("sha-256=:{}:", STANDARD.encode(sha256(b"another body")));
            }
        }
    };
    assert_eq!(signer.call("PUT", &path, body.as_bytes(), now(), other).await.status, 400);
    assert_eq!(signer.call("PUT", &path, body.as_bytes(), now() - 3600, |_| ()).await.status, 401);

    // A parameter that was changed after signing.
    let moved = |headers: &mut Vec<(String, String)>| {
        for (key, value) in headers {
            if key == "Signature-Input" {
                *value = value.replace("ecdsa-p256-sha256\"", "ecdsa-p256-sha256\";nonce=\"x\"");
            }
        }
    };
    assert_eq!(signer.call("PUT", &path, body.as_bytes(), now(), moved).await.status, 401);
    let stranger = Signer::new(&wfm, "ecdsa-p256-sha256");
    assert_eq!(stranger.call("PUT", &path, body.as_bytes(), now(), |_| ()).await.status, 401);
    let unknown = "/api/v1/clients/nobody/capabilities/gw";
    assert_eq!(signer.call("PUT", unknown, body.as_bytes(), now(), |_| ()).await.status, 404);
    assert_eq!(signer.call("PUT", &path, body.as_bytes(), now(), |_| ()).await.status, 201);
}

#[tokio::test]
async fn onboarding_may_be_refused() {
    let wfm = start(|options| options.reject_onboarding = true).await;
    let signer = Signer::new(&wfm, "ecdsa-p256-sha256");
    assert_eq!(signer.onboard().await.status, 403);
    for wrong in [
        json!({}),
        json!({ "apiVersion": "onboarding.margo.org/v1alpha1", "kind": "OnboardingRequest", "certificate": "AAAA" }),
    ] {
        assert_eq!(signer.caller.send("POST", "/api/v1/onboarding", &wrong).await.status, 400);
    }
    let lenient = start(|options| options.unsigned_status = 400).await;
    let signer = Signer::new(&lenient, "ecdsa-p256-sha256");
    let client = signer.onboard().await.json()["clientId"].as_str().unwrap().to_owned();
    let reply = signer.caller.get(&format!("/api/v1/clients/{client}/deployments"), &[MANIFEST]).await;
    assert_eq!(reply.status, 400);
}
