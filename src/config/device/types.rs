//! Types for devices that no file declares: a profile that says everything but where the device is.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::layers::{Layers, toml_files};
use super::read_table;
use crate::config::checked::Device;
use crate::config::reader::Context;
use crate::config::tree::{Table, parse_toml};
use crate::model::{self, DeviceId};
use crate::southbound::DriverConfig;
use crate::southbound::modbus::Link;

/// Every profile that is whole with an address, by name. Where another needs more than that, a device's file has to say it,
/// and what is wrong is told there.
pub(in crate::config) fn read_types(context: &Context<'_>, dir: &Path, defaults: &Table) -> BTreeMap<String, Device> {
    let profiles = toml_files(context, &dir.join("profiles"));
    let named = |file: std::path::PathBuf| Some((file.file_stem()?.to_str()?.to_owned(), file));
    profiles
        .into_iter()
        .filter_map(named)
        .filter_map(|(name, file)| {
            let own = format!("profile = \"{name}\"\n[modbus]\nlink = \"tcp://127.0.0.1:502\"\nunit = 1\n");
            // Its problems are no problems of the configuration.
            let alone = Context::new(dir, context.environment);
            let own = parse_toml(&file, &own).ok()?;
            let (device, ..) = read_table(&alone, &mut Layers::new(&alone, dir), defaults, own, &file)?;
            (alone.errors() == 0).then_some((name, device))
        })
        .collect()
}

impl Device {
    /// This type of device at an address, as the registry and the topics write it: `tcp://192.0.2.7:502 unit 3`.
    ///
    /// # Errors
    /// The address is not of that form; in words for people.
    pub fn placed(&self, id: &DeviceId, address: &str) -> Result<Self, String> {
        let (link, unit) = parse(address).ok_or_else(|| {
            format!(
                "{address:?} is no address that a type can be put at (tcp://HOST:PORT unit N); declare {id} in a file"
            )
        })?;
        let DriverConfig::Modbus(modbus) = self.driver.clone();
        let protocol = super::link::protocol(&link);
        let driver = DriverConfig::Modbus(crate::southbound::modbus::Config { link, unit, ..modbus });
        let model = model::Device { id: id.clone(), protocol, address: address.to_owned(), ..(*self.model).clone() };
        Ok(Self { model: Arc::new(model), driver, ..self.clone() })
    }
}

fn parse(address: &str) -> Option<(Link, u8)> {
    let (link, unit) = address.rsplit_once(" unit ")?;
    let (scheme, place) = link.split_once("://")?;
    let (host, port) = place.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = port.parse().ok()?;
    let link = match scheme {
        "tcp" => Link::Tcp { host, port },
        "rtu-over-tcp" => Link::RtuOverTcp { host, port },
        _ => return None,
    };
    Some((link, unit.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_put_at_an_address_and_others_are_no_type() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("profiles")).unwrap();
        std::fs::write(dir.path().join("fieldgate.toml"), "[gateway]\nid = \"g\"\n").unwrap();
        let points = "[[points]]\nid = \"a\"\ntable = \"holding\"\naddress = 1\n";
        for (name, text) in [("meter", points), ("empty", "tier = 2\n"), ("wrong", "tier = 9\n")] {
            std::fs::write(dir.path().join(format!("profiles/{name}.toml")), text).unwrap();
        }
        let types = crate::config::load(dir.path()).unwrap_or_else(|problems| panic!("{problems}")).types;
        assert_eq!(types.keys().collect::<Vec<_>>(), ["meter"]);
        let id = DeviceId::new("m-1").unwrap();
        let device = types["meter"].placed(&id, "rtu-over-tcp://[2001:db8::7]:4001 unit 9").unwrap();
        let DriverConfig::Modbus(modbus) = &device.driver;
        assert_eq!((&modbus.link, modbus.unit), (&Link::RtuOverTcp { host: "2001:db8::7".into(), port: 4001 }, 9));
        assert_eq!((device.model.id.as_str(), device.model.points.len()), ("m-1", 1));
        for bad in ["", "tcp://h:502", "tcp://h unit 1", "serial:///dev/x 9600 8N1 unit 1", "tcp://h:502 unit 900"] {
            assert!(types["meter"].placed(&id, bad).is_err(), "{bad}");
        }
    }
}
