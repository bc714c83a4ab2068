//! Devices change hands between gateways (or a gateway and a management service), with exactly one owner at any time.
//!
//! Three signed documents travel, by file or by topic:
//! 1. `export`, from the owner: devices, their configuration in force with its history, their pinned identity. The owner
//!    keeps reading.
//! 2. `receipt`, from the other side: it holds the devices as `receiving`, does not touch them, and vouches for the digest of
//!    the export.
//! 3. `release`, from the owner: made by importing the receipt. In the same commit the devices become `transferred`; this is
//!    the moment at which ownership passes. The other side imports the release and takes them into service.
//!
//! Between 2 and 3 the owner can cancel; a receipt that comes later is refused. Until the release arrives nobody reads, but
//! never two. Every document can be imported again: the answer is the same.
//!
//! Documents are signed with Ed25519 and checked against the keys of the partners in the files. They hold no credentials:
//! the new owner issues its own. A document is `fgx1.{payload}.{signature}`, both parts base64url; the payload is JSON.
//!
//! Limits: 1,000 devices and 768 KiB per document, 64 transfers remembered.

mod desk;
mod document;
mod states;

pub(super) use desk::Sign;
pub use desk::{Transfer, Transfers};
pub(super) use document::MAX_DEVICES;
pub use document::{Document, ExportedDevice, Kind, SigningKey};
pub use states::{
    Action as TransferAction, Event as TransferEvent, Guard as TransferGuard, State as TransferState, TABLE,
};
