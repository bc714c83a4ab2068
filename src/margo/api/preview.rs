//! The older interface (preview release 1): onboarding gives a `clientId`, requests are signed (RFC 9421).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::rc3::{artifact, conditional};
use super::request::{Base, Method, Request, UrlError};
use super::sign::{RequestSigner, SignError};
use super::status::DeploymentStatus;
use super::{ArtifactRef, BUNDLE_TYPE, Dialect, MANIFEST_TYPE, MAX_ANSWER, MAX_BUNDLE, MAX_DEPLOYMENT, MAX_MANIFEST};
use crate::margo::capabilities::{DeviceCapabilities, Hosting};
use crate::margo::words::DevicePath;
use crate::model::is_unreserved;

/// The older generation.
#[derive(Debug)]
pub struct Preview {
    base: Base,
    client: String,
    signer: RequestSigner,
}

impl Preview {
    /// Towards the fleet manager at `base`, as `client` that onboarding gave, signing with `signer`.
    pub fn new(base: Base, client: String, signer: RequestSigner) -> Self {
        Self { base, client, signer }
    }

    /// The id that onboarding gave.
    pub fn client(&self) -> &str {
        &self.client
    }

    fn path(&self, path: &str) -> String {
        self.base.join(&format!("/api/v1/clients/{}/{path}", self.client))
    }
}

/// The onboarding call.
pub fn onboard_request(base: &Base, certificate_pem: &str) -> Request {
    let body = json!({
        "apiVersion": "onboarding.margo.org/v1alpha1",
        "kind": "OnboardingRequest",
        "certificate": STANDARD.encode(certificate_pem),
    });
    Request::new(Method::Post, base.join("/api/v1/onboarding"), MAX_ANSWER).json(super::json(&body))
}

/// The `clientId` of the answer; `None` when it has none that can stand in a path.
pub fn parse_onboarded(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let client = ["clientId", "client_id", "id"].iter().find_map(|name| value.get(name)?.as_str())?;
    let legal =
        !client.is_empty() && client.len() <= 200 && client.chars().all(is_unreserved) && !client.starts_with('.');
    legal.then(|| client.to_owned())
}

impl Dialect for Preview {
    fn report(&self, device: &DeviceCapabilities, first: bool) -> Request {
        let mut body = device.to_json();
        body["apiVersion"] = "device.margo.org/v1alpha1".into();
        body["kind"] = "DeviceCapabilitiesManifest".into();
        // Servers of that time want these two whatever the device is.
        let properties = &mut body["properties"];
        let (role, resources) = match &device.hosting {
            Some(hosting) => ("Standalone Device", resources(hosting)),
            None => ("Gateway Child", json!({})),
        };
        properties["roles"] = json!([role]);
        properties["resources"] = resources;
        let method = if first { Method::Post } else { Method::Put };
        Request::new(method, self.path(&format!("capabilities/{}", device.id)), MAX_ANSWER).json(super::json(&body))
    }

    fn forget(&self, device: &DevicePath) -> Request {
        Request::new(Method::Delete, self.path(&format!("capabilities/{device}")), MAX_ANSWER)
            .with("accept", "application/json")
    }

    fn deployments(&self, etag: Option<&str>) -> Request {
        let request = Request::new(Method::Get, self.path("deployments"), MAX_MANIFEST).with("accept", MANIFEST_TYPE);
        conditional(request, etag)
    }

    fn artifact(&self, which: ArtifactRef<'_>) -> Result<Request, UrlError> {
        let (path, url, limit, accept) = match which {
            ArtifactRef::Bundle { digest, url } => (format!("bundles/{digest}"), url, MAX_BUNDLE, BUNDLE_TYPE),
            ArtifactRef::Deployment { id, digest, url } => {
                (format!("deployments/{id}/{digest}"), url, MAX_DEPLOYMENT, "application/yaml")
            }
        };
        // A url without the client is of the newer form and leads nowhere on such a server.
        let usable = url.contains(&format!("/clients/{}/", self.client));
        let address = if usable { self.base.resolve(url)? } else { self.path(&path) };
        Ok(artifact(address, limit, accept))
    }

    fn status(&self, status: &DeploymentStatus) -> Request {
        let mut body = status.to_json();
        body["apiVersion"] = "deployment.margo.org/v1alpha1".into();
        body["kind"] = "DeploymentStatusManifest".into();
        let path = self.path(&format!("deployments/{}/status", status.deployment_id));
        Request::new(Method::Post, path, MAX_ANSWER).json(super::json(&body))
    }

    fn seal(&self, request: Request, now: i64) -> Result<Request, SignError> {
        self.signer.sign(request, now)
    }
}

fn resources(hosting: &Hosting) -> serde_json::Value {
    let cores: f64 = hosting.cpus.iter().map(|cpu| cpu.cores).sum();
    let architecture = hosting.cpus.first().map_or("amd64", |cpu| cpu.architecture.as_str());
    json!({
        "cpu": { "cores": cores, "architecture": architecture },
        "memory": hosting.memory,
        "storage": hosting.storage,
        "peripherals": hosting.peripherals_json(),
        "interfaces": hosting.interfaces_json(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::sign::tests::p256;
    use super::super::status::tests::example;
    use super::*;
    use crate::margo::capabilities::tests::child;
    use crate::margo::words::Digest;

    fn preview() -> Preview {
        Preview::new(Base::new("https://wfm.example").unwrap(), "c-1".to_owned(), p256().1)
    }

    #[test]
    fn every_path_stands_below_the_client_and_bodies_carry_version_and_kind() {
        let first = preview().report(&child(), true);
        assert_eq!(
            (first.method, first.url.as_str()),
            (Method::Post, "https://wfm.example/api/v1/clients/c-1/capabilities/gw/pump-1")
        );
        let again = preview().report(&child(), false);
        assert_eq!(
            (again.method, again.url.as_str()),
            (Method::Put, "https://wfm.example/api/v1/clients/c-1/capabilities/gw/pump-1")
        );
        let body: serde_json::Value = serde_json::from_slice(again.body.as_ref().unwrap()).unwrap();
        assert_eq!(
            (&body["apiVersion"], &body["kind"]),
            (&json!("device.margo.org/v1alpha1"), &json!("DeviceCapabilitiesManifest"))
        );
        assert!(body["properties"]["roles"].is_array() && body["properties"]["resources"].is_object());
        let status = preview().status(&example());
        assert!(status.url.starts_with("https://wfm.example/api/v1/clients/c-1/deployments/"));
        assert!(preview().deployments(None).url.ends_with("/clients/c-1/deployments"));
        let digest = Digest::of(b"x");
        let bundle = preview().artifact(ArtifactRef::Bundle { digest: &digest, url: "/api/v1/bundles/x" }).unwrap();
        assert_eq!(bundle.url, format!("https://wfm.example/api/v1/clients/c-1/bundles/{digest}"));
    }

    #[test]
    fn onboarding_sends_the_certificate_and_takes_the_client_id() {
        let request = onboard_request(&Base::new("https://wfm.example/p").unwrap(), "-----BEGIN…");
        assert_eq!(request.url, "https://wfm.example/p/api/v1/onboarding");
        let body: serde_json::Value = serde_json::from_slice(request.body.as_ref().unwrap()).unwrap();
        assert_eq!(STANDARD.decode(body["certificate"].as_str().unwrap()).unwrap(), "-----BEGIN…".as_bytes());
        assert_eq!(parse_onboarded(br#"{"clientId":"c-1","x":2}"#).as_deref(), Some("c-1"));
        for bad in [&br#"{"clientId":"../x"}"#[..], br#"{"clientId":""}"#, b"{}", b"", br#"{"clientId":"a/b"}"#] {
            assert_eq!(parse_onboarded(bad), None);
        }
    }
}
