//! `[local]` and `[[uplink]]` as the sessions take them.

use super::checked::{self, ClientTls, Consumer, Gateway, MqttVersion, Qos, Uplink};
use crate::model::Order;
use crate::northbound::{
    ConsumerConfig, ConsumerKind, Filter, LinkPolicy, Pattern, PublishSet, QosSet, ReplayConfig, Secret, ServerUrl,
    TimeWindow, UplinkConfig, Version,
};
use crate::security::ClientTlsFiles;

/// Name of the embedded broker's place in the log.
pub const LOCAL: &str = "local";
/// Debian's bundle of public authorities, for uplinks that name no CA.
const SYSTEM_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

impl Gateway {
    /// Every consumer of the log, with the certificates of those that speak TLS.
    pub fn consumers(&self) -> Vec<(ConsumerConfig, Option<ClientTlsFiles>)> {
        let local = self.broker.iter().map(|_| (consumer(LOCAL, ConsumerKind::Local, &self.local), None));
        let uplinks = self.uplinks.iter().map(|u| (consumer(&u.name, uplink(u), &u.consumer), tls(u)));
        local.chain(uplinks).collect()
    }
}

fn consumer(name: &str, kind: ConsumerKind, from: &Consumer) -> ConsumerConfig {
    ConsumerConfig {
        name: name.to_owned(),
        kind,
        root: from.root.clone(),
        encoding: from.encoding,
        publish: publish(&from.publish),
        qos: QosSet {
            telemetry: qos(from.qos.telemetry),
            points: qos(from.qos.points),
            events: qos(from.qos.events),
            gaps: qos(from.qos.gaps),
            results: qos(from.qos.results),
            state: qos(from.qos.state),
        },
        filter: filter(&from.filter),
        window: from.window,
        replay: ReplayConfig {
            order: if from.replay.live_first { Order::LiveFirst } else { Order::InOrder },
            max_records: from.replay.max_records,
            max_bytes: from.replay.max_bytes,
            target_latency: from.replay.target_latency,
        },
        link: link(&from.link),
        resend_window: from.resend_window,
        requests: from.requests,
    }
}

fn publish(from: &checked::Publish) -> PublishSet {
    PublishSet {
        telemetry: from.telemetry,
        points: from.points,
        events: from.events,
        gaps: from.gaps,
        results: from.results,
        state: from.state,
    }
}

const fn qos(from: Qos) -> crate::northbound::Qos {
    match from {
        Qos::AtMostOnce => crate::northbound::Qos::AtMostOnce,
        Qos::AtLeastOnce => crate::northbound::Qos::AtLeastOnce,
    }
}

fn filter(from: &checked::Filter) -> Filter {
    let patterns = |texts: &[String]| texts.iter().map(|t| Pattern::new(t)).collect();
    Filter { devices: patterns(&from.devices), points: patterns(&from.points), lanes: from.lanes.clone() }
}

fn link(from: &checked::LinkPolicy) -> LinkPolicy {
    let window = |w: &checked::Window| TimeWindow { from: w.from, to: w.to };
    LinkPolicy {
        windows: from.windows.iter().map(window).collect(),
        daily_bytes: from.daily_budget,
        critical_overrides: from.critical_overrides,
    }
}

fn uplink(from: &Uplink) -> ConsumerKind {
    let servers = from.servers.iter().map(|s| ServerUrl { host: s.host.clone(), port: s.port, tls: s.tls }).collect();
    ConsumerKind::Uplink(UplinkConfig {
        version: match from.version {
            MqttVersion::V4 => Version::V311,
            MqttVersion::V5 => Version::V5,
        },
        client_id: from.client_id.clone(),
        user: from.user.clone(),
        password: from.password.as_ref().map(|p| Secret::new(p.expose())),
        keep_alive: from.keep_alive,
        connect_timeout: from.connect_timeout,
        session_expiry: from.session_expiry,
        max_packet: from.packet_size as usize,
        ..UplinkConfig::new(servers)
    })
}

fn tls(from: &Uplink) -> Option<ClientTlsFiles> {
    let ClientTls { ca, identity, server_name } = &from.tls;
    from.servers.iter().any(|s| s.tls).then(|| ClientTlsFiles {
        ca: ca.clone().unwrap_or_else(|| SYSTEM_BUNDLE.into()),
        certificate: identity.as_ref().map(|(certificate, _)| certificate.clone()),
        key: identity.as_ref().map(|(_, key)| key.clone()),
        server_name: server_name.clone(),
    })
}
