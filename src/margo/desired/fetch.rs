//! One poll: ask for the manifest, fetch what it needs, and accept all of it or nothing.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::bundle::{BundleError, unpack};
use super::head::Head;
use super::manifest::{Manifest, ManifestError, Need, Novelty, need};
use crate::margo::api::{ArtifactRef, Dialect, Problem, Request, Response, SignError, UrlError, Verdict, judge};
use crate::margo::deployment::Deployment;
use crate::margo::words::{DeploymentId, Digest};

/// No answer came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeError {
    /// No connection.
    #[error("the fleet manager cannot be reached: {0}")]
    NoConnection(String),
    /// The connection broke, or it took too long: the request may have had its effect.
    #[error("the fleet manager cannot be reached: {0}")]
    Unreachable(String),
    /// Somebody else answered, or the fleet manager did not believe us.
    #[error("no connection that both sides believe: {0}")]
    NotBelieved(String),
    /// Longer than it may be.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    /// Identity or trust bundle is missing.
    #[error("{0}")]
    NotReady(String),
}

impl ExchangeError {
    /// Whether the fleet manager may have done what it was asked, though no answer came.
    pub const fn may_have_had_effect(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::TooLong(_))
    }
}

/// Sends requests. The HTTP shell implements it; tests do, too.
pub trait Exchange: Send + Sync + 'static {
    /// Sends a request and reads the answer, whatever its status.
    fn send(&self, request: Request) -> impl Future<Output = Result<Response, ExchangeError>> + Send;
}

/// Why a manifest was not accepted; what was in force stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcceptError {
    /// It cannot be read.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Older than what was accepted, or the same version with another content.
    #[error(
        "the fleet manager offers manifest version {offered}, version {held} was accepted before; a rollback is refused"
    )]
    Rollback {
        /// Offered.
        offered: u64,
        /// The highest ever accepted.
        held: u64,
    },
    /// The archive is not right.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A single deployment is not right.
    #[error("deployment {id} has digest {found}, the manifest says {wanted}")]
    Digest {
        /// Which.
        id: DeploymentId,
        /// Of its bytes.
        found: Digest,
        /// In the manifest.
        wanted: Digest,
    },
    /// A deployment is that of another id, or has none.
    #[error("deployment {id} carries another id: {found}")]
    Id {
        /// In the manifest.
        id: DeploymentId,
        /// In the YAML.
        found: String,
    },
    /// An artifact is not there now.
    #[error("{what} is not available at the fleet manager ({problem}); nothing is changed or removed for that")]
    NotAvailable {
        /// Which.
        what: String,
        /// What the server said.
        problem: Problem,
    },
    /// An artifact lies elsewhere.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The request cannot be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// No answer.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// The server refused.
    #[error("the fleet manager refused: {0}")]
    Later(Problem),
    /// It will refuse again.
    #[error("the fleet manager refused: {0}")]
    Refused(Problem),
    /// The relationship is retired.
    #[error("the fleet manager has retired this client: {0}")]
    Retired(Problem),
}

impl AcceptError {
    /// Whether somebody may be attacking: a rollback, a forged artifact, a way out of the server.
    pub fn is_security_event(&self) -> bool {
        matches!(
            self,
            Self::Rollback { .. }
                | Self::Bundle(_)
                | Self::Digest { .. }
                | Self::Id { .. }
                | Self::Url(_)
                | Self::Manifest(ManifestError::Word(_))
        )
    }

    /// What the server said, if it said something.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::NotAvailable { problem, .. }
            | Self::Later(problem)
            | Self::Refused(problem)
            | Self::Retired(problem) => Some(problem),
            _ => None,
        }
    }
}

/// A manifest that passed every rule, with the YAML of all of its deployments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The manifest.
    pub manifest: Manifest,
    /// Its body.
    pub body: Bytes,
    /// Its `ETag`.
    pub etag: Option<String>,
    /// Every deployment's YAML.
    pub yamls: BTreeMap<DeploymentId, Bytes>,
}

/// What a poll came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Polled {
    /// 304.
    NotModified,
    /// 200 with what is in force; with the `ETag` that came with it.
    Unchanged(Option<String>),
    /// Something new, whole and right.
    Accepted(Box<Accepted>),
}

/// Polls once. Changes nothing.
///
/// # Errors
/// [`AcceptError`].
pub async fn poll<X: Exchange>(
    exchange: &X,
    dialect: &dyn Dialect,
    head: Option<&Head>,
    held: &BTreeMap<Digest, Bytes>,
    now: i64,
) -> Result<Polled, AcceptError> {
    let etag = head.and_then(|head| head.etag.as_deref());
    let answer = exchange.send(dialect.seal(dialect.deployments(etag), now)?).await?;
    match judge(&answer) {
        Verdict::Unchanged => return Ok(Polled::NotModified),
        Verdict::Done => {}
        other => return Err(refusal("the list of deployments", other)),
    }
    let manifest = Manifest::parse(&answer.body)?;
    match manifest.novelty(head.map(|head| (head.version, head.body))) {
        Novelty::Unchanged => return Ok(Polled::Unchanged(answer.etag)),
        Novelty::Rollback { held } => return Err(AcceptError::Rollback { offered: manifest.version, held }),
        Novelty::Newer => {}
    }
    let yamls = Fetcher { exchange, dialect, manifest: &manifest, now }.all(held).await?;
    Ok(Polled::Accepted(Box::new(Accepted { manifest, body: answer.body, etag: answer.etag, yamls })))
}

struct Fetcher<'a, X> {
    exchange: &'a X,
    dialect: &'a dyn Dialect,
    manifest: &'a Manifest,
    now: i64,
}

impl<X: Exchange> Fetcher<'_, X> {
    async fn all(&self, held: &BTreeMap<Digest, Bytes>) -> Result<BTreeMap<DeploymentId, Bytes>, AcceptError> {
        let known: BTreeSet<Digest> = held.keys().copied().collect();
        let mut yamls = match need(self.manifest, &known) {
            Need::Nothing => BTreeMap::new(),
            Need::Single(places) => self.single(&places).await?,
            Need::Bundle => match self.bundle().await {
                // The archive alone may be gone. That is no mismatch, so the deployments may be asked for one by one.
                Err(AcceptError::NotAvailable { .. }) => {
                    let missing = |place: &usize| !known.contains(&self.manifest.deployments[*place].artifact.digest);
                    let places: Vec<usize> = (0..self.manifest.deployments.len()).filter(missing).collect();
                    self.single(&places).await?
                }
                fetched => fetched?,
            },
        };
        for entry in &self.manifest.deployments {
            if let (false, Some(yaml)) = (yamls.contains_key(&entry.id), held.get(&entry.artifact.digest)) {
                yamls.insert(entry.id.clone(), yaml.clone());
            }
            let found = yamls.get(&entry.id).map(|yaml| Deployment::parse_id(yaml));
            match found {
                Some(Ok(id)) if id == entry.id => {}
                Some(Ok(other)) => return Err(AcceptError::Id { id: entry.id.clone(), found: other.to_string() }),
                Some(Err(error)) => return Err(AcceptError::Id { id: entry.id.clone(), found: error.to_string() }),
                None => return Err(BundleError::Missing(entry.id.clone()).into()),
            }
        }
        Ok(yamls)
    }

    async fn bundle(&self) -> Result<BTreeMap<DeploymentId, Bytes>, AcceptError> {
        let Some(bundle) = &self.manifest.bundle else { return Ok(BTreeMap::new()) };
        let which = ArtifactRef::Bundle { digest: &bundle.digest, url: &bundle.url };
        let bytes = self.fetch("the bundle", which).await?;
        Ok(unpack(&bytes, &bundle.digest, self.manifest)?)
    }

    async fn single(&self, places: &[usize]) -> Result<BTreeMap<DeploymentId, Bytes>, AcceptError> {
        let mut yamls = BTreeMap::new();
        for entry in places.iter().filter_map(|place| self.manifest.deployments.get(*place)) {
            let (id, artifact) = (&entry.id, &entry.artifact);
            let which = ArtifactRef::Deployment { id, digest: &artifact.digest, url: &artifact.url };
            let yaml = self.fetch(&format!("deployment {id}"), which).await?;
            let found = Digest::of(&yaml);
            if found != artifact.digest {
                return Err(AcceptError::Digest { id: id.clone(), found, wanted: artifact.digest });
            }
            yamls.insert(id.clone(), yaml);
        }
        Ok(yamls)
    }

    async fn fetch(&self, what: &str, which: ArtifactRef<'_>) -> Result<Bytes, AcceptError> {
        let request = self.dialect.seal(self.dialect.artifact(which)?, self.now)?;
        let answer = self.exchange.send(request).await?;
        match judge(&answer) {
            Verdict::Done => Ok(answer.body),
            other => Err(refusal(what, other)),
        }
    }
}

fn refusal(what: &str, verdict: Verdict) -> AcceptError {
    match verdict {
        Verdict::Later(problem) => AcceptError::Later(problem),
        Verdict::Retired(problem) => AcceptError::Retired(problem),
        Verdict::Refused(problem) => AcceptError::Refused(problem),
        Verdict::NotFound(problem) | Verdict::ParentMissing(problem) => {
            AcceptError::NotAvailable { what: what.to_owned(), problem }
        }
        // Nobody asked whether it changed, so this says nothing.
        Verdict::Done | Verdict::Unchanged => {
            AcceptError::Exchange(ExchangeError::Unreachable(format!("an odd answer for {what}")))
        }
    }
}
