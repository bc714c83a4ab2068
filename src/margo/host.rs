//! A host's container engine: how it is reached, what it allows, and what its workloads are told.

use std::path::PathBuf;
use std::time::Duration;

use super::component::compose::Allowed;

/// Where an engine listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineAddress {
    /// A socket on this machine: the engine sees the files of this gateway.
    Socket(PathBuf),
    /// `host:port`, with mutual TLS anywhere but on this machine.
    Tcp(String, Option<EngineTls>),
}

/// PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineTls {
    /// Who vouches for the engine.
    pub ca: PathBuf,
    /// Our certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl EngineAddress {
    /// As `DOCKER_HOST` says it.
    pub fn docker_host(&self) -> String {
        match self {
            Self::Socket(path) => format!("unix://{}", path.display()),
            Self::Tcp(place, _) => format!("tcp://{place}"),
        }
    }
}

/// Where workloads send their telemetry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector {
    /// Address of OTLP over HTTP.
    pub http: String,
    /// Address of OTLP over gRPC.
    pub grpc: Option<String>,
    /// Which protocol is to be used.
    pub protocol: String,
    /// Path of the collector's certificate in a container.
    pub certificate: Option<String>,
}

impl Collector {
    /// The variables that workloads are told.
    pub fn variables(&self) -> Vec<(&'static str, &str)> {
        let all = [
            ("HTTP_OTEL_EXPORTER_OTLP_ENDPOINT", Some(&self.http)),
            ("GRPC_OTEL_EXPORTER_OTLP_ENDPOINT", self.grpc.as_ref()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", Some(&self.protocol)),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", self.certificate.as_ref()),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?.as_str()))).collect()
    }
}

/// The container engine of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerEngine {
    /// Compose, version 2 or later, and its first arguments.
    pub command: Vec<String>,
    /// Where the engine listens.
    pub address: EngineAddress,
    /// Directory of the engine's client: logins of registries.
    pub client_config: Option<PathBuf>,
    /// How long a project may take until it runs, if its deployment does not say.
    pub timeout: Duration,
    /// How often it is looked whether what was installed is there.
    pub check_every: Duration,
    /// Whether volumes outlive the removal of their deployment.
    pub keep_volumes: bool,
    /// What a compose file may.
    pub allowed: Allowed,
    /// Where workloads send their telemetry.
    pub collector: Collector,
}

/// Longest time that a deployment may ask for.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(3_600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_are_told_what_the_site_configured() {
        let collector = Collector {
            http: "http://172.17.0.1:4318".to_owned(),
            grpc: None,
            protocol: "http/protobuf".to_owned(),
            certificate: None,
        };
        let names: Vec<&str> = collector.variables().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["HTTP_OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL"]);
        assert_eq!(EngineAddress::Socket("/run/docker.sock".into()).docker_host(), "unix:///run/docker.sock");
        assert_eq!(EngineAddress::Tcp("10.0.0.7:2376".to_owned(), None).docker_host(), "tcp://10.0.0.7:2376");
    }
}
