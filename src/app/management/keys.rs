//! Two small files of device management below `{data}/management`: the key that signs documents of transfers, and the hash of
//! a claim code that `fieldgate init` printed and the gateway has not taken over yet. Both have mode 0600.

use std::io;
use std::path::{Path, PathBuf};

use crate::management::transfer::SigningKey;
use crate::platform::durable::{Access, Disk};

const SIGNING: &str = "signing.key";
const CLAIM: &str = "claim-code";

fn directory(data_dir: &Path) -> PathBuf {
    data_dir.join("management")
}

/// The gateway's key, made when there is none.
///
/// # Errors
/// Words for people.
pub fn signing_key(data_dir: &Path) -> Result<SigningKey, String> {
    let path = directory(data_dir).join(SIGNING);
    let told = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    match std::fs::read(&path) {
        Ok(der) => SigningKey::from_pkcs8(&der).map_err(|e| told(&e)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (key, der) = SigningKey::generate().map_err(|e| told(&e))?;
            keep(data_dir, SIGNING, &der).map_err(|e| told(&e))?;
            Ok(key)
        }
        Err(error) => Err(told(&error)),
    }
}

/// Leaves the hash of a claim code for the next start of the gateway.
///
/// # Errors
/// When the file cannot be written.
pub fn leave_claim_code(data_dir: &Path, hash: &str) -> io::Result<()> {
    keep(data_dir, CLAIM, hash.as_bytes())
}

/// The hash that was left.
///
/// # Errors
/// Words for people.
pub fn claim_code(data_dir: &Path) -> Result<Option<String>, String> {
    let path = directory(data_dir).join(CLAIM);
    match std::fs::read_to_string(&path) {
        Ok(hash) => Ok(Some(hash.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// The gateway has taken it over.
///
/// # Errors
/// Words for people.
pub fn forget_claim_code(data_dir: &Path) -> Result<(), String> {
    let path = directory(data_dir).join(CLAIM);
    Disk::default().remove(&path).map_err(|e| format!("{}: {e}", path.display()))
}

fn keep(data_dir: &Path, name: &str, octets: &[u8]) -> io::Result<()> {
    let disk = Disk::default();
    disk.create_directory(data_dir, Access::Private)?;
    disk.create_directory(&directory(data_dir), Access::Private)?;
    disk.replace(&directory(data_dir).join(name), octets, Access::Private)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_and_the_claim_code_is_taken_once() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let key = signing_key(&data).unwrap();
        assert_eq!(signing_key(&data).unwrap().public(), key.public());
        let mode = std::fs::metadata(data.join("management/signing.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(claim_code(&data).unwrap(), None);
        leave_claim_code(&data, "abc").unwrap();
        assert_eq!(claim_code(&data).unwrap().as_deref(), Some("abc"));
        forget_claim_code(&data).unwrap();
        assert_eq!(claim_code(&data).unwrap(), None);
    }
}
