//! The scenario file (TOML). Every key is documented where it stands; defaults are in brackets.

use std::net::SocketAddr;
use std::path::Path;

use serde::Deserialize;

use crate::margo::schema::Mode;
use crate::margo::{Deployment, Down, Flaw, Generation, MargoSimError, Rule, TlsVersions};

/// The built-in one.
const DEFAULT: &str = include_str!("../../../scenarios/margo.toml");
/// That of the demo.
const PUMP_STATION: &str = include_str!("../../../scenarios/pump-station-margo.toml");

/// What to run.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Trust domain. [`plant.example`]
    #[serde(default = "trust_domain")]
    pub trust_domain: String,
    /// The WFM's id in it. [`wfm-1`]
    #[serde(default = "wfm")]
    pub wfm: String,
    /// Where the fleet manager listens. [a free port of loopback]
    #[serde(default = "any_port")]
    pub listen: SocketAddr,
    /// Where the page and the control API are, loopback only. [a free port of loopback]
    #[serde(default = "any_port")]
    pub control: SocketAddr,
    /// Path before every call. [empty]
    #[serde(default)]
    pub prefix: String,
    /// `rc3` or `older`. [`rc3`]
    #[serde(default)]
    pub generation: Generation,
    /// `any`, `see-thru`, `opaque` or `transparent`. [`any`]
    #[serde(default)]
    pub mode: Mode,
    /// `tls13`, `tls12` or `both`. [`tls13`]
    #[serde(default)]
    pub tls: TlsVersions,
    /// Clients that are welcome. [all of this WFM]
    #[serde(default)]
    pub clients: Vec<String>,
    /// Which SVID is served: `none`, or what is wrong with it. [`none`]
    #[serde(default)]
    pub serve: Flaw,
    /// `up`, `refused`, `reset` or `silent`. [`up`]
    #[serde(default)]
    pub down: Down,
    /// The discovery server.
    #[serde(default)]
    pub discovery: DiscoverySection,
    /// The registry.
    #[serde(default)]
    pub registry: RegistrySection,
    /// Artifacts in the registry.
    #[serde(default, rename = "artifact")]
    pub artifacts: Vec<Artifact>,
    /// What is wanted. `{registry}` in a repository is the registry's address.
    #[serde(default, rename = "deployment")]
    pub deployments: Vec<Deployment>,
    /// Faults from the start.
    #[serde(default, rename = "fault")]
    pub faults: Vec<Rule>,
}

/// `[discovery]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiscoverySection {
    /// Where it listens. [a free port of loopback]
    pub listen: SocketAddr,
}

impl Default for DiscoverySection {
    fn default() -> Self {
        Self { listen: any_port() }
    }
}

/// `[registry]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistrySection {
    /// Where it listens. [a free port of loopback]
    #[serde(default = "any_port")]
    pub listen: SocketAddr,
    /// User that a token costs. [no token is needed]
    #[serde(default)]
    pub user: Option<String>,
    /// Its password.
    #[serde(default)]
    pub password: Option<String>,
}

impl Default for RegistrySection {
    fn default() -> Self {
        Self { listen: any_port(), user: None, password: None }
    }
}

/// `[[artifact]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// Repository.
    pub name: String,
    /// Tag.
    pub tag: String,
    /// `artifactType`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Layers.
    #[serde(rename = "layer")]
    pub layers: Vec<ArtifactLayer>,
}

/// `[[artifact.layer]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArtifactLayer {
    /// Media type.
    pub media_type: String,
    /// File name. [none]
    #[serde(default)]
    pub title: String,
    /// Content.
    pub text: String,
}

fn trust_domain() -> String {
    "plant.example".to_owned()
}

fn wfm() -> String {
    "wfm-1".to_owned()
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

impl Scenario {
    /// The built-in one, as a text to start from.
    pub const fn built_in_text() -> &'static str {
        DEFAULT
    }

    /// A fleet manager for the demo's pump station.
    pub fn pump_station() -> Result<Self, MargoSimError> {
        Self::parse("pump station", PUMP_STATION)
    }

    /// Reads a scenario.
    pub fn parse(name: &str, text: &str) -> Result<Self, MargoSimError> {
        toml::from_str(text)
            .map_err(|source| MargoSimError::Scenario { name: name.to_owned(), source: Box::new(source) })
    }

    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, MargoSimError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| MargoSimError::File { path: path.to_owned(), source })?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Listens on free ports instead of those it names.
    pub fn on_free_ports(mut self) -> Self {
        for address in [&mut self.listen, &mut self.control, &mut self.discovery.listen, &mut self.registry.listen] {
            address.set_port(0);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_scenario_is_one() {
        let scenario = Scenario::parse("built in", DEFAULT).unwrap();
        for scenario in [scenario, Scenario::pump_station().unwrap()] {
            assert!(!scenario.deployments.is_empty());
            assert!(scenario.deployments.iter().all(|deployment| deployment.document().is_ok()));
        }
    }

    #[test]
    fn an_empty_scenario_is_one_and_a_misspelt_key_is_not() {
        assert_eq!(Scenario::parse("empty", "").unwrap().wfm, "wfm-1");
        assert!(Scenario::parse("wrong", "lissten = 1").is_err());
    }
}
