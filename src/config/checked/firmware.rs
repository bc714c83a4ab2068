//! `[firmware]`: which updates are taken, and when.

use std::path::PathBuf;
use std::time::Duration;

use crate::management::firmware::Window;

/// `[firmware]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// Files with the public keys that may sign, PEM. Without any nothing is taken.
    pub keys: Vec<PathBuf>,
    /// Largest artifact, 1 KiB to 1 GiB.
    pub max_size: u64,
    /// When an offer that wants it is approved without a person.
    pub window: Option<Window>,
    /// Most octets per second of a download.
    pub rate: Option<u64>,
    /// How long a new version of the gateway may take to report healthy, 1 s to 1 h.
    pub prove_within: Duration,
    /// Authorities that vouch for `https` servers, PEM; `None` for the operating system's.
    pub ca: Option<PathBuf>,
}
