//! All services together, from a [`Scenario`]: the fleet manager, discovery, the registry, and on one more port the page
//! and the control API ([`control`]).

mod control;
mod scenario;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use super::registry::RegistryOptions;
use super::{Authority, Discovery, Layer, MargoSimError, OciRegistry, Wfm, WfmOptions};

pub use scenario::Scenario;

/// What the control API acts on.
pub(crate) struct Services {
    pub authority: Arc<Authority>,
    pub wfm: Wfm,
    pub discovery: Discovery,
    pub registry: OciRegistry,
}

/// Running services; they end when dropped.
pub struct Site {
    services: Arc<Services>,
    control: control::Control,
}

impl Site {
    /// Starts everything and does what the scenario says.
    pub async fn start(scenario: Scenario) -> Result<Self, MargoSimError> {
        let authority = Authority::new(&scenario.trust_domain)?;
        let credentials = scenario.registry.user.clone().zip(scenario.registry.password.clone());
        let registry =
            OciRegistry::start(RegistryOptions { listen: scenario.registry.listen, credentials, certificate: None })
                .await?;
        for artifact in &scenario.artifacts {
            let layers = artifact.layers.iter().map(|layer| Layer {
                media_type: layer.media_type.clone(),
                title: layer.title.clone(),
                content: layer.text.clone().into_bytes(),
            });
            registry.push(&artifact.name, &artifact.tag, &artifact.kind, &layers.collect::<Vec<_>>());
        }
        let wfm = Wfm::start(WfmOptions {
            wfm: scenario.wfm.clone(),
            listen: scenario.listen,
            prefix: scenario.prefix.clone(),
            generation: scenario.generation,
            mode: scenario.mode,
            tls: scenario.tls,
            clients: scenario.clients.clone(),
            ..WfmOptions::new(authority.clone())
        })
        .await?;
        let discovery = Discovery::start(scenario.discovery.listen, authority.clone()).await?;
        let services = Arc::new(Services { authority, wfm, discovery, registry });
        for mut deployment in scenario.deployments {
            services.name_registry(&mut deployment);
            services.wfm.deploy(deployment)?;
        }
        for rule in scenario.faults {
            services.wfm.inject(rule);
        }
        services.wfm.serve(scenario.serve)?;
        services.wfm.set_down(scenario.down).await?;
        let control = control::Control::start(scenario.control, services.clone()).await?;
        Ok(Self { services, control })
    }

    /// The fleet manager.
    pub fn wfm(&self) -> &Wfm {
        &self.services.wfm
    }

    /// The discovery server.
    pub fn discovery(&self) -> &Discovery {
        &self.services.discovery
    }

    /// The registry.
    pub fn registry(&self) -> &OciRegistry {
        &self.services.registry
    }

    /// The authority.
    pub fn authority(&self) -> &Arc<Authority> {
        &self.services.authority
    }

    /// Where the page and the control API are.
    pub const fn control(&self) -> SocketAddr {
        self.control.address()
    }

    /// Writes what a client needs to join: `bundle.json`, `roots.pem`, `discovery-roots.pem`, and for each client
    /// `{client}.pem` (chain) and `{client}.key` (readable by the owner only).
    pub fn write_files(
        &self,
        folder: &Path,
        clients: &[String],
        life: std::time::Duration,
    ) -> Result<(), MargoSimError> {
        std::fs::create_dir_all(folder).map_err(|source| MargoSimError::File { path: folder.to_owned(), source })?;
        let authority = &self.services.authority;
        write(&folder.join("bundle.json"), &authority.bundle().to_string(), 0o644)?;
        write(&folder.join("roots.pem"), &authority.roots_pem(), 0o644)?;
        write(&folder.join("discovery-roots.pem"), &self.services.discovery.roots_pem(), 0o644)?;
        for client in clients {
            let svid = authority.client_svid(self.wfm().id(), client, life, super::Flaw::None)?;
            write(&folder.join(format!("{client}.pem")), &svid.chain_pem, 0o644)?;
            write(&folder.join(format!("{client}.key")), &svid.key_pem, 0o600)?;
        }
        Ok(())
    }
}

impl Services {
    /// `{registry}` in a repository is the registry's address, which is not known before it listens.
    fn name_registry(&self, deployment: &mut super::Deployment) {
        let address = self.registry.address().to_string();
        for component in &mut deployment.components {
            component.repository = component.repository.replace("{registry}", &address);
        }
    }
}

fn write(path: &Path, content: &str, mode: u32) -> Result<(), MargoSimError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let open = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path);
    let written = open.and_then(|mut file| file.write_all(content.as_bytes()));
    written.map_err(|source| MargoSimError::File { path: path.to_owned(), source })
}
