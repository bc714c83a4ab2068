//! **Simulated Margo services**: a Workload Fleet Manager ([`Wfm`]), the trust-bundle and discovery server
//! ([`Discovery`]), an OCI registry ([`OciRegistry`]) and the authority behind all certificates ([`Authority`]). [`Site`]
//! runs them together from a [`Scenario`], with a page and a control API.
//!
//! Promise: they are written from the interface's reference, not from the gateway, and check what they receive as strictly
//! as the reference states it. Faults ([`Fault`], [`Flaw`], [`Down`], [`DiscoveryFault`], [`RegistryFault`]) break one rule
//! each, so that a refusal proves that rule.
//!
//! Limits: test doubles. State is in memory, histories are bounded, sockets are on loopback unless told otherwise.
//!
//! In a test:
//! ```no_run
//! # use std::time::Duration;
//! # use fieldgate_simulators::margo::{Authority, Deployment, Fault, Flaw, Op, Rule, Wfm, WfmOptions};
//! # async fn test() -> Result<(), Box<dyn std::error::Error>> {
//! let authority = Authority::new("plant.example")?;
//! let wfm = Wfm::start(WfmOptions::new(authority.clone())).await?;
//! // For the client: its base URL, its SVID, and the bundle.
//! let url = wfm.url();
//! let svid = authority.client_svid(wfm.id(), "gateway-7", Duration::from_secs(3600), Flaw::None)?;
//! let (chain, key, bundle) = (&svid.chain_pem, &svid.key_pem, authority.bundle().to_string());
//! // The client reports `gw` and `gw/mixer`; wait for it without sleeping.
//! let patience = Duration::from_secs(30);
//! wfm.wait("the mixer", patience, |seen| seen.devices.contains_key("gw/mixer").then_some(())).await?;
//! let id = wfm.deploy(Deployment::custom("gw/mixer", "recipe").component("recipe", "oci://127.0.0.1:5000/recipe", "1.0.0"))?;
//! wfm.wait("installed", patience, |seen| (seen.state(&id) == Some("installed")).then_some(())).await?;
//! // Spoil things: the next manifest names a wrong digest; every status POST loses its answer.
//! wfm.inject(Rule::from(Fault::EntryDigest { index: 0 }).times(1));
//! wfm.inject(Rule::from(Fault::LoseAnswer).on(Op::Status));
//! wfm.serve(Flaw::Expired)?;
//! // What was received, and what of it contradicts the reference.
//! assert_eq!(wfm.records().notes(), Vec::<String>::new());
//! # Ok(()) }
//! ```

mod discovery;
mod error;
mod http;
mod registry;
pub mod schema;
mod scripted;
mod site;
mod spiffe;
mod tls;
mod tools;
pub mod wfm;

pub use discovery::{Discovery, DiscoveryFault, WebCertificate};
pub use error::MargoSimError;
pub use http::Down;
pub use registry::{Layer, OciRegistry, RegistryFault, RegistryOptions};
pub use scripted::Times;
pub use site::{Scenario, Site};
pub use spiffe::{Authority, Flaw, KeyKind, Svid};
pub use tls::TlsVersions;
pub use wfm::deployment::{Component, Deployment, Document, Parameter};
pub use wfm::faults::{Fault, Rule, TypeRoot};
pub use wfm::records::{Op, Records};
pub use wfm::{Generation, Options as WfmOptions, Wfm};
