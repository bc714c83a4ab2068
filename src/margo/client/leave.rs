//! Leaving the fleet manager. The wish is a file, so that it outlives every restart and can be uttered while nothing runs.
//!
//! First the fleet manager removes its deployments, which are undone on devices as always; then every device is taken back,
//! children before their parents; then nothing is sent any more, until the wish is taken back. A client that is to leave at
//! once does not wait for the first: what is deployed stays on the devices.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::engine::{Client, ClientError};
use crate::margo::desired::Exchange;
use crate::margo::plant::Plant;
use crate::margo::storage::Storage;
use crate::platform::durable::{Access, Disk};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// What stands in the file of a client that is to leave at once.
const AT_ONCE: &[u8] = b"at once\n";

/// What somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// To leave when no deployment is left.
    WhenEmpty,
    /// To leave now.
    AtOnce,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Leaving {
    /// Nobody wants to leave.
    #[default]
    No,
    /// The fleet manager has not removed its deployments, or was not told yet that they are.
    Deployments,
    /// It was not told yet that the devices are gone.
    Devices,
    /// It knows of no device of ours, and nothing is sent any more.
    Left,
}

/// The file with the wish.
#[derive(Debug, Clone)]
pub struct LeaveFile(PathBuf);

impl LeaveFile {
    /// In the directory of the configuration; all clients of a transparent gateway leave together.
    pub fn new(directory: &Path) -> Self {
        Self(directory.join("leave"))
    }

    /// What is wanted.
    pub fn wish(&self) -> Option<Wish> {
        let text = std::fs::read(&self.0).ok()?;
        Some(if text == AT_ONCE { Wish::AtOnce } else { Wish::WhenEmpty })
    }

    /// Utters a wish, or takes it back.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn set(&self, wish: Option<Wish>) -> std::io::Result<()> {
        let disk = Disk::default();
        if let Some(directory) = self.0.parent() {
            disk.create_directory(directory, Access::Private)?;
        }
        match wish {
            Some(Wish::AtOnce) => disk.replace(&self.0, AT_ONCE, Access::Private),
            Some(Wish::WhenEmpty) => disk.replace(&self.0, b"when empty\n", Access::Private),
            None if self.0.exists() => disk.remove(&self.0),
            None => Ok(()),
        }
    }

    /// Ends when somebody wants something else.
    pub(super) async fn turns(&self, from: Option<Wish>) {
        while self.wish() == from {
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl<P: Plant, S: Storage + Clone, X: Exchange> Client<P, S, X> {
    pub(super) fn leave_file(&self) -> LeaveFile {
        LeaveFile::new(&self.parts.config.directory)
    }

    /// How far leaving is.
    pub(super) fn leaving(&self) -> Leaving {
        let empty = || self.reconciler.view().next().is_none() && self.reconciler.outbox().is_empty();
        match self.wish {
            None => Leaving::No,
            Some(Wish::WhenEmpty) if !empty() => Leaving::Deployments,
            Some(_) if self.roster.is_known() => Leaving::Devices,
            Some(_) => Leaving::Left,
        }
    }

    /// Whether no device is to be seen any more.
    pub(super) fn retreats(&self) -> bool {
        matches!(self.leaving(), Leaving::Devices | Leaving::Left)
    }

    pub(super) async fn new_wish(&mut self) -> Result<(), ClientError> {
        self.wish = self.leave_file().wish();
        match self.wish {
            Some(_) => tracing::info!("this client leaves its fleet manager"),
            None => tracing::info!("this client stays with its fleet manager"),
        }
        self.look().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_stays_until_it_is_taken_back() {
        let directory = tempfile::tempdir().unwrap();
        let file = LeaveFile::new(&directory.path().join("margo"));
        assert_eq!(file.wish(), None);
        for wish in [Some(Wish::WhenEmpty), Some(Wish::AtOnce), None, None] {
            file.set(wish).unwrap();
            assert_eq!(file.wish(), wish);
        }
    }
}
