//! The side of the devices: links, polling, writing.
//!
//! **Promise.** A value is handed over only if it was in the reply to the request that asked for it. Whatever goes wrong is
//! handed over too, at once and with a reason: a point is never silently old. One dead device costs its bus-mates at most
//! a few timeouts and then a twentieth of the bus's time. Nothing is polled faster than it can be taken over: cycles that
//! cannot run are left out and counted with their cause.
//!
//! **Shape.** One task owns one physical link ([`link`]) and serves all devices on it through a protocol's [`driver`].
//! [`schedule`] says when, [`breaker`] whether, the driver's planner with which requests; all three are pure. The handle
//! [`Southbound`] starts, changes and stops links and routes writes. Everything read goes out as [`Update`] over one
//! bounded channel.
//!
//! **Limits.** Poll intervals from 50 ms to 24 h; one request under way on a link; 64 commands may wait for a link, more are
//! refused; a stop takes at most 2 s even if a device hangs.
//!
//! **Must not** know the pipeline, the store or anything northbound: values leave raw, unscaled and unfiltered.

#[cfg(not(feature = "modbus"))]
compile_error!("a gateway without a protocol reads nothing: enable the feature `modbus`");

pub mod breaker;
mod config;
mod device;
pub mod driver;
mod error;
pub mod explain;
mod link;
#[cfg(feature = "modbus")]
pub mod modbus;
pub mod schedule;
mod supervisor;
mod update;

pub use config::{ConfigError, DeviceConfig, DriverConfig, FASTEST, LinkKey, RateGroup, SLOWEST};
pub use error::{ExchangeError, IdentifyError, WriteDone, WriteError};
pub use supervisor::{Applied, Southbound};
pub use update::{DeviceState, DeviceStats, Identity, PointResult, Scan, Update};
