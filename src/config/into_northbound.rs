//! `[local]` and `[[uplink]]` as the northbound side takes them.

use std::path::{Path, PathBuf};

use super::checked::{Consumer, Gateway, MqttVersion, Qos, Uplink};
use crate::model::Order;
use crate::northbound::{
    ConsumerConfig, ConsumerKind, Filter, LinkPolicy, Pattern, PublishSet, QosSet, ReplayConfig, ServerUrl, TimeWindow,
    UplinkConfig, Version,
};
use crate::security::ClientTlsFiles;

/// Name of the embedded broker among the consumers.
pub const LOCAL: &str = "local";
/// The system's authorities on Debian and its kin.
pub const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";

impl Gateway {
    /// The embedded broker as a consumer of the store; `None` when it is switched off.
    pub fn local_consumer(&self) -> Option<ConsumerConfig> {
        self.broker.as_ref().map(|_| consumer(LOCAL, ConsumerKind::Local, &self.local))
    }
}

impl Uplink {
    /// The other broker as a consumer of the store.
    pub fn consumer(&self) -> ConsumerConfig {
        let servers = self.servers.iter().map(|s| ServerUrl { host: s.host.clone(), port: s.port, tls: s.tls });
        let uplink = UplinkConfig {
            servers: servers.collect(),
            version: match self.version {
                MqttVersion::V4 => Version::V311,
                MqttVersion::V5 => Version::V5,
            },
            client_id: self.client_id.clone(),
            user: self.user.clone(),
            password: self.password.clone(),
            keep_alive: self.keep_alive,
            connect_timeout: self.connect_timeout,
            session_expiry: self.session_expiry,
            reconnect_max: self.reconnect_max,
            max_packet: usize::try_from(self.packet_size).unwrap_or(usize::MAX),
        };
        consumer(&self.name, ConsumerKind::Uplink(uplink), &self.consumer)
    }

    /// Files for TLS; `None` when no server is spoken to over TLS. `enrolled` is where the gateway's enrolled identity is.
    pub fn tls_files(&self, enrolled: &Path) -> Option<ClientTlsFiles> {
        let of_est = || (enrolled.join("current/cert.pem"), enrolled.join("current/key.pem"));
        let identity = if self.tls.enrolled { Some(of_est()) } else { self.tls.identity.clone() };
        let (certificate, key) = identity.unzip();
        self.servers.iter().any(|s| s.tls).then(|| ClientTlsFiles {
            ca: self.tls.ca.clone().unwrap_or_else(|| PathBuf::from(SYSTEM_CA)),
            certificate,
            key,
            server_name: self.tls.server_name.clone(),
        })
    }
}

fn consumer(name: &str, kind: ConsumerKind, from: &Consumer) -> ConsumerConfig {
    let (p, q) = (&from.publish, &from.qos);
    let patterns = |texts: &[String]| texts.iter().map(|t| Pattern::new(t)).collect();
    ConsumerConfig {
        name: name.to_owned(),
        kind,
        root: from.root.clone(),
        encoding: from.encoding,
        publish: PublishSet {
            telemetry: p.telemetry,
            points: p.points,
            events: p.events,
            gaps: p.gaps,
            results: p.results,
            state: p.state,
        },
        qos: QosSet {
            telemetry: qos(q.telemetry),
            points: qos(q.points),
            events: qos(q.events),
            gaps: qos(q.gaps),
            results: qos(q.results),
            state: qos(q.state),
        },
        filter: Filter {
            devices: patterns(&from.filter.devices),
            points: patterns(&from.filter.points),
            lanes: from.filter.lanes.clone(),
        },
        window: from.window,
        replay: ReplayConfig {
            order: if from.replay.live_first { Order::LiveFirst } else { Order::InOrder },
            max_records: from.replay.max_records,
            max_bytes: from.replay.max_bytes,
            target_latency: from.replay.target_latency,
        },
        link: LinkPolicy {
            windows: from.link.windows.iter().map(|w| TimeWindow { from: w.from, to: w.to }).collect(),
            daily_bytes: from.link.daily_budget,
            critical_overrides: from.link.critical_overrides,
        },
        resend_window: from.resend_window,
        requests: from.requests,
    }
}

const fn qos(qos: Qos) -> crate::northbound::Qos {
    match qos {
        Qos::AtMostOnce => crate::northbound::Qos::AtMostOnce,
        Qos::AtLeastOnce => crate::northbound::Qos::AtLeastOnce,
    }
}

#[cfg(test)]
mod tests {
    use crate::broker;
    use crate::config::{TlsContext, load_with};
    use crate::platform::clock::SystemClock;
    use crate::security::pki::BelievedTime;

    /// What passed the checks here passes those of the modules.
    #[test]
    fn the_smallest_and_the_richest_gateway_are_legal_to_the_modules() {
        let rich = include_str!("../../examples/config/reference/fieldgate.toml");
        // Certificates that are none cannot be loaded, so the listener with TLS is left out here.
        let (start, end) =
            (rich.find("[[broker.listener]]\naddress = \"0.0.0.0").unwrap(), rich.find("[[broker.user]]").unwrap());
        let rich = format!("{}{}", &rich[..start], &rich[end..]);
        for (main, uplinks) in [("[gateway]\nid = \"g\"\n", 0), (rich.as_str(), 1)] {
            let dir = tempfile::tempdir().unwrap();
            for file in [
                "fieldgate.toml",
                "secrets/scada",
                "secrets/otlp",
                "secrets/est",
                "tls/est-root.pem",
                "tls/firmware.pub",
                "tls/site-ca.pem",
                "tls/client.pem",
                "tls/client.key",
            ] {
                let path = dir.path().join(file);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, if file == "fieldgate.toml" { main } else { "secret" }).unwrap();
            }
            let loaded = load_with(dir.path(), &|_| Some("x".into())).unwrap_or_else(|problems| panic!("{problems}"));
            let gateway = &loaded.gateway;
            let local = gateway.local_consumer().unwrap();
            assert_eq!(local.check(), Ok(()));
            assert_eq!(gateway.uplinks.len(), uplinks);
            for uplink in &gateway.uplinks {
                assert_eq!(uplink.consumer().check(), Ok(()));
                assert!(uplink.tls_files(dir.path()).is_some());
            }
            let time = BelievedTime::new(SystemClock::shared(), 0);
            let context = TlsContext { pki: dir.path().to_owned(), time };
            let broker = gateway.broker.as_ref().unwrap();
            let config: broker::Config = broker.config(&context).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(config.snapshot_interval.as_secs(), 600);
            assert_eq!(gateway.store.config(dir.path()).quota_bytes, gateway.store.max_size);
        }
    }
}
