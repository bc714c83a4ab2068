//! Firmware of the gateway and of devices: offered, approved, fetched, checked, installed, proven, or taken back.
//!
//! Promise:
//! - Nothing is installed whose manifest is not signed (ed25519) by a configured key, or whose bytes are not exactly those
//!   that the manifest names (size and SHA-256). Both are checked before anything is fetched or installed, and again from
//!   the disk right before installation.
//! - Older is refused unless allowed; a version that needs a stepping stone says so.
//! - Every stage is durable before it is shown. After a crash at any point the job goes on where it was, and the gateway or
//!   the device runs the old firmware or the new one, never a mix.
//! - A new gateway that does not report healthy in time is replaced by the old one, without anybody's help, even if it
//!   cannot start at all.
//! - Every refusal has a stable code ([`Refusal::code`]).
//!
//! The stages are a table ([`table`]), the plan is pure ([`plan`]), and [`Updater`] acts it out, one step per call, for one
//! target: the gateway ([`GatewayTarget`]) or a device ([`DeviceTarget`]).
//!
//! Limits: one job per target at a time; artifacts up to 1 GiB (configurable below that); one signature algorithm. An
//! artifact is fetched to the gateway's disk first, whatever the target is.
//!
//! On disk, below `<data>/firmware`:
//! ```text
//! jobs/<target>.json                the job of each target
//! incoming/<target>/<sha256>.part   what was fetched so far; synced before the job says so
//! a/fieldgate  b/fieldgate          the gateway's two places, each with its manifest
//! boot.json                         which place starts, and what is on trial
//! ```
//!
//! It must not know how bytes travel to a device (traits [`PduLink`], [`ChunkBus`]), who may approve, or what healthy means
//! to the data path beyond [`HealthReport`].

mod artifact;
mod boot;
mod chunks;
mod device;
mod fetch;
mod file_record;
mod form;
mod gateway;
mod health;
mod job;
mod journal;
mod keys;
mod manifest;
mod plan;
mod refusal;
mod table;
mod updater;
mod version;
mod window;

pub use artifact::{Incoming, sha256_of_file};
pub use boot::{Boot, BootError, BootRecord, Decision, Outcome, Slot, Trial, decide};
pub use chunks::{Ack, AckState, ChunkBus, ChunkTransfer};
pub use device::{DeviceInfo, DeviceRun, DeviceTarget, DeviceTransfer, TransferError};
#[cfg(feature = "download")]
pub use fetch::HttpFetch;
pub use fetch::{Fetch, FetchError, FileFetch, Piece};
pub use file_record::{FileRecordProfile, FileRecordTransfer, PduLink};
pub use form::{AnyTransfer, DeviceForm, Way};
pub use gateway::GatewayTarget;
pub use health::{HealthGate, HealthReport, HealthVerdict};
pub use job::{Approval, Job, Offer, Source};
pub use journal::{FileJournal, Journal, JournalError, MemoryJournal};
pub use keys::{KeyError, SigningKey, TrustedKeys};
pub use manifest::{Manifest, SignedManifest};
pub use plan::{Action, plan};
pub use refusal::{Policy, Refusal, admit};
pub use table::{Event, Stage, TABLE, Transition, diagram, next};
pub use updater::{Delivered, FirmwareError, Proof, Target, TargetError, Updater, UpdaterConfig};
pub use version::Version;
pub use window::Window;
