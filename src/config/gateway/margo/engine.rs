//! Reads `compose`: the container engine of a host.

use std::time::Duration;

use super::super::super::reader::Reader;
use super::super::super::secret::path;
use super::super::super::tree::Item;
use super::super::super::value::{boolean, choice, host_port, line, millis};
use super::details::Whose;
use crate::margo::component::compose::{Allowed, PRIVILEGES};
use crate::margo::host::{Collector, ContainerEngine, EngineAddress, EngineTls, MAX_TIMEOUT};

/// Where an engine listens on its own machine.
const SOCKET: &str = "unix:///var/run/docker.sock";

/// The container engine; `None` when it cannot be used, which was reported.
pub(super) fn engine(section: &Reader<'_>, whose: Whose) -> Option<ContainerEngine> {
    let address = address(section, whose);
    let text = |item: &Item| line(1_000)(item);
    let command = section.list("command", text).unwrap_or_else(|| vec!["docker".to_owned(), "compose".to_owned()]);
    if command.is_empty() {
        section.error("command", "is empty; write such as [\"docker\", \"compose\"]");
    }
    const PROTOCOLS: &[(&str, &str)] =
        &[("http/protobuf", "http/protobuf"), ("grpc", "grpc"), ("http/json", "http/json")];
    let collector = Collector {
        http: section.required("otlp_http", "otlp_http = \"http://172.17.0.1:4318\"", endpoint).unwrap_or_default(),
        grpc: section.optional("otlp_grpc", endpoint),
        protocol: section.or("otlp_protocol", "http/protobuf", choice(PROTOCOLS)).to_owned(),
        certificate: section.optional("otlp_certificate", text),
    };
    let most = u64::try_from(MAX_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
    let privileges = section.list("allow", choice(PRIVILEGES)).unwrap_or_default().into_iter().collect();
    let (client_config, timeout, check_every, keep_volumes) = (
        section.optional("client_config", path),
        section.or("timeout", Duration::from_secs(600), millis(1_000, most)),
        section.or("check_every", Duration::from_secs(60), millis(1_000, most)),
        section.or("keep_volumes", false, boolean),
    );
    let address = address?;
    let is_local = matches!(address, EngineAddress::Socket(_));
    let allowed = Allowed { privileges, is_local };
    (!command.is_empty() && !collector.http.is_empty()).then_some(ContainerEngine {
        command,
        address,
        client_config,
        timeout,
        check_every,
        keep_volumes,
        allowed,
        collector,
    })
}

fn address(section: &Reader<'_>, whose: Whose) -> Option<EngineAddress> {
    let place = |item: &Item| {
        let text = line(300)(item)?;
        let help = || format!("\"{text}\" is no address of an engine; write unix:///path or tcp://host:port");
        match (text.strip_prefix("unix://"), text.strip_prefix("tcp://")) {
            (Some(path), _) if path.starts_with('/') => Ok(EngineAddress::Socket(path.into())),
            (_, Some(place)) => host_port(place, None).map(|_| EngineAddress::Tcp(place.to_owned(), None)),
            _ => Err(help()),
        }
    };
    let found = match whose {
        Whose::Gateway if !section.has("host") => {
            Some(EngineAddress::Socket(SOCKET.trim_start_matches("unix://").into()))
        }
        _ => section.required("host", "host = \"tcp://10.0.0.7:2376\"", place),
    };
    let files = (section.file("ca"), section.file("cert"), section.file("key"));
    let given = ["ca", "cert", "key"].map(|key| section.has(key));
    match found? {
        EngineAddress::Tcp(place, _) => {
            let on_this_machine = is_loopback(&place);
            if given == [false; 3] && on_this_machine {
                return Some(EngineAddress::Tcp(place, None));
            }
            if given != [true; 3] {
                let text = "an engine over tcp needs `ca`, `cert` and `key`: without them anybody on the network owns the host";
                section.error("host", text);
                return None;
            }
            let tls = EngineTls { ca: files.0?, certificate: files.1?, key: files.2? };
            Some(EngineAddress::Tcp(place, Some(tls)))
        }
        socket => {
            if given.contains(&true) {
                section.warn("host", "`ca`, `cert` and `key` are not used: a socket is protected by its mode");
            }
            Some(socket)
        }
    }
}

fn is_loopback(place: &str) -> bool {
    host_port(place, None).is_ok_and(|(host, _)| {
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}

fn endpoint(item: &Item) -> Result<String, String> {
    let text = line(300)(item)?;
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    match rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(char::is_whitespace)) {
        true => Ok(text),
        false => Err(format!("\"{text}\" is no address of a collector; write such as http://172.17.0.1:4318")),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::load;
    use crate::margo::component::compose::Privilege;
    use crate::margo::host::EngineAddress;

    const HOSTING: &str = "cpu = [{ cores = 2, architecture = \"amd64\" }], memory = \"1Gi\", storage = \"8Gi\"";

    fn read(runtimes: &str, types: &str, tables: &str) -> Result<crate::margo::config::Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let hosting = format!("hosting = {{ {HOSTING}, runtimes = [{runtimes}], deployment_types = [{types}] }}\n");
        let tables = tables.replace("HOSTING\n", &hosting);
        let text =
            format!("[gateway]\nid = \"gw-7\"\n[margo]\nurl = \"https://wfm\"\ntrust = {{ bundle = \"b\" }}\n{tables}");
        std::fs::write(dir.path().join("fieldgate.toml"), text).unwrap();
        for name in ["ca.pem", "cert.pem", "key.pem"] {
            std::fs::write(dir.path().join(name), "not read by the loader").unwrap();
        }
        load(dir.path()).map(|loaded| loaded.gateway.margo.unwrap()).map_err(|problems| problems.to_string())
    }

    #[test]
    fn an_engine_and_what_is_promised_agree() {
        const COMPOSE: &str = "compose = { otlp_http = \"http://172.17.0.1:4318\", allow = [\"host-paths\"] }\n";
        let both = format!("[margo.gateway]\nHOSTING\n{COMPOSE}");
        let config = read("\"oci\"", "\"compose\"", &both).unwrap();
        let engine = config.gateway.engine.unwrap();
        assert_eq!(engine.command, ["docker", "compose"]);
        assert_eq!(engine.address, EngineAddress::Socket("/var/run/docker.sock".into()));
        assert!(engine.allowed.is_local && engine.allowed.privileges.contains(&Privilege::HostPaths));
        for (runtimes, types, tables, told) in [
            ("\"oci\"", "\"compose\"", "[margo.gateway]\nHOSTING\n", "add a `compose` table"),
            ("\"oci\"", "\"custom\"", both.as_str(), "into `deployment_types`"),
            ("\"custom\"", "\"compose\"", both.as_str(), "into `runtimes`"),
            ("\"oci\"", "\"helm\"", both.as_str(), "is none of"),
            ("", "", &format!("[margo.gateway]\n{COMPOSE}"), "needs `hosting`"),
        ] {
            let error = read(runtimes, types, tables).unwrap_err();
            assert!(error.contains(told), "{told:?} is not in {error}");
        }
    }

    #[test]
    fn a_child_names_its_engine_which_needs_certificates_over_a_network() {
        let child = |more: &str| {
            let compose = format!("compose = {{ otlp_http = \"http://a:4318\"{more} }}\n");
            read("\"oci\"", "\"compose\"", &format!("[[margo.device]]\nid = \"pc-1\"\nHOSTING\n{compose}"))
        };
        const TLS: &str = ", ca = \"ca.pem\", cert = \"cert.pem\", key = \"key.pem\"";
        let found = child(&format!(", host = \"tcp://10.0.0.7:2376\"{TLS}")).unwrap();
        let engine = found.devices.values().next().unwrap().engine.clone().unwrap();
        assert!(matches!(engine.address, EngineAddress::Tcp(_, Some(_))) && !engine.allowed.is_local);
        assert!(child(", host = \"tcp://127.0.0.1:2375\"").is_ok());
        for (more, told) in [
            ("", "`host` is missing"),
            (", host = \"tcp://10.0.0.7:2376\"", "anybody on the network owns the host"),
            (", host = \"tcp://10.0.0.7:2376\", ca = \"ca.pem\"", "anybody on the network owns the host"),
            (", host = \"ssh://me@10.0.0.7\"", "is no address of an engine"),
            (", host = \"tcp://10.0.0.7\"", "is not host:port"),
            (", host = \"unix:///run/p.sock\", allow = [\"all\"]", "is none of"),
            (", host = \"unix:///run/p.sock\", otlp_grpc = \"a:1\"", "is no address of a collector"),
        ] {
            let error = child(more).map(|_| String::new()).unwrap_or_else(|error| error);
            assert!(error.contains(told), "{told:?} is not in {error}");
        }
    }
}
