//! **fieldgate** turns brownfield devices (PLCs, drives, meters, sensors) into devices that MQTT, SCADA and Margo
//! systems can onboard, configure, read and manage.
//!
//! The data path is [`southbound`] → [`pipeline`] → [`store`] → [`northbound`] → [`broker`] or an external broker.
//! [`app`] wires it; nothing else knows the whole. `docs/ARCHITECTURE.md` draws the path and lists the invariants, and
//! `tests/module_edges.rs` refuses an import that the architecture does not allow.
#![forbid(unsafe_code)]

pub mod admin;
pub mod app;
pub mod broker;
pub mod cli;
pub mod config;
pub mod contract;
pub mod management;
#[cfg(feature = "margo")]
pub mod margo;
pub mod model;
pub mod northbound;
pub mod pipeline;
pub mod platform;
pub mod security;
pub mod southbound;
pub mod store;
pub mod telemetry;
