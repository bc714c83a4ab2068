//! Holds our SVID and the bundle in force, and exchanges them while running.
//!
//! Files are looked at with every [`Keeper::look`], which compares contents, not times. Bundles from a server are fetched
//! by the caller ([`Keeper::due`] says what, [`Keeper::fetched`] takes the outcome), so that nothing here waits.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::super::words::Digest;
use super::bundle::{BundleError, MAX_BUNDLE, TrustBundle};
use super::cache::BundleCache;
use super::discovery::FirstContact;
use super::own::{OwnError, OwnSvid};
use crate::model::Stamp;

/// First pause after a failed refresh; it doubles up to the bundle's refresh hint.
const FIRST_RETRY: Duration = Duration::from_secs(5);
/// Longest pause while there is no bundle at all.
const LAST_RETRY: Duration = Duration::from_secs(300);

/// Where our SVID lies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdentityFiles {
    /// Chain, PEM, the leaf first.
    pub chain: PathBuf,
    /// Private key, PKCS#8 PEM.
    pub key: PathBuf,
    /// The SPIFFE ID that an enrolment server (EST) is asked for; `None` when an operator installs the files.
    pub enrolled: Option<String>,
}

impl IdentityFiles {
    /// What is to be done to have an SVID, in words.
    pub const fn remedy(&self) -> &'static str {
        match self.enrolled {
            Some(_) => "the running gateway enrols it, and its health and log say how that goes",
            None => "`fieldgate margo join` makes a key and a request for it",
        }
    }

    /// What is wrong with the name of an SVID that was enrolled.
    pub fn misnamed(&self, own: &OwnSvid) -> Option<String> {
        let (asked, found) = (self.enrolled.as_ref()?, own.name().id());
        (asked != found.as_str()).then(|| {
            format!(
                "our own SVID is of {found}, and [margo.identity.est] asks for {asked}: the server granted another name, or \
                 the settings were changed since; until it is enrolled anew the fleet manager of these settings refuses it"
            )
        })
    }
}

/// Where an SVID that is enrolled over EST is kept, below the client's directory.
pub fn enrolment_directory(directory: &std::path::Path) -> PathBuf {
    directory.join("est")
}

/// Where the trust bundle comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BundleSource {
    /// A file that the operator exchanges.
    File(PathBuf),
    /// A server.
    Uri {
        /// Its https address.
        url: String,
        /// How it is verified.
        contact: FirstContact,
    },
    /// A server that says where the bundle is.
    Discovery {
        /// Origin; `/.well-known/margo` is added.
        url: String,
        /// How it and the bundle's server are verified.
        contact: FirstContact,
    },
}

impl BundleSource {
    /// The name under which its bundle is cached.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => format!("file {}", path.display()),
            Self::Uri { url, .. } => format!("uri {url}"),
            Self::Discovery { url, .. } => format!("discovery {url}"),
        }
    }
}

/// Why something was not exchanged; what was in force stays.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Our own SVID.
    #[error(transparent)]
    Own(#[from] OwnError),
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The bundle's file cannot be read.
    #[error("cannot read the trust bundle {path}: {reason}")]
    Read {
        /// Which file.
        path: String,
        /// Why not.
        reason: String,
    },
    /// The server did not give one.
    #[error("the trust bundle could not be fetched: {0}")]
    Fetch(String),
    /// There is no key yet.
    #[error("our own SVID is missing; {0}")]
    Missing(&'static str),
    /// The key was destroyed.
    #[error("our own key {key} is gone, and what was made with it is not used any more; {remedy}")]
    KeyGone {
        /// Its file.
        key: String,
        /// What is to be done.
        remedy: &'static str,
    },
    /// An exchanged SVID of somebody else.
    #[error(
        "the new SVID is of {found}, this client is {wanted}; a transfer is a new enrolment: `fieldgate margo leave`, then join"
    )]
    OtherClient {
        /// In the new SVID.
        found: String,
        /// So far.
        wanted: String,
    },
}

/// What was exchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swap {
    /// Our own SVID.
    Identity,
    /// The trust bundle.
    Bundle,
}

/// What a connection is made with.
#[derive(Debug, Clone)]
pub struct Material {
    /// Who we are.
    pub own: Arc<OwnSvid>,
    /// Whom we believe.
    pub bundle: Arc<TrustBundle>,
}

/// Holds both. See the module.
#[derive(Debug)]
pub struct Keeper {
    files: IdentityFiles,
    source: BundleSource,
    cache: BundleCache,
    own: Option<Arc<OwnSvid>>,
    bundle: Option<Arc<TrustBundle>>,
    /// What was seen of the files last, good or bad, so that one bad file is complained about once.
    seen_identity: Option<Digest>,
    seen_bundle: Option<Digest>,
    /// Monotonic time of the next fetch.
    due_ns: u64,
    retry: Duration,
}

impl Keeper {
    /// Begins with what is cached; files are read by the first [`Keeper::look`].
    pub fn new(files: IdentityFiles, source: BundleSource, cache: BundleCache) -> Self {
        let bundle = match cache.load(&source.name()) {
            Ok(bundle) => bundle.map(Arc::new),
            Err(error) => {
                tracing::warn!("{error}; it is fetched again");
                None
            }
        };
        Self {
            files,
            source,
            cache,
            own: None,
            bundle,
            seen_identity: None,
            seen_bundle: None,
            due_ns: 0,
            retry: FIRST_RETRY,
        }
    }

    /// What connections are made with; `None` while either half is missing.
    pub fn material(&self) -> Option<Material> {
        Some(Material { own: self.own.clone()?, bundle: self.bundle.clone()? })
    }

    /// Our own SVID.
    pub fn own(&self) -> Option<&Arc<OwnSvid>> {
        self.own.as_ref()
    }

    /// The bundle in force.
    pub fn bundle(&self) -> Option<&Arc<TrustBundle>> {
        self.bundle.as_ref()
    }

    /// Where our own SVID lies.
    pub fn files(&self) -> &IdentityFiles {
        &self.files
    }

    /// Where the bundle comes from.
    pub fn source(&self) -> &BundleSource {
        &self.source
    }

    /// Looks at the files. Each element is an exchange, or why there was none.
    pub fn look(&mut self) -> Vec<Result<Swap, KeeperError>> {
        let mut found = Vec::new();
        found.extend(self.look_at_identity());
        if let BundleSource::File(path) = &self.source {
            let path = path.clone();
            found.extend(self.look_at_bundle(&path));
        }
        found
    }

    fn look_at_identity(&mut self) -> Option<Result<Swap, KeeperError>> {
        let read = |path: &PathBuf| std::fs::read(path).unwrap_or_default();
        let (chain, key) = (read(&self.files.chain), read(&self.files.key));
        // The key itself is not kept, only that it changed.
        let seen = Digest::of(&[*Digest::of(&chain).as_bytes(), *Digest::of(&key).as_bytes()].concat());
        if self.seen_identity.replace(seen) == Some(seen) {
            return None;
        }
        if self.own.is_some() && !self.files.key.exists() {
            self.own = None;
            let (key, remedy) = (self.files.key.display().to_string(), self.files.remedy());
            return Some(Err(KeeperError::KeyGone { key, remedy }));
        }
        if self.own.is_none() && !self.files.key.exists() {
            return Some(Err(KeeperError::Missing(self.files.remedy())));
        }
        Some(self.take_identity(OwnSvid::load(&self.files.chain, &self.files.key)))
    }

    fn take_identity(&mut self, loaded: Result<OwnSvid, OwnError>) -> Result<Swap, KeeperError> {
        let new = loaded?;
        if let Some(held) = &self.own
            && held.name() != new.name()
        {
            return Err(KeeperError::OtherClient {
                found: new.name().id().to_string(),
                wanted: held.name().id().to_string(),
            });
        }
        self.own = Some(Arc::new(new));
        Ok(Swap::Identity)
    }

    fn look_at_bundle(&mut self, path: &PathBuf) -> Option<Result<Swap, KeeperError>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) => {
                // A file that is away for a moment changes nothing; say so once.
                let seen = Digest::of(error.to_string().as_bytes());
                let told = self.seen_bundle.replace(seen) == Some(seen);
                let (path, reason) = (path.display().to_string(), error.to_string());
                return (!told).then_some(Err(KeeperError::Read { path, reason }));
            }
        };
        let seen = Digest::of(&bytes);
        if self.seen_bundle.replace(seen) == Some(seen) {
            return None;
        }
        self.take_bundle(&bytes).transpose()
    }

    /// Puts a bundle in force, unless it is the one that is. `None` when nothing changed.
    fn take_bundle(&mut self, bytes: &[u8]) -> Result<Option<Swap>, KeeperError> {
        let new = TrustBundle::parse(bytes)?;
        new.may_replace(self.bundle.as_deref())?;
        if self.bundle.as_ref().is_some_and(|held| held.digest == new.digest) {
            return Ok(None);
        }
        // The cache is for the next start; without it the bundle counts all the same.
        if let Err(error) = self.cache.store(&self.source.name(), &String::from_utf8_lossy(bytes)) {
            tracing::warn!("{error}; a restart without the network will not know this bundle");
        }
        self.bundle = Some(Arc::new(new));
        Ok(Some(Swap::Bundle))
    }

    /// Whether the bundle is to be fetched now; never for a file.
    pub fn due(&self, now: Stamp) -> bool {
        !matches!(self.source, BundleSource::File(_)) && now.mono_ns >= self.due_ns
    }

    /// Takes what a fetch gave. A failed one keeps the bundle in force.
    ///
    /// # Errors
    /// Why nothing was exchanged.
    pub fn fetched(&mut self, outcome: Result<Vec<u8>, String>, now: Stamp) -> Result<Option<Swap>, KeeperError> {
        let taken = match outcome {
            Ok(bytes) if bytes.len() > MAX_BUNDLE => Err(BundleError::Form("it is too long".to_owned()).into()),
            Ok(bytes) => self.take_bundle(&bytes),
            Err(reason) => Err(KeeperError::Fetch(reason)),
        };
        let hint = self.bundle.as_ref().map_or(LAST_RETRY, |bundle| bundle.refresh);
        let pause = match taken {
            Ok(_) => {
                self.retry = FIRST_RETRY;
                hint
            }
            Err(_) => {
                let pause = self.retry.min(hint);
                self.retry = (self.retry * 2).min(LAST_RETRY);
                pause
            }
        };
        self.due_ns = now.mono_ns + u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX);
        taken
    }

    /// Lets the next fetch be due now: a peer that is not believed may stand in a newer bundle.
    pub fn hurry(&mut self, now: Stamp) {
        let soon = now.mono_ns + u64::try_from(FIRST_RETRY.as_nanos()).unwrap_or(u64::MAX);
        self.due_ns = self.due_ns.min(soon);
    }
}
