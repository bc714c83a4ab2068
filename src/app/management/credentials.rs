//! Certificates of devices that connect by themselves, from the plant's authority. What is issued or revoked here is that of
//! `fieldgate certs`: the running listeners take it up within a minute.

use crate::model::DeviceId;
use crate::platform::clock::SharedClock;
use crate::platform::durable::{Access, Disk};
use crate::security::pki::{CertificateRequest, ClientSubject, Pki, PkiConfig, Reason};

/// The plant's authority, opened when it is needed.
#[derive(Debug)]
pub struct Credentials {
    /// Where it lies, and for how long it issues.
    pub config: PkiConfig,
    /// Time.
    pub clock: SharedClock,
}

impl Credentials {
    fn open(&self) -> Result<Pki, String> {
        if !Pki::exists(&self.config.directory) {
            return Err("this plant has no authority yet; make one with `fieldgate certs ca --create NAME`".to_owned());
        }
        Pki::open(self.config.clone(), self.clock.clone()).map_err(|e| e.to_string())
    }

    /// A device that has a certificate already keeps it; one that sent a request gets it signed, and the chain lies in
    /// `pki/devices/{id}.pem` for it.
    pub fn issue(&self, device: &DeviceId, signing_request: &str) -> Result<(), String> {
        let mut pki = self.open()?;
        let subject = ClientSubject::Device(device.clone());
        if signing_request.is_empty() {
            return match pki.newest(&subject) {
                Some(_) => Ok(()),
                None => Err(format!(
                    "{device} sent no request for a certificate; `fieldgate certs issue --device {device}` makes one"
                )),
            };
        }
        let request = CertificateRequest::from_pem(signing_request).map_err(|e| e.to_string())?;
        let issued = pki.sign_request(&subject, &request).map_err(|e| e.to_string())?;
        let (disk, directory) = (Disk::default(), self.config.directory.join("devices"));
        let kept = disk.create_directory(&directory, Access::Private).and_then(|()| {
            disk.replace(&directory.join(format!("{device}.pem")), issued.chain_pem.as_bytes(), Access::Private)
        });
        kept.map_err(|e| format!("keep the certificate of {device}: {e}"))
    }

    /// Takes back every certificate of a device, and removes the chain that was kept for it. Says how many there were.
    pub fn revoke(&self, device: &DeviceId) -> Result<usize, String> {
        if !Pki::exists(&self.config.directory) {
            return Ok(0);
        }
        let mut pki = self.open()?;
        let subject = ClientSubject::Device(device.clone());
        let mut revoked = 0;
        while let Some(serial) = pki.newest(&subject).map(|entry| entry.serial.clone()) {
            pki.revoke(&serial, Reason::CessationOfOperation).map_err(|e| e.to_string())?;
            revoked += 1;
        }
        match std::fs::remove_file(self.config.directory.join("devices").join(format!("{device}.pem"))) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("remove the certificate of {device}: {error}"))
            }
            _ => Ok(revoked),
        }
    }
}
