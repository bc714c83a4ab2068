//! The published contract, version 1: messages from `proto/fieldgate/v1`, their two encodings and the topic names.
//!
//! Promise: everything that leaves or enters the gateway over MQTT is one of these messages on one of these topics, and
//! `docs/topics.md` is tested against them. Fields are only ever added; a breaking change is a new version beside this
//! one. Pure: no I/O, no clock.

mod convert;
mod encoding;
pub mod json;
pub mod mend;
mod stamped;
pub mod topics;
pub mod view;

/// Generated from `proto/fieldgate/v1/*.proto`; serde follows the proto3 JSON mapping.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/fieldgate.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/fieldgate.v1.serde.rs"));
}

pub use convert::{gap, json_value, point_value, telemetry, timestamp, value_from_json};
pub use encoding::{ContractMessage, DecodeError, Encoding, with_delivery};
pub use stamped::Stamped;
