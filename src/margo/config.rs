//! The settings of the client, checked.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::api::Base;
use super::capabilities::Hosting;
use super::component::SourceConfig;
use super::host::ContainerEngine;
use super::identity::{BundleSource, IdentityFiles, TlsVersions};
use super::plant::Functions;
use super::polling::Polling;
use super::reconcile::Wildcard;
use super::words::DevicePath;
use crate::model::DeviceId;

/// Which interface is spoken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Generation {
    /// 1.0.0-rc.3: mutual TLS with SVIDs.
    Rc3 {
        /// Where the trust bundle comes from.
        bundle: BundleSource,
        /// Versions of TLS.
        tls: TlsVersions,
        /// Longest life of a connection; a tenth of the SVID's life, if that is shorter.
        max_age: Duration,
    },
    /// The preview release: onboarding and signed requests.
    Preview {
        /// PEM file of the authorities that the server is verified by.
        ca: PathBuf,
        /// rsa-pss-sha512 for RSA keys, instead of rsa-v1_5-sha256.
        pss: bool,
    },
}

/// What the fleet manager sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// The gateway and each child.
    SeeThru,
    /// One device.
    Opaque,
    /// Each of these devices by itself, with an identity of its own.
    Transparent(BTreeMap<DeviceId, IdentityFiles>),
}

/// One client of the fleet manager: the gateway, or one device of a transparent gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The device; `None` is the gateway with all of its devices.
    pub only: Option<DeviceId>,
    /// Its SVID, or the certificate that signs its requests.
    pub identity: IdentityFiles,
    /// What it keeps in files: the cached trust bundle, images of firmware, its status.
    pub directory: PathBuf,
}

impl Member {
    /// Where Compose projects lie.
    pub fn projects(&self) -> PathBuf {
        self.directory.join("compose")
    }

    /// Where images of firmware lie until a device has taken them.
    pub fn images(&self) -> PathBuf {
        self.directory.join("firmware")
    }
}

/// What is said about a device, and what it delegates to Margo.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Details {
    /// Instead of what the device reveals.
    pub vendor: Option<String>,
    /// Instead of what the device reveals.
    pub model: Option<String>,
    /// Instead of what the device reveals.
    pub serial: Option<String>,
    /// The device that it is behind; nobody for one directly behind the gateway.
    pub parent: Option<DeviceId>,
    /// Labels.
    pub labels: BTreeMap<String, Value>,
    /// `x-…-extensions`.
    pub extensions: BTreeMap<String, Value>,
    /// What may be deployed to it; `None` is the default of all devices.
    pub delegate: Option<Functions>,
    /// Resources, for a device that hosts workloads.
    pub hosting: Option<Hosting>,
    /// Its container engine, for one that takes `compose` deployments.
    pub engine: Option<ContainerEngine>,
}

/// All settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The fleet manager.
    pub url: Base,
    /// Which interface.
    pub generation: Generation,
    /// Our SVID, or the certificate that signs requests.
    pub identity: IdentityFiles,
    /// What it sees.
    pub mode: Mode,
    /// The gateway's `deviceId`.
    pub device: DevicePath,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// When it is asked.
    pub polling: Polling,
    /// What `gateway/*` means.
    pub wildcard: Wildcard,
    /// Where components come from.
    pub source: SourceConfig,
    /// What may be deployed to devices that say nothing else.
    pub delegate: Functions,
    /// The gateway itself.
    pub gateway: Details,
    /// Devices about which something is said.
    pub devices: BTreeMap<DeviceId, Details>,
    /// What the clients keep in files; see [`Config::members`].
    pub directory: PathBuf,
}

impl Config {
    /// The clients: one, or one per device of a transparent gateway.
    pub fn members(&self) -> Vec<Member> {
        match &self.mode {
            Mode::SeeThru | Mode::Opaque => {
                let (identity, directory) = (self.identity.clone(), self.directory.clone());
                vec![Member { only: None, identity, directory }]
            }
            Mode::Transparent(devices) => {
                let member = |(device, identity): (&DeviceId, &IdentityFiles)| Member {
                    only: Some(device.clone()),
                    identity: identity.clone(),
                    directory: self.directory.join(device.as_str()),
                };
                devices.iter().map(member).collect()
            }
        }
    }

    /// A gateway `gw` with recipes delegated, and nothing else said.
    #[cfg(test)]
    pub(super) fn for_tests(directory: &std::path::Path) -> Self {
        let bundle = BundleSource::File(PathBuf::new());
        Self {
            url: Base::new("https://wfm.example").unwrap(),
            generation: Generation::Rc3 { bundle, tls: TlsVersions::Only13, max_age: Duration::from_secs(3_600) },
            identity: IdentityFiles::default(),
            mode: Mode::SeeThru,
            device: DevicePath::new("gw").unwrap(),
            timeout: Duration::from_secs(10),
            polling: Polling::default(),
            wildcard: Wildcard::One,
            source: SourceConfig::default(),
            delegate: Functions { recipe: true, ..Functions::default() },
            gateway: Details::default(),
            devices: BTreeMap::new(),
            directory: directory.to_owned(),
        }
    }
}
