//! What `fieldgate check` says of a configuration that is in order.

use std::fmt;

use super::Loaded;
use super::checked::{Device, SyncMode};
use super::units::{format_duration, format_size};
use crate::model::Access;
use crate::northbound::ConsumerKind;

/// Shows a configuration to a person; secrets are not in it.
#[derive(Debug)]
pub struct Summary<'a>(pub &'a Loaded);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Loaded { gateway, devices, disabled, warnings, .. } = self.0;
        writeln!(
            f,
            "gateway {}  topics {}  data {}",
            gateway.identity.id,
            gateway.identity.root,
            gateway.identity.data_dir.display()
        )?;
        let sync = match gateway.store.sync {
            SyncMode::Always => "synced before anything is acknowledged".to_owned(),
            SyncMode::Interval => {
                format!(
                    "synced every {} / {}",
                    format_duration(gateway.store.critical_interval),
                    format_duration(gateway.store.bulk_interval)
                )
            }
            SyncMode::Os => "synced when the operating system likes".to_owned(),
        };
        writeln!(f, "store up to {}, {sync}", format_size(gateway.store.max_size))?;
        match &gateway.broker {
            None => writeln!(f, "embedded broker off")?,
            Some(broker) => {
                for l in &broker.listeners {
                    let scheme = if l.tls.is_some() { "mqtts" } else { "mqtt" };
                    let who = if l.allow_anonymous {
                        "open to everyone on this machine".to_owned()
                    } else {
                        format!("{} users", broker.users.len())
                    };
                    writeln!(f, "broker {scheme}://{} {who}", l.address)?;
                }
            }
        }
        for uplink in &gateway.uplinks {
            let ConsumerKind::Uplink(reached) = &uplink.consumer.kind else { continue };
            let servers: Vec<_> = reached.servers.iter().map(ToString::to_string).collect();
            writeln!(f, "uplink {} to {}", uplink.consumer.name, servers.join(", then "))?;
        }
        writeln!(
            f,
            "devices: {} ({} more switched off), points: {}, values/s: {:.1}",
            devices.len(),
            disabled.len(),
            points(devices),
            values_per_second(devices)
        )?;
        devices.iter().try_for_each(|device| line(f, device))?;
        warnings.iter().try_for_each(|warning| writeln!(f, "{warning}"))?;
        match warnings.len() {
            0 => f.write_str("the configuration is in order"),
            n => write!(f, "the configuration is in order; warnings: {n}"),
        }
    }
}

fn points(devices: &[Device]) -> usize {
    devices.iter().map(|d| d.model.points.len()).sum()
}

/// Values that are read per second when no scan is late.
fn values_per_second(devices: &[Device]) -> f64 {
    devices.iter().flat_map(|d| &d.groups).map(|g| g.points.len() as f64 / g.every.as_secs_f64()).sum()
}

fn line(f: &mut fmt::Formatter<'_>, device: &Device) -> fmt::Result {
    let writable = device.model.points.iter().filter(|p| p.access != Access::Read).count();
    let rates: Vec<_> =
        device.groups.iter().map(|g| format!("{} every {}", g.points.len(), format_duration(g.every))).collect();
    writeln!(
        f,
        "  {}  {}  {} points ({writable} writable): {}",
        device.model.id,
        device.model.address,
        device.model.points.len(),
        rates.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use crate::config::{Summary, load, starter};

    #[test]
    fn the_summary_names_what_will_run() {
        let dir = tempfile::tempdir().unwrap();
        let options = starter::Options { id: Some(crate::model::GatewayId::new("g").unwrap()), link: None };
        starter::write(dir.path(), &options).unwrap();
        let loaded = load(dir.path()).unwrap();
        let text = Summary(&loaded).to_string();
        for part in [
            "gateway g",
            "store up to 1 GiB",
            "mqtt://127.0.0.1:1883",
            "devices: 1 (1 more switched off), points: 3, values/s: 7.0",
            "plc-1  tcp://127.0.0.1:5020 unit 1",
            "in order",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }
}
