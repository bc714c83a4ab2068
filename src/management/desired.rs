//! What the user wants of a device and of the gateway (`config/desired`), and what is in force (`config/reported`).
//!
//! Precedence: the files are the base; the desired document is an overlay of the keys in [`document`], laid on them as a
//! whole (a key that the next version leaves out is the file's again). For writes the overlay can only narrow what the
//! files permit: a point that the file locks stays locked, limits become tighter, never wider. `effective` in the
//! reported message names each setting with its origin, `file` or `desired`.
//!
//! Promise:
//! - Versions grow strictly. A document is checked as a whole; every error has a JSON pointer; a document with an error
//!   changes nothing.
//! - A version counts only when it is proven: after it is applied, values arrive in good quality and in the expected range
//!   within a time. Points that were not good before are excused. Else the gateway goes back by itself to the last proven
//!   version and says why.
//! - Devices that a document does not name keep polling.
//! - The last 20 versions (configurable) can be restored; a restored version is a new version and is proven again.
//!
//! Limits: 64 KiB per document, 1,000 errors reported at most (the first 100 are), one version in work and one waiting.

mod desk;
mod document;
mod effective;
mod job;
mod profile;
mod prove;
mod states;
mod wanted;

pub use desk::{Desired, Facts, Reply};
pub use document::{
    CommandLimits, DeadbandOverlay, DeviceOverlay, GatewayOverlay, Interlock, LimitsOverlay, Owner, PointOverlay,
    TimeSettings, parse_device, parse_duration, parse_gateway,
};
pub use job::{Job, Target, Version};
pub use profile::{PointProfile, Profile};
pub use prove::{Observed, Watcher};
pub use states::{Action as ConfigAction, Event as ConfigEvent, Guard as ConfigGuard, State as ConfigState, TABLE};
pub use wanted::Wanted;

/// Largest desired document, in bytes of JSON.
pub const MAX_DOCUMENT: usize = 64 * 1024;
