//! Where artifacts come from, and whose signatures count.

use std::path::PathBuf;

#[cfg(feature = "download")]
use rustls::ClientConfig;

use crate::management::firmware::TrustedKeys;
use crate::security::pki::BelievedTime;

#[cfg(not(feature = "download"))]
pub(super) use crate::management::firmware::FileFetch as Source;
#[cfg(feature = "download")]
pub(super) use crate::management::firmware::HttpFetch as Source;

/// The public keys of all files.
pub(super) fn keys(files: &[PathBuf]) -> Result<TrustedKeys, String> {
    let mut all = String::new();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|e| format!("read {}: {e}", file.display()))?;
        TrustedKeys::from_pem(&text).map_err(|e| format!("{}: {e}", file.display()))?;
        all.push_str(&text);
        all.push('\n');
    }
    if files.is_empty() { Ok(TrustedKeys::default()) } else { TrustedKeys::from_pem(&all).map_err(|e| e.to_string()) }
}

/// Makes a source for each target.
pub(super) struct Sources {
    #[cfg(feature = "download")]
    tls: ClientConfig,
}

#[cfg(feature = "download")]
impl Sources {
    pub(super) fn new(ca: Option<PathBuf>, time: &BelievedTime) -> Result<Self, String> {
        Ok(Self { tls: download_tls(ca, time)? })
    }

    pub(super) fn make(&self) -> Result<Source, String> {
        Source::new(self.tls.clone()).map_err(|e| e.to_string())
    }
}

#[cfg(not(feature = "download"))]
impl Sources {
    pub(super) fn new(_: Option<PathBuf>, _: &BelievedTime) -> Result<Self, String> {
        Ok(Self {})
    }

    pub(super) fn make(&self) -> Result<Source, String> {
        Ok(Source::default())
    }
}

/// Without a bundle of the system no `https` server is believed; everything else goes on.
#[cfg(feature = "download")]
fn download_tls(ca: Option<PathBuf>, time: &BelievedTime) -> Result<ClientConfig, String> {
    use crate::security::{ClientTls, ClientTlsFiles};
    let asked = ca.is_some();
    let ca = ca.unwrap_or_else(|| PathBuf::from(crate::config::SYSTEM_CA));
    match ClientTls::load(ClientTlsFiles { ca, certificate: None, key: None, server_name: None }, time) {
        Ok(tls) => Ok(ClientConfig::clone(&tls.current())),
        Err(error) if asked => Err(error.to_string()),
        Err(_) => {
            let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
            let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            let builder = builder.map_err(|e| e.to_string())?;
            Ok(builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth())
        }
    }
}
