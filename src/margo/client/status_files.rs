//! The status of a client on the disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::status::ClientStatus;
use crate::platform::durable::{Access, Disk};

/// For whoever asks while the gateway runs or after it. What each poll changes is a small file; the
/// table of deployments is another, which is written only when a deployment changed, for the sake of the flash.
#[derive(Debug)]
pub struct StatusFiles {
    directory: PathBuf,
    written: Option<ClientStatus>,
}

impl StatusFiles {
    /// Those of the client whose directory it is.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), written: None }
    }

    fn status(&self) -> PathBuf {
        self.directory.join("status.json")
    }

    fn deployments(&self) -> PathBuf {
        self.directory.join("deployments.json")
    }

    /// Writes what differs from what was written before. Blocks.
    ///
    /// # Errors
    /// When the file system refuses; the next call then writes everything.
    pub fn write(&mut self, status: ClientStatus) -> io::Result<()> {
        let written = self.written.take();
        let disk = Disk::default();
        disk.create_directory(&self.directory, Access::Private)?;
        if written.as_ref().is_none_or(|written| written.deployments != status.deployments) {
            disk.replace(&self.deployments(), &serde_json::to_vec(&status.deployments)?, Access::Private)?;
        }
        let rest = ClientStatus { deployments: Arc::default(), ..status.clone() };
        disk.replace(&self.status(), &serde_json::to_vec(&rest)?, Access::Private)?;
        self.written = Some(status);
        Ok(())
    }

    /// Reads what was written last.
    ///
    /// # Errors
    /// An error that names the file: there is none before the gateway ran, or it is not ours.
    pub fn read(&self) -> io::Result<ClientStatus> {
        Ok(ClientStatus { deployments: read(&self.deployments())?, ..read(&self.status())? })
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> io::Result<T> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let bytes = std::fs::read(path).map_err(named)?;
    serde_json::from_slice(&bytes).map_err(|error| named(error.into()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::margo::client::DeploymentLine;

    fn line(state: &str) -> DeploymentLine {
        DeploymentLine {
            deployment: "d".to_owned(),
            device: "plant/pump".to_owned(),
            adopted: 3,
            state: state.to_owned(),
            reason: String::new(),
        }
    }

    #[test]
    fn the_table_is_written_when_a_deployment_changed_and_a_poll_writes_a_few_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = StatusFiles::new(&directory.path().join("margo"));
        assert!(files.read().unwrap_err().to_string().contains("deployments.json"));
        let deployments = Arc::new(vec![line("installing"); 1_000]);
        let status = ClientStatus { polled_ms: 1, deployments, ..ClientStatus::default() };
        files.write(status.clone()).unwrap();
        assert_eq!(files.read().unwrap(), status);
        let table = |files: &StatusFiles| std::fs::metadata(files.deployments()).unwrap().ino();
        let before = table(&files);
        let status = ClientStatus { polled_ms: 2, ..status };
        files.write(status.clone()).unwrap();
        assert_eq!((files.read().unwrap(), table(&files)), (status.clone(), before));
        assert!(std::fs::metadata(files.status()).unwrap().len() < 1_000);
        let status = ClientStatus { deployments: Arc::new(vec![line("installed")]), ..status };
        files.write(status.clone()).unwrap();
        assert_eq!(files.read().unwrap(), status);
        assert_ne!(table(&files), before, "a new file took its place");
    }
}
