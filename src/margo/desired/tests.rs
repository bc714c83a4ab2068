//! A poll against a fleet manager of a page of script, and what of it is durable: the rules of acceptance, one test each.

use std::collections::BTreeMap;
use std::sync::Mutex;

use bytes::Bytes;
use serde_json::{Value, json};

use super::bundle::tests::{gzip, tar_of};
use super::*;
use crate::margo::api::{Base, Rc3, Request, Response};
use crate::margo::deployment::tests::example;
use crate::margo::storage::MemoryStorage;
use crate::margo::words::{DeploymentId, Digest};

const BASE: &str = "https://wfm.example/v1alpha2/margo";

/// Answers by the end of the path, and remembers what was asked.
#[derive(Default)]
struct Script {
    answers: BTreeMap<String, Response>,
    asked: Mutex<Vec<Request>>,
}

impl Exchange for Script {
    async fn send(&self, request: Request) -> Result<Response, ExchangeError> {
        self.asked.lock().unwrap().push(request.clone());
        let known = self.answers.iter().find(|(path, _)| request.url == format!("{BASE}/api/v1/{path}"));
        Ok(known.map_or(Response { status: 404, ..Response::default() }, |(_, answer)| answer.clone()))
    }
}

fn ok(body: impl Into<Bytes>) -> Response {
    Response { status: 200, body: body.into(), ..Response::default() }
}

fn id(n: usize) -> DeploymentId {
    DeploymentId::new(&super::manifest::tests::id(n)).unwrap()
}

fn yaml(n: usize) -> Bytes {
    example(id(n).as_str(), "gw/a", &[("recipe", "1.0")], " {}").into()
}

/// A fleet manager that wants `yamls`, with everything in its place.
fn wanting(version: u64, yamls: &[(DeploymentId, Bytes)]) -> Script {
    let names: Vec<String> = (0..yamls.len()).map(|n| format!("{n}.yaml")).collect();
    let files: Vec<(&str, u8, &[u8])> =
        names.iter().zip(yamls).map(|(name, (_, yaml))| (name.as_str(), b'0', yaml.as_ref())).collect();
    let packed = gzip(&tar_of(&files));
    let list: Vec<Value> = yamls
        .iter()
        .map(|(id, yaml)| {
            let digest = Digest::of(yaml);
            json!({ "deploymentId": id, "digest": digest, "url": format!("/api/v1/deployments/{id}/{digest}") })
        })
        .collect();
    let bundle = match yamls.is_empty() {
        true => Value::Null,
        false => json!({ "digest": Digest::of(&packed), "url": format!("/api/v1/bundles/{}", Digest::of(&packed)) }),
    };
    let manifest = json!({ "manifestVersion": version, "bundle": bundle, "deployments": list }).to_string();
    let mut script = Script::default();
    let with_etag = Response { etag: Some("\"opaque\"".to_owned()), ..ok(manifest) };
    script.answers.insert("deployments".to_owned(), with_etag);
    script.answers.insert(format!("bundles/{}", Digest::of(&packed)), ok(packed));
    for (id, yaml) in yamls {
        script.answers.insert(format!("deployments/{id}/{}", Digest::of(yaml)), ok(yaml.clone()));
    }
    script
}

fn many(count: usize) -> Vec<(DeploymentId, Bytes)> {
    (0..count).map(|n| (id(n), yaml(n))).collect()
}

impl Script {
    async fn poll(&self, head: Option<&Head>) -> Result<Polled, AcceptError> {
        let dialect = Rc3::new(Base::new(BASE).unwrap());
        poll(self, &dialect, head, &BTreeMap::new(), 0).await
    }

    /// The ends of the paths that were asked for, without digests.
    fn paths(&self) -> Vec<String> {
        let short = |request: &Request| {
            let path = request.url.strip_prefix(&format!("{BASE}/api/v1/")).unwrap_or(&request.url);
            path.split("/sha256").next().unwrap_or_default().to_owned()
        };
        self.asked.lock().unwrap().iter().map(short).collect()
    }

    fn answer(&mut self, part: &str, change: impl FnOnce(&mut Response)) {
        change(self.answers.iter_mut().find(|(path, _)| path.contains(part)).unwrap().1);
    }
}

fn accepted(polled: Result<Polled, AcceptError>) -> Accepted {
    match polled.unwrap() {
        Polled::Accepted(accepted) => *accepted,
        other => panic!("{other:?}"),
    }
}

fn head(accepted: &Accepted) -> Head {
    Head {
        version: accepted.manifest.version,
        etag: accepted.etag.clone(),
        body: accepted.manifest.digest,
        previous: 0,
    }
}

#[tokio::test]
async fn a_first_sync_fetches_the_bundle_once_and_few_deployments_one_by_one() {
    let script = wanting(1, &many(10));
    assert_eq!(accepted(script.poll(None).await).yamls.len(), 10);
    assert_eq!(script.paths(), ["deployments", "bundles"]);
    let script = wanting(1, &many(2));
    assert_eq!(accepted(script.poll(None).await).yamls.len(), 2);
    assert_eq!(script.paths().len(), 3, "the manifest and two deployments");
}

#[tokio::test]
async fn a_304_does_nothing_and_the_etag_is_sent_as_it_came() {
    let mut script = wanting(3, &many(1));
    let first = head(&accepted(script.poll(None).await));
    script.answer("deployments", |answer| *answer = Response { status: 304, ..Response::default() });
    script.asked.lock().unwrap().clear();
    assert_eq!(script.poll(Some(&first)).await, Ok(Polled::NotModified));
    let asked = script.asked.lock().unwrap();
    assert_eq!((asked.len(), asked[0].header("if-none-match")), (1, Some("\"opaque\"")));
}

#[tokio::test]
async fn a_missing_etag_asks_without_condition_and_the_same_bytes_are_unchanged() {
    let mut script = wanting(3, &many(1));
    script.answer("deployments", |answer| answer.etag = None);
    let first = head(&accepted(script.poll(None).await));
    script.asked.lock().unwrap().clear();
    assert_eq!(script.poll(Some(&first)).await, Ok(Polled::Unchanged(None)), "an identical re-delivery is no rollback");
    let asked = script.asked.lock().unwrap();
    assert_eq!((asked.len(), asked[0].header("if-none-match")), (1, None), "nothing is fetched again");
}

#[tokio::test]
async fn a_rollback_is_refused_before_anything_is_fetched_and_is_a_security_event() {
    let held = head(&accepted(wanting(7, &many(1)).poll(None).await));
    for (version, yamls) in [(6, many(1)), (7, many(2)), (1, Vec::new())] {
        let script = wanting(version, &yamls);
        let error = script.poll(Some(&held)).await.unwrap_err();
        assert_eq!(error, AcceptError::Rollback { offered: version, held: 7 });
        assert!(error.is_security_event());
        assert_eq!(script.paths(), ["deployments"]);
    }
}

#[tokio::test]
async fn one_wrong_deployment_ends_the_attempt_and_nothing_else_is_tried() {
    let mut script = wanting(1, &many(3));
    script.answer(id(0).as_str(), |answer| answer.body = yaml(9));
    let error = script.poll(None).await.unwrap_err();
    assert!(matches!(error, AcceptError::Digest { .. }) && error.is_security_event(), "{error}");
    assert_eq!(script.paths().len(), 2, "never on behind a mismatch: {:?}", script.paths());
}

#[tokio::test]
async fn a_wrong_bundle_is_never_replaced_by_single_deployments() {
    let mut script = wanting(1, &many(10));
    script.answer("bundles", |answer| answer.body = gzip(b"other").into());
    let error = script.poll(None).await.unwrap_err();
    assert!(matches!(error, AcceptError::Bundle(BundleError::Digest { .. })) && error.is_security_event(), "{error}");
    assert_eq!(script.paths(), ["deployments", "bundles"]);
}

#[tokio::test]
async fn a_bundle_that_is_not_there_is_no_mismatch_and_deployments_are_fetched_one_by_one() {
    let mut script = wanting(1, &many(10));
    script.answers.retain(|path, _| !path.starts_with("bundles"));
    assert_eq!(accepted(script.poll(None).await).yamls.len(), 10);
    script.answers.retain(|path, _| path == "deployments");
    let error = script.poll(None).await.unwrap_err();
    assert!(matches!(error, AcceptError::NotAvailable { .. }), "{error}");
    assert!(!error.is_security_event(), "an artifact that answers 404 is not available, and nothing more");
}

#[tokio::test]
async fn the_id_in_a_deployment_must_be_the_one_of_the_manifest() {
    let foreign = [(id(0), yaml(1))];
    let error = wanting(1, &foreign).poll(None).await.unwrap_err();
    assert!(matches!(&error, AcceptError::Id { found, .. } if found == id(1).as_str()), "{error}");
    let nameless = [(id(0), Bytes::from_static(b"kind: ApplicationDeployment\n"))];
    let error = wanting(1, &nameless).poll(None).await.unwrap_err();
    assert!(matches!(error, AcceptError::Id { .. }) && error.is_security_event(), "{error}");
}

#[tokio::test]
async fn errors_of_artifacts_mean_what_the_table_says() {
    let answered = async |part: &str, status: u16, body: &str| {
        let mut script = wanting(1, &many(10));
        script
            .answer(part, |answer| *answer = Response { status, body: body.to_owned().into(), ..Response::default() });
        script.poll(None).await.unwrap_err()
    };
    for part in ["deployments", "bundles"] {
        assert!(matches!(answered(part, 403, "").await, AcceptError::Retired(_)), "{part}");
        assert!(matches!(answered(part, 503, "").await, AcceptError::Later(_)), "{part}");
        assert!(matches!(answered(part, 406, "").await, AcceptError::Refused(_)), "{part}");
    }
    // Nobody asked on a condition, so a 304 to it is no answer.
    assert!(matches!(answered("bundles", 304, "").await, AcceptError::Exchange(_)));
}

#[tokio::test]
async fn the_type_of_a_problem_is_never_fetched() {
    let mut script = wanting(1, &many(1));
    let body = json!({ "type": format!("{BASE}/problems/server-cannot-generate-response") }).to_string();
    script.answer("deployments", |answer| *answer = Response { status: 500, body: body.into(), ..Response::default() });
    assert!(matches!(script.poll(None).await, Err(AcceptError::Later(_))));
    assert_eq!(script.paths(), ["deployments"]);
}

#[tokio::test]
async fn no_deployments_come_with_a_null_bundle_and_nothing_is_fetched() {
    let script = wanting(2, &[]);
    assert!(accepted(script.poll(None).await).yamls.is_empty());
    assert_eq!(script.paths(), ["deployments"]);
}

#[tokio::test]
async fn what_is_held_is_not_fetched_again() {
    let script = wanting(2, &many(3));
    let held: BTreeMap<Digest, Bytes> = many(2).into_iter().map(|(_, yaml)| (Digest::of(&yaml), yaml)).collect();
    let dialect = Rc3::new(Base::new(BASE).unwrap());
    let polled = poll(&script, &dialect, None, &held, 0).await;
    assert_eq!(accepted(polled).yamls.len(), 3);
    assert_eq!(script.paths(), ["deployments".to_owned(), format!("deployments/{}", id(2))]);
}

/// Version and `ETag` become durable after everything that they stand for: whenever the process dies, either the manifest of
/// before is in force, whole, or the new one is.
#[tokio::test]
async fn version_and_etag_are_durable_only_after_success_and_a_rollback_is_refused_after_a_restart() {
    let old = accepted(wanting(1, &many(1)).poll(None).await);
    let new = accepted(wanting(2, &many(6)).poll(None).await);
    for commits in 0.. {
        let storage = MemoryStorage::default();
        let known = Default::default();
        let put = async |accepted: &Accepted, before: Option<&Head>| {
            let Accepted { manifest, body, etag, yamls } = accepted;
            HeadStore(&storage).advance(before, manifest, body, etag.clone(), yamls, &known).await
        };
        let before = put(&old, None).await.unwrap();
        storage.die_after(Some(commits));
        let whole = put(&new, Some(&before)).await.is_ok();
        storage.die_after(None);
        let (found, manifest, yamls) = HeadStore(&storage).load().await.unwrap().unwrap();
        let wanted = if whole { &new } else { &old };
        assert_eq!((found.version, &manifest, &yamls), (wanted.manifest.version, &wanted.manifest, &wanted.yamls));
        assert_eq!(found.etag.as_deref(), Some("\"opaque\""));
        if whole {
            assert!(commits > 1, "blobs come in commits of their own");
            let again = wanting(1, &many(1)).poll(Some(&found)).await;
            assert_eq!(again, Err(AcceptError::Rollback { offered: 1, held: 2 }));
            return;
        }
    }
}
