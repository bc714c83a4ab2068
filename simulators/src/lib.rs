//! **Simulated plants and faults** for the demo and the tests of fieldgate. Nothing here imports the gateway, so what
//! the gateway reads from here was written down twice, by two codecs.
//!
//! * [`Plant`] runs a [`Scenario`]: a physical model ([`physics`]) stepped at a fixed rate, devices that map its
//!   signals to Modbus tables ([`device`]), and the servers in front of them ([`server`]): Modbus TCP, RTU over TCP and
//!   RTU on a serial line. Devices may be slow, die for a while or lie ([`faults`]).
//! * [`proxy::Proxy`] stands between any TCP client and server and spoils the link on command.
//! * `margo` (behind the feature of that name): a Workload Fleet Manager, its trust-bundle server and an OCI registry.
//!
//! Promise: the same scenario with the same seed plays the same. The physics depends on the seed and the number of
//! steps only, and a device draws its faults from its own generator, once per request, so they depend on the order of
//! requests and never on the load of the machine.
//!
//! Limits: it is a test double. It binds to loopback unless told otherwise, has no authentication, and keeps no state.
#![forbid(unsafe_code)]

pub mod clock;
pub mod demo;
pub mod device;
mod error;
#[cfg(feature = "est")]
pub mod est;
pub mod faults;
pub mod firmware_target;
#[cfg(feature = "margo")]
pub mod margo;
pub mod modbus;
pub mod physics;
mod plant;
pub mod proxy;
pub mod rng;
pub mod scenario;
pub mod server;
pub mod signal;
mod world;

pub use error::SimError;
pub use plant::{Endpoint, Plant};
pub use scenario::Scenario;
pub use signal::Signal;
