//! 1.0.0-rc.3: mutual TLS says who asks, so there are neither client ids nor signatures.

use super::request::{Base, Method, Request, UrlError};
use super::sign::SignError;
use super::status::DeploymentStatus;
use super::{
    ArtifactRef, BUNDLE_TYPE, Dialect, MANIFEST_TYPE, MAX_ANSWER, MAX_BUNDLE, MAX_DEPLOYMENT, MAX_MANIFEST, json,
};
use crate::margo::capabilities::DeviceCapabilities;
use crate::margo::words::DevicePath;

/// The newer generation.
#[derive(Debug, Clone)]
pub struct Rc3 {
    base: Base,
}

impl Rc3 {
    /// Towards the fleet manager at `base`.
    pub fn new(base: Base) -> Self {
        Self { base }
    }

    fn request(&self, method: Method, path: &str, limit: usize) -> Request {
        Request::new(method, self.base.join(&format!("/api/v1/{path}")), limit)
    }
}

impl Dialect for Rc3 {
    fn report(&self, device: &DeviceCapabilities, _: bool) -> Request {
        self.request(Method::Put, &format!("capabilities/{}", device.id), MAX_ANSWER).json(json(&device.to_json()))
    }

    fn forget(&self, device: &DevicePath) -> Request {
        self.request(Method::Delete, &format!("capabilities/{device}"), MAX_ANSWER).with("accept", "application/json")
    }

    fn deployments(&self, etag: Option<&str>) -> Request {
        conditional(self.request(Method::Get, "deployments", MAX_MANIFEST).with("accept", MANIFEST_TYPE), etag)
    }

    fn artifact(&self, which: ArtifactRef<'_>) -> Result<Request, UrlError> {
        let (path, url, limit, accept) = match which {
            ArtifactRef::Bundle { digest, url } => (format!("bundles/{digest}"), url, MAX_BUNDLE, BUNDLE_TYPE),
            ArtifactRef::Deployment { id, digest, url } => {
                (format!("deployments/{id}/{digest}"), url, MAX_DEPLOYMENT, "application/yaml")
            }
        };
        let address =
            if url.is_empty() { self.base.join(&format!("/api/v1/{path}")) } else { self.base.resolve(url)? };
        Ok(artifact(address, limit, accept))
    }

    fn status(&self, status: &DeploymentStatus) -> Request {
        let path = format!("deployments/{}/status", status.deployment_id);
        self.request(Method::Post, &path, MAX_ANSWER).json(json(&status.to_json()))
    }

    fn seal(&self, request: Request, _: i64) -> Result<Request, SignError> {
        Ok(request)
    }
}

pub(super) fn conditional(request: Request, etag: Option<&str>) -> Request {
    match etag {
        Some(etag) => request.with("if-none-match", etag),
        None => request,
    }
}

/// The digest is over the decoded body: a bundle is not encoded again, a deployment may be.
pub(super) fn artifact(url: String, limit: usize, accept: &str) -> Request {
    let encoding = if accept == BUNDLE_TYPE { "identity" } else { "gzip, identity" };
    Request::new(Method::Get, url, limit).with("accept", accept).with("accept-encoding", encoding)
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::example;
    use super::*;
    use crate::margo::capabilities::tests::child;
    use crate::margo::words::Digest;

    fn rc3() -> Rc3 {
        Rc3::new(Base::new("https://wfm.example/v1alpha2/margo").unwrap())
    }

    #[test]
    fn paths_carry_no_client_id_and_bodies_no_api_version() {
        let put = rc3().report(&child(), true);
        assert_eq!(
            (put.method, put.url.as_str()),
            (Method::Put, "https://wfm.example/v1alpha2/margo/api/v1/capabilities/gw/pump-1")
        );
        let body: serde_json::Value = serde_json::from_slice(put.body.as_ref().unwrap()).unwrap();
        assert!(body.get("apiVersion").is_none() && body.get("kind").is_none());
        let delete = rc3().forget(&DevicePath::new("gw/pump-1").unwrap());
        assert_eq!((delete.method, delete.body), (Method::Delete, None));
        let post = rc3().status(&example());
        assert!(post.url.ends_with(&format!("/api/v1/deployments/{}/status", example().deployment_id)));
        assert_eq!(rc3().seal(post.clone(), 0).unwrap(), post, "no signature");
    }

    #[test]
    fn the_accept_header_is_always_sent_and_the_etag_as_it_came() {
        let first = rc3().deployments(None);
        assert_eq!(first.header("accept"), Some(MANIFEST_TYPE));
        assert_eq!(first.header("if-none-match"), None);
        let next = rc3().deployments(Some("W/\"strange, opaque\""));
        assert_eq!(next.header("if-none-match"), Some("W/\"strange, opaque\""));
        assert_eq!(next.header("accept"), Some(MANIFEST_TYPE));
    }

    #[test]
    fn artifacts_are_fetched_below_the_base_even_without_a_url() {
        let digest = Digest::of(b"x");
        let bundle = rc3().artifact(ArtifactRef::Bundle { digest: &digest, url: "" }).unwrap();
        assert_eq!(bundle.url, format!("https://wfm.example/v1alpha2/margo/api/v1/bundles/{digest}"));
        assert_eq!(bundle.header("accept-encoding"), Some("identity"));
        assert!(rc3().artifact(ArtifactRef::Bundle { digest: &digest, url: "https://evil.example/x" }).is_err());
    }
}
