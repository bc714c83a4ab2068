//! Certificates of devices that connect by themselves, from the plant's authority. What is issued or revoked here is that of
//! `fieldgate certs`: the running listeners take it up within a minute.

use crate::model::DeviceId;
use crate::platform::clock::SharedClock;
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

    /// The chain in PEM that answers a request of a device; empty for one that has a certificate already and keeps it.
    pub fn issue(&self, device: &DeviceId, signing_request: &str) -> Result<String, String> {
        let mut pki = self.open()?;
        let subject = ClientSubject::Device(device.clone());
        if signing_request.is_empty() {
            return match pki.newest(&subject) {
                Some(_) => Ok(String::new()),
                None => Err(format!(
                    "{device} sent no request for a certificate; `fieldgate certs issue --device {device}` makes one"
                )),
            };
        }
        let request = CertificateRequest::from_pem(signing_request).map_err(|e| e.to_string())?;
        Ok(pki.sign_request(&subject, &request).map_err(|e| e.to_string())?.chain_pem)
    }

    /// Takes back every certificate of a device. Says how many there were.
    pub fn revoke(&self, device: &DeviceId) -> Result<usize, String> {
        if !Pki::exists(&self.config.directory) {
            return Ok(0);
        }
        let mut pki = self.open()?;
        let subject = ClientSubject::Device(device.clone());
        let serials: Vec<_> = pki.standing(&subject).map(|entry| entry.serial.clone()).collect();
        for serial in &serials {
            pki.revoke(serial, Reason::CessationOfOperation).map_err(|e| e.to_string())?;
        }
        Ok(serials.len())
    }
}
