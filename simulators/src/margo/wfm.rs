//! **A Workload Fleet Manager**, in both generations of the interface.
//!
//! Promise: what it accepts is valid by the reference, and everything else is refused with the problem that the reference
//! names; what is not wrong enough to be refused is noted ([`records::Seen::notes`]). A manifest's version rises with every
//! change of what a client should run; artifacts stay to be fetched for as long as the last eight manifests.
//!
//! Decisions where the reference leaves room: a device belongs to the client that reported its id's first segment; a
//! deployment is in the manifest of the client that owns its target's first segment; a parent is the id without its last
//! segment; deleting a parent deletes what is below it, and is noted; a status for an unknown deployment is a 422.

mod archive;
mod calls;
mod core;
pub mod deployment;
pub mod faults;
mod library;
mod older;
mod problem;
pub mod records;
mod signature;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use self::core::Core;
use self::deployment::{Deployment, Document};
use self::faults::{Rule, TypeRoot};
use self::records::{Op, Records};
use super::http::{Answer, Ask, Down, Listener, Serve};
use super::schema::Mode;
use super::tls::{self, Identity, TlsVersions};
use super::tools::locked;
use super::{Authority, Flaw, MargoSimError, Svid};

/// Which interface is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Generation {
    /// 1.0.0-rc.3: mutual TLS, the client is its SPIFFE ID.
    #[default]
    Rc3,
    /// The preview release: server-side TLS, onboarding, signed requests.
    Older,
}

/// Settings.
#[derive(Clone)]
pub struct Options {
    /// Who issues certificates and vouches for clients.
    pub authority: Arc<Authority>,
    /// The WFM's id in the trust domain.
    pub wfm: String,
    /// Where to listen; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Before every path, such as `/v1alpha2/margo`; empty for none.
    pub prefix: String,
    /// Which interface.
    pub generation: Generation,
    /// What kind of gateway is expected.
    pub mode: Mode,
    /// Versions of TLS.
    pub tls: TlsVersions,
    /// Clients that are welcome; empty for all of this WFM.
    pub clients: Vec<String>,
    /// Devices (first segments) that belong to a client before it reports them.
    pub owners: BTreeMap<String, String>,
    /// Version of the first manifest.
    pub first_version: u64,
    /// Root of the problems' types.
    pub type_root: TypeRoot,
    /// Whether YAMLs are compressed for clients that accept it.
    pub compress: bool,
    /// Older: status for a request without a signature; 401 and 400 are seen.
    pub unsigned_status: u16,
    /// Older: whether onboarding is rejected.
    pub reject_onboarding: bool,
}

impl Options {
    /// The newer interface on a free port of loopback, for any client of `wfm-1`.
    pub fn new(authority: Arc<Authority>) -> Self {
        Self {
            authority,
            wfm: "wfm-1".to_owned(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            prefix: String::new(),
            generation: Generation::default(),
            mode: Mode::default(),
            tls: TlsVersions::default(),
            clients: Vec::new(),
            owners: BTreeMap::new(),
            first_version: 1,
            type_root: TypeRoot::default(),
            compress: true,
            unsigned_status: 401,
            reject_onboarding: false,
        }
    }
}

/// The part that requests and the handle share.
struct Shared {
    core: Mutex<Core>,
    changes: watch::Sender<u64>,
}

impl Shared {
    fn change<T>(&self, act: impl FnOnce(&mut Core) -> T) -> T {
        let result = act(&mut locked(&self.core));
        self.changes.send_modify(|count| *count += 1);
        result
    }
}

impl Serve for Shared {
    fn answer(&self, ask: &Ask) -> Answer {
        self.change(|core| core.answer(ask))
    }

    fn refused(&self, connection: u64, why: &str) {
        self.change(|core| core.refused(connection, why));
    }
}

/// A running fleet manager; it ends when dropped.
pub struct Wfm {
    listener: Listener,
    identity: Arc<Identity>,
    authority: Arc<Authority>,
    options: Options,
    shared: Arc<Shared>,
    serving: Mutex<Flaw>,
}

impl Wfm {
    /// Listens.
    pub async fn start(options: Options) -> Result<Self, MargoSimError> {
        let authority = options.authority.clone();
        let svid = match options.generation {
            Generation::Rc3 => authority.wfm_svid(&options.wfm, Flaw::None)?,
            Generation::Older => authority.server_certificate(&["localhost", "127.0.0.1", "::1"])?,
        };
        let identity = Identity::new(&svid)?;
        let config = match options.generation {
            Generation::Rc3 => tls::mutual(identity.clone(), options.tls, authority.clone())?,
            Generation::Older => tls::server(identity.clone(), options.tls)?,
        };
        let core = Mutex::new(Core::new(options.clone(), svid.chain_pem));
        let shared = Arc::new(Shared { core, changes: watch::Sender::new(0) });
        let listener = Listener::start(options.listen, Some(config), shared.clone()).await?;
        Ok(Self { listener, identity, authority, options, shared, serving: Mutex::default() })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Its base URL, with the prefix.
    pub fn url(&self) -> String {
        format!("https://{}{}", self.address(), self.options.prefix)
    }

    /// Its id in the trust domain.
    pub fn id(&self) -> &str {
        &self.options.wfm
    }

    /// Its settings.
    pub const fn options(&self) -> &Options {
        &self.options
    }

    /// Wants a deployment, or with a known id its new content. The id.
    pub fn deploy(&self, deployment: Deployment) -> Result<String, MargoSimError> {
        Ok(self.want(deployment.document()?))
    }

    /// Wants what stands in the YAML, as it is.
    pub fn deploy_yaml(&self, yaml: &str) -> Result<String, MargoSimError> {
        Ok(self.want(Document::from_yaml(yaml)?))
    }

    fn want(&self, document: Document) -> String {
        let id = document.id.clone();
        self.shared.change(|core| core.want(document));
        id
    }

    /// Does not want it any more; whether it was wanted.
    pub fn remove(&self, id: &str) -> bool {
        self.shared.change(|core| {
            let Some(known) = core.records.deployments.get_mut(id) else { return false };
            let was = std::mem::replace(&mut known.wanted, false);
            core.assign();
            was
        })
    }

    /// Ends the relationship with a client: everything is answered by 403.
    pub fn retire(&self, client: &str, retired: bool) -> bool {
        self.shared.change(|core| core.records.clients.get_mut(client).map(|known| known.retired = retired).is_some())
    }

    /// Adds a fault.
    pub fn inject(&self, rule: impl Into<Rule>) {
        self.shared.change(|core| core.script.add(rule.into()));
    }

    /// Takes all faults back.
    pub fn clear_faults(&self) {
        self.shared.change(|core| core.script.clear());
    }

    /// The faults in force.
    pub fn faults(&self) -> Vec<Rule> {
        locked(&self.shared.core).script.rules().to_vec()
    }

    /// Whether it can be reached.
    pub fn down(&self) -> Down {
        self.listener.down()
    }

    /// Goes down or comes back, on the same port. Returns when it is so.
    pub async fn set_down(&self, down: Down) -> Result<(), MargoSimError> {
        self.listener.set_down(down).await
    }

    /// Serves a fresh SVID with that flaw to new connections; [`Flaw::None`] is a renewal.
    pub fn serve(&self, flaw: Flaw) -> Result<(), MargoSimError> {
        match self.options.generation {
            Generation::Rc3 => self.serve_svid(&self.authority.wfm_svid(&self.options.wfm, flaw)?)?,
            Generation::Older => self.serve_svid(&self.authority.server_certificate(&["localhost", "127.0.0.1"])?)?,
        }
        *locked(&self.serving) = flaw;
        Ok(())
    }

    /// What is wrong with the SVID that it serves.
    pub fn serving(&self) -> Flaw {
        *locked(&self.serving)
    }

    /// Serves this to new connections.
    pub fn serve_svid(&self, svid: &Svid) -> Result<(), MargoSimError> {
        self.identity.serve(svid)
    }

    /// Ends every connection; new ones are welcome at once.
    pub async fn disconnect(&self) -> Result<(), MargoSimError> {
        self.set_down(Down::Reset).await?;
        self.set_down(Down::Up).await
    }

    /// Forgets devices, statuses and the log, as a WFM restored from an old backup; deployments and versions stay.
    pub fn forget_devices(&self) {
        self.shared.change(|core| {
            core.records.devices.clear();
            core.records.statuses.clear();
        });
    }

    /// A copy of everything that it knows and has seen.
    pub fn records(&self) -> Records {
        locked(&self.shared.core).records.clone()
    }

    /// Looks at what it knows without copying it.
    pub fn with<T>(&self, look: impl FnOnce(&Records) -> T) -> T {
        look(&locked(&self.shared.core).records)
    }

    /// How many requests of that kind were answered with that status.
    pub fn count(&self, op: Op, status: u16) -> u64 {
        self.with(|records| records.count(op, status))
    }

    /// Waits until `look` finds something. It is asked after every request and every change.
    pub async fn wait<T>(
        &self,
        what: &str,
        patience: Duration,
        look: impl Fn(&Records) -> Option<T>,
    ) -> Result<T, MargoSimError> {
        let mut changes = self.shared.changes.subscribe();
        let found = async {
            loop {
                changes.borrow_and_update();
                if let Some(found) = self.with(&look) {
                    return Ok(found);
                }
                changes.changed().await.map_err(|_| MargoSimError::Ended)?;
            }
        };
        let waited = tokio::time::timeout(patience, found).await;
        waited.unwrap_or_else(|_| Err(MargoSimError::Waited { seconds: patience.as_secs(), what: what.to_owned() }))
    }
}
