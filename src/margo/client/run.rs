//! Starts what a configuration names: one client, or one per device of a transparent gateway.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::engine::{Client, ClientError, Parts};
use super::identity::{IdentityDesk, SharedMaterial};
use super::status::ClientStatus;
use crate::margo::api::{
    Backoff, Dialect, Preview, Rc3, RequestSigner, Verdict, judge, onboard_request, parse_onboarded,
};
use crate::margo::component::Source;
use crate::margo::config::{Config, Generation, Member};
use crate::margo::desired::{Exchange, ExchangeError};
use crate::margo::http::{HttpExchange, Tls};
use crate::margo::identity::{BundleCache, BundleSource, IdentityFiles, Keeper, TlsVersions};
use crate::margo::plant::Plant;
use crate::margo::storage::{Change, Storage, read};
use crate::margo::survey::scope;
use crate::platform::clock::SharedClock;
use crate::platform::durable::Disk;
use crate::security::pki::BelievedTime;
use crate::security::{ClientTls, ClientTlsFiles};

/// Where the client id of the older interface is kept.
const CLIENT_KEY: &str = "client-id";

/// Why a client could not run; it is started again.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// In the middle of it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The storage.
    #[error(transparent)]
    Storage(#[from] crate::margo::storage::StorageError),
    /// Something of the configuration cannot be used.
    #[error("{0}")]
    Setup(String),
}

impl RunError {
    fn setup(error: &dyn std::fmt::Display) -> Self {
        Self::Setup(error.to_string())
    }
}

/// What the older interface gave us, and for which key and server.
#[derive(Debug, Serialize, Deserialize)]
struct Onboarded {
    server: String,
    key: String,
    client: String,
}

/// Runs the client `member` of the configuration until `token` is cancelled.
///
/// # Errors
/// [`RunError`]; start it again after a while.
#[allow(clippy::too_many_arguments, reason = "each is one thing that the app has and the client has not")]
pub async fn run<P: Plant, S: Storage + Clone>(
    config: Arc<Config>,
    member: Member,
    plant: Arc<P>,
    storage: S,
    clock: SharedClock,
    time: BelievedTime,
    status: watch::Sender<ClientStatus>,
    token: CancellationToken,
) -> Result<(), RunError> {
    let scope =
        scope(&config, member.only.as_ref()).ok_or_else(|| RunError::setup(&"the device's id is no deviceId"))?;
    status.send_modify(|status| (status.device, status.url) = (scope.top.to_string(), config.url.to_string()));
    let source = Arc::new(Source::new(config.source.clone(), member.images()).map_err(|e| RunError::setup(&e))?);
    let parts = |exchange: Arc<HttpExchange>| Parts {
        config: config.clone(),
        scope: scope.clone(),
        only: member.only.clone(),
        plant: plant.clone(),
        storage: storage.clone(),
        exchange,
        source: source.clone(),
        clock: clock.clone(),
    };
    match &config.generation {
        Generation::Rc3 { bundle, tls, max_age } => {
            let (desk, exchange, changes) = rc3(&config, &member, bundle, *tls, *max_age, &clock, &time);
            let dialect: Arc<dyn Dialect> = Arc::new(Rc3::new(config.url.clone()));
            let client = Client::load(parts(Arc::new(exchange)), dialect, changes, status).await?;
            let inner = token.child_token();
            let keeping = tokio::spawn(desk.run(inner.clone()));
            let outcome = client.run(token).await;
            inner.cancel();
            // It watches the token between two looks and ends soon; a panic in it is told by the runtime.
            let _ended = keeping.await;
            Ok(outcome?)
        }
        Generation::Preview { ca, pss } => {
            let tls = ClientTls::load(
                ClientTlsFiles { ca: ca.clone(), certificate: None, key: None, server_name: None },
                &time,
            );
            let tls = tls.map_err(|e| RunError::setup(&e))?;
            let make = move || Ok(Tls { config: tls.current().as_ref().clone(), max_age: Duration::from_secs(3_600) });
            let exchange = Arc::new(HttpExchange::new(make, config.timeout, clock.clone()));
            let onboarding = onboard(&config, &member.identity, *pss, exchange.as_ref(), &storage, &status);
            let dialect = tokio::select! {
                () = token.cancelled() => return Ok(()),
                dialect = onboarding => dialect?,
            };
            // The key of the older interface is exchanged with a restart: the client id hangs on it.
            let (_keep, changes) = watch::channel(format!("{} {}", config.url, dialect.client()));
            let client = Client::load(parts(exchange), Arc::new(dialect), changes, status).await?;
            Ok(client.run(token).await?)
        }
    }
}

#[allow(clippy::too_many_arguments, reason = "a part of `run`, split off to fit a screen")]
fn rc3(
    config: &Config,
    member: &Member,
    bundle: &BundleSource,
    tls: TlsVersions,
    max_age: Duration,
    clock: &SharedClock,
    time: &BelievedTime,
) -> (IdentityDesk, HttpExchange, watch::Receiver<String>) {
    let shared = SharedMaterial::default();
    let (material, believed) = (shared.clone(), time.clone());
    let make = move || material.tls(&believed, tls, max_age);
    let exchange = HttpExchange::new(make, config.timeout, clock.clone());
    let cache = BundleCache::new(&member.directory, Disk::default());
    let keeper = Keeper::new(member.identity.clone(), bundle.clone(), cache);
    let (changes, seen) = watch::channel(String::new());
    let (exchange2, time, clock) = (exchange.clone(), time.clone(), clock.clone());
    let mut desk = IdentityDesk { keeper, shared, exchange: exchange2, changes, time, clock };
    // What is on disk is used from the first request on.
    desk.look();
    (desk, exchange, seen)
}

/// Onboards once per key and server; asks again, with pauses, until it is accepted.
async fn onboard<S: Storage>(
    config: &Config,
    files: &IdentityFiles,
    pss: bool,
    exchange: &HttpExchange,
    storage: &S,
    status: &watch::Sender<ClientStatus>,
) -> Result<Preview, RunError> {
    let pem = std::fs::read_to_string(&files.chain)
        .map_err(|error| RunError::Setup(format!("the certificate {}: {error}", files.chain.display())))?;
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| RunError::setup(&e))?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| RunError::Setup(format!("the key {}: {error}", files.key.display())))?;
    let signer = RequestSigner::new(&certificate, &key, pss).map_err(|e| RunError::setup(&e))?;
    for (name, value) in storage.scan(CLIENT_KEY).await? {
        let known: Onboarded = read(&name, &value)?;
        if known.server == config.url.to_string() && known.key == signer.key_id() {
            return Ok(Preview::new(config.url.clone(), known.client, signer));
        }
    }
    let mut backoff = Backoff::upto(config.polling.every);
    loop {
        let answer = exchange.send(onboard_request(&config.url, &pem)).await;
        let (why, problem) = match answer.as_ref().map(|response| (judge(response), parse_onboarded(&response.body))) {
            Ok((Verdict::Done, Some(client))) => {
                let onboarded = Onboarded {
                    server: config.url.to_string(),
                    key: signer.key_id().to_owned(),
                    client: client.clone(),
                };
                storage.commit(vec![Change::put(CLIENT_KEY.to_owned(), &onboarded)?]).await?;
                return Ok(Preview::new(config.url.clone(), client, signer));
            }
            Ok((Verdict::Done | Verdict::Unchanged, _)) => ("its answer has no clientId".to_owned(), None),
            Ok((
                Verdict::Later(problem)
                | Verdict::Refused(problem)
                | Verdict::NotFound(problem)
                | Verdict::ParentMissing(problem)
                | Verdict::Retired(problem),
                _,
            )) => (problem.to_string(), Some(problem)),
            Err(error) => (ExchangeError::to_string(error), None),
        };
        let text = format!("the fleet manager does not onboard this gateway: {why}");
        tracing::warn!("{text}");
        status.send_modify(|status| (status.connected, status.problem) = (false, text));
        let draw = rand::Rng::random_range(&mut rand::rng(), 0.0..1.0);
        tokio::time::sleep(backoff.pause(problem.as_ref(), draw)).await;
    }
}
