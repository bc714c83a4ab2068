//! The life of a device, from the first sight of it to the certificate of its erasure.
//!
//! Promise:
//! - A device is in exactly one [`State`]; every change is a row of [`TABLE`], durable before it has an effect.
//! - Nothing is read from a device that nobody approved (a person, a token, or the policy for devices that are declared in
//!   files), but for the one identification request of a scan that an engineer asked for.
//! - The identity of a device is pinned at approval: its certificate, else what its protocol reveals (vendor, model, serial
//!   number), else its address. When a polled device reveals another one, its values stop being trusted and a person
//!   decides. When somebody announces himself under the name of a known device with other credentials, he is refused and
//!   an alarm is raised; the device itself is not touched.
//!
//! Limits: 10,000 devices, 1,000 of them undeclared and not yet approved, 256 tokens.
//!
//! It must not talk to devices: what it wants is a [`super::step::Step`].

mod announce;
mod errands;
mod handover;
mod identity;
mod record;
mod registry;
mod scan;
mod states;
mod token;
mod transition;
mod types;

pub use announce::Announced;
pub use identity::{Claim, Pin, PinKind};
pub use record::{DeviceRecord, Source};
pub use registry::Lifecycle;
pub use scan::{Finding, ScanError, ScanRequest};
pub use states::{Action, Event, Guard, State, TABLE};
pub use token::{Issued, Token};
pub(super) use token::{hex, random, same_secret, sha256_hex};
pub use types::{Approval, Declaration, Details, Erasure, Follow, Mode, Outcome, Planned, Policy, Stored};
