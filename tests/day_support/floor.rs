//! The shop floor: twelve simulated devices of three kinds, each behind an address of its own.

use std::fmt::Write;

use fieldgate_simulators::faults::OutageKind;
use fieldgate_simulators::modbus::Table;
use fieldgate_simulators::{Plant, Scenario};
use tokio::runtime::Runtime;

use crate::whole_support::Site;

/// A kind of device; there are [`OF_EACH`] of it.
#[derive(Debug)]
pub struct Kind {
    pub name: &'static str,
    pub vendor: &'static str,
    pub model: &'static str,
    /// Ids of registers that can be written, from register 1 on; register 0 is read only.
    pub settings: &'static [&'static str],
    /// Whether files declare its devices; the others are found by a scan, and run by the profile of their kind.
    pub has_files: bool,
}

pub const KINDS: [Kind; 3] = [
    Kind { name: "pump", vendor: "ACME", model: "P-100", settings: &["setpoint", "limit"], has_files: true },
    Kind { name: "drive", vendor: "Volta", model: "D-7", settings: &["speed"], has_files: true },
    Kind { name: "meter", vendor: "Metron", model: "M-3", settings: &[], has_files: false },
];
/// Devices of each kind.
pub const OF_EACH: usize = 4;
/// What register 0 holds.
pub const LEVEL: u16 = 500;

/// The devices.
pub struct Floor {
    plant: Plant,
    // In the order of their end.
    _runtime: Runtime,
}

/// Names of all devices; where files declare them, their ids.
pub fn names() -> Vec<String> {
    KINDS.iter().flat_map(|kind| (1..=OF_EACH).map(|n| format!("{}-{n}", kind.name))).collect()
}

/// The kind of a device.
pub fn kind(device: &str) -> &'static Kind {
    KINDS.iter().find(|kind| device.starts_with(kind.name)).expect("one of ours")
}

/// The serial number that a device comes with.
pub fn serial(device: &str) -> String {
    format!("S-{device}")
}

impl Floor {
    pub fn start() -> Self {
        let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = threads.expect("threads");
        let scenario = Scenario::parse("day", &scenario()).expect("a legal scenario");
        let plant = runtime.block_on(Plant::start(scenario)).expect("ports");
        Self { plant, _runtime: runtime }
    }

    /// Writes the profile of a kind at a gateway.
    pub fn describe(&self, site: &Site, kind: &Kind) {
        let point = |at: usize, id: &str, access: &str| {
            format!("[[points]]\nid = \"{id}\"\ntable = \"holding\"\naddress = {at}\naccess = \"{access}\"\n")
        };
        let settings = kind.settings.iter().enumerate().map(|(n, id)| point(n + 1, id, "read-write"));
        let points: String = std::iter::once(point(0, "level", "read")).chain(settings).collect();
        let head = "tier = 2\nrate = \"200 ms\"\n[modbus]\nserial_object = 128\nreconnect_max = \"1 s\"\n";
        site.write(&format!("profiles/{}.toml", kind.name), &format!("{head}{points}"));
    }

    /// Declares a device at a gateway that knows its kind.
    pub fn declare(&self, site: &Site, device: &str) {
        site.device(device, self.port(device), &format!("profile = \"{}\"\n", kind(device).name), "", "");
    }

    /// Where a device listens on loopback.
    pub fn port(&self, device: &str) -> u16 {
        self.plant.address(device).expect("it listens").port()
    }

    /// Off the network, or back.
    pub fn set_out(&self, device: &str, out: bool) {
        self.plant.set_outage(device, out.then_some(OutageKind::Disconnected)).expect("one of ours");
    }

    /// Other hardware at the place of a device that is out.
    pub fn exchange(&self, device: &str, serial: &str) {
        self.plant.exchange(device, serial).expect("one of ours");
    }

    /// A setting, past the gateway.
    pub fn setting(&self, device: &str, id: &str) -> u16 {
        let at = kind(device).settings.iter().position(|known| *known == id).expect("one of its settings") + 1;
        self.plant.peek(device, Table::Holding, at as u16, 1).expect("it is there")[0]
    }

    /// Requests that a device saw.
    pub fn requests(&self, device: &str) -> u64 {
        self.plant.stats(device).expect("one of ours").requests
    }
}

fn scenario() -> String {
    let mut text = "name = \"day\"\n".to_owned();
    for device in names() {
        let Kind { vendor, model, settings, .. } = kind(&device);
        let written: String = (1..=settings.len())
            .map(|n| format!("{{ name = \"r{n}\", at = \"holding:{n}\", value = 0, write = true }},\n"))
            .collect();
        let serial = serial(&device);
        write!(
            text,
            r#"
[[listener]]
name = "{device}"
kind = "tcp"
bind = "127.0.0.1:0"
[[device]]
name = "{device}"
listener = "{device}"
identity = {{ vendor = "{vendor}", product = "{model}", revision = "1.0", serial = "{serial}" }}
points = [
{{ name = "level", at = "holding:0", value = {LEVEL} }},
{written}]
"#
        )
        .expect("a text takes everything");
    }
    text
}
