//! The task that keeps identity and bundle fresh, and what connections take from it.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::margo::desired::ExchangeError;
use crate::margo::http::{HttpExchange, Tls, fetch_bundle};
use crate::margo::identity::{Keeper, KeeperError, Material, Swap, TlsVersions, client_config, connection_cap};
use crate::platform::clock::SharedClock;
use crate::security::pki::BelievedTime;

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(3);

/// Identity and bundle in force, for whoever makes a connection.
#[derive(Debug, Clone)]
pub struct SharedMaterial(Arc<RwLock<Result<Material, String>>>);

impl Default for SharedMaterial {
    fn default() -> Self {
        Self(Arc::new(RwLock::new(Err("neither identity nor trust bundle were read yet".to_owned()))))
    }
}

impl SharedMaterial {
    /// TLS for a new connection at `time`.
    ///
    /// # Errors
    /// [`ExchangeError::NotReady`] in words: which file, which rule, which clock.
    pub fn tls(&self, time: &BelievedTime, versions: TlsVersions, max_age: Duration) -> Result<Tls, ExchangeError> {
        let slot = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let material = slot.as_ref().map_err(|why| ExchangeError::NotReady(why.clone()))?;
        let config = client_config(&material.own, material.bundle.clone(), Arc::new(time.clone()), versions)
            .map_err(|error| ExchangeError::NotReady(format!("our own SVID cannot be used for TLS: {error}")))?;
        let max_age = connection_cap(material.own.validity(), time.reading().seconds, max_age);
        Ok(Tls { config, max_age })
    }

    fn set(&self, material: Result<Material, String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = material;
    }
}

/// Runs a [`Keeper`].
#[derive(Debug)]
pub struct IdentityDesk {
    /// The keeper.
    pub keeper: Keeper,
    /// Where connections take it from.
    pub shared: SharedMaterial,
    /// Connections to end after an exchange.
    pub exchange: HttpExchange,
    /// Tells our name, anew with every exchange.
    pub changes: watch::Sender<String>,
    /// Time as certificates see it.
    pub time: BelievedTime,
    /// Clocks.
    pub clock: SharedClock,
}

impl IdentityDesk {
    /// Looks at the files now; connections use what was found.
    pub fn look(&mut self) {
        let found = self.keeper.look();
        self.take(found);
    }

    fn take(&mut self, found: Vec<Result<Swap, KeeperError>>) {
        let mut why = None;
        let mut exchanged = false;
        for swap in found {
            match swap {
                Ok(swap) => {
                    exchanged = true;
                    let what = if swap == Swap::Identity { "SVID" } else { "trust bundle" };
                    tracing::info!("new {what} for the fleet manager is in force");
                }
                Err(error) => {
                    tracing::error!("{error}; what was in force stays");
                    why = Some(error.to_string());
                }
            }
        }
        match self.keeper.material() {
            Some(material) if exchanged => {
                if let Some(complaint) = material.own.complaint(&material.bundle, self.time.reading().seconds) {
                    tracing::warn!("the fleet manager will probably refuse our own SVID: {complaint}");
                }
                if let Some(complaint) = self.keeper.files().misnamed(&material.own) {
                    tracing::warn!("{complaint}");
                }
                let name = material.own.name().id().to_string();
                self.shared.set(Ok(material));
                self.exchange.renew();
                self.changes.send_replace(name);
            }
            None => {
                if let Some(why) = why {
                    self.shared.set(Err(why));
                    // What was made with an identity that is gone is not used any more.
                    self.exchange.renew();
                } else if exchanged && self.keeper.own().is_some() {
                    self.shared.set(Err("there is no trust bundle yet".to_owned()));
                }
            }
            Some(_) => {}
        }
    }

    /// Looks and fetches until `token` is cancelled.
    ///
    /// # Errors
    /// Never; the signature is that of a supervised task.
    pub async fn run(mut self, token: CancellationToken) -> Result<(), String> {
        loop {
            self.look();
            if self.exchange.was_doubted() {
                self.keeper.hurry(self.clock.now());
            }
            let domain = self.keeper.own().map(|own| own.name().id().trust_domain().to_owned());
            if let Some(domain) = domain.filter(|_| self.keeper.due(self.clock.now())) {
                let source = self.keeper.source().clone();
                let fetched = fetch_bundle(&source, &domain, Arc::new(self.time.clone())).await;
                let taken = self.keeper.fetched(fetched, self.clock.now());
                let found = match taken {
                    Ok(swap) => swap.map(Ok).into_iter().collect(),
                    Err(error) => vec![Err(error)],
                };
                self.take(found);
            }
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}
