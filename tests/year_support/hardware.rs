//! The device of the story, twice: pymodbus, which nobody here wrote, and the project's own simulator.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use fieldgate_simulators::firmware_target::{FirmwareTarget, Settings, Trouble};
use fieldgate_simulators::modbus::Table;
use fieldgate_simulators::{Plant, Scenario};

use super::front::{Behind, Front};
use crate::support::PythonServer;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// `tests/servers/device_pymodbus.py`
    Pymodbus,
    /// `fieldgate-simulators`
    Simulator,
}

/// A device that can be exchanged for another one at the same address.
pub struct Hardware {
    make: Make,
    port: u16,
    serial: String,
    /// The simulator's address.
    front: Option<Front>,
    body: Body,
    /// Writes that earlier hardware saw.
    earlier: Vec<(u16, Vec<u16>)>,
}

enum Body {
    Python(Box<PythonServer>),
    Plant(Option<Plant>, tokio::runtime::Runtime),
    Gone,
}

/// First register of the clock.
pub const CLOCK: u16 = 100;
/// How far the clock of new hardware is behind, in seconds.
const SLOW: u64 = 3_600;
/// The firmware that the simulator comes with.
pub const FIRST_FIRMWARE: &str = "1.0.0";

impl Hardware {
    /// The first piece, with a serial number.
    pub fn start(make: Make, serial: &str) -> Self {
        let serial = serial.to_owned();
        let mut hardware = Self { make, port: 0, serial, front: None, body: Body::Gone, earlier: Vec::new() };
        hardware.power_on();
        hardware
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Another piece takes its place.
    pub fn exchange(&mut self, serial: &str) {
        self.earlier = self.writes();
        match std::mem::replace(&mut self.body, Body::Gone) {
            Body::Python(server) => server.kill(),
            Body::Plant(plant, runtime) => {
                self.front().put(None);
                runtime.block_on(plant.expect("it runs").stop());
            }
            Body::Gone => {}
        }
        serial.clone_into(&mut self.serial);
        self.power_on();
    }

    /// Every write so far, of this piece and those before it. The simulator tells the values that stand there: each write
    /// of the story has another value, so that the last one is seen.
    pub fn writes(&mut self) -> Vec<(u16, Vec<u16>)> {
        let mut writes = self.earlier.clone();
        if let Body::Python(server) = &mut self.body {
            for write in server.ask("writes")["writes"].as_array().expect("a list") {
                let values = write[1].as_array().expect("values").iter().map(|v| v.as_u64().expect("a word") as u16);
                writes.push((write[0].as_u64().expect("an address") as u16, values.collect()));
            }
        }
        writes
    }

    /// Number of writes of any kind that this piece saw.
    pub fn write_count(&mut self) -> u64 {
        match &mut self.body {
            Body::Python(server) => server.ask("writes")["writes"].as_array().map_or(0, |w| w.len() as u64),
            Body::Plant(plant, _) => {
                let stats = plant.as_ref().expect("it runs").stats("pump").expect("it is there");
                [6, 16].iter().filter_map(|f| stats.by_function.get(f)).sum()
            }
            Body::Gone => 0,
        }
    }

    /// A register, past the gateway.
    pub fn register(&mut self, address: u16) -> u16 {
        match &mut self.body {
            Body::Python(_) => {
                let last = self.writes().into_iter().rfind(|(at, _)| *at == address);
                last.map_or(0, |(_, values)| values[0])
            }
            Body::Plant(plant, _) => plant.as_ref().unwrap().peek("pump", Table::Holding, address, 1).unwrap()[0],
            Body::Gone => 0,
        }
    }

    /// Seconds since 1970 on the device's clock.
    pub fn clock(&mut self) -> i64 {
        match &mut self.body {
            Body::Python(server) => server.ask("clock")["clock"].as_i64().expect("seconds"),
            Body::Plant(plant, _) => {
                let words = plant.as_ref().unwrap().peek("pump", Table::Holding, CLOCK, 2).unwrap();
                i64::from(words[0]) << 16 | i64::from(words[1])
            }
            Body::Gone => 0,
        }
    }

    /// Its part that takes firmware.
    pub fn firmware(&self) -> Arc<FirmwareTarget> {
        self.front().firmware()
    }

    /// Each value that was answered done stands in the device's own journal once; one whose outcome nobody knew at most once.
    pub fn agrees(&mut self, last_at: u16, done: &[(u16, u16)], unknown: &[(u16, u16)]) {
        let last = done.last().expect("something was written").1;
        assert!(self.register(last_at) == last || !unknown.is_empty(), "the last command is not there");
        if self.make == Make::Simulator {
            return;
        }
        let writes = self.writes();
        let count = |what: &(u16, u16)| writes.iter().filter(|(at, values)| (*at, values[0]) == *what).count();
        let among = |all: &[(u16, u16)], what: &(u16, u16)| all.iter().filter(|one| *one == what).count();
        for what in done.iter().chain(unknown) {
            let (least, most) = (usize::from(among(done, what) > 0), among(done, what).min(1) + among(unknown, what));
            assert!((least..=most).contains(&count(what)), "{what:?} was written {} times: {writes:?}", count(what));
        }
        let known = |at: u16, value: u16| done.contains(&(at, value)) || unknown.contains(&(at, value));
        let strange: Vec<_> = writes.iter().filter(|(at, v)| *at < CLOCK && !known(*at, v[0])).collect();
        assert!(strange.is_empty(), "nobody was answered that these were written: {strange:?}");
    }

    fn front(&self) -> &Front {
        self.front.as_ref().expect("the simulator has one")
    }

    /// Whether its clock goes on by itself.
    pub fn clock_runs(&self) -> bool {
        self.make == Make::Pymodbus
    }

    fn power_on(&mut self) {
        self.body = match self.make {
            Make::Pymodbus => {
                let (port, slow) = (self.port.to_string(), SLOW.to_string());
                let arguments = ["--serial", &self.serial, "--port", &port, "--slow-clock", &slow];
                let server = PythonServer::start("device_pymodbus.py", &arguments);
                self.port = server.ports()[0];
                Body::Python(Box::new(server))
            }
            Make::Simulator => {
                let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
                let runtime = threads.expect("threads");
                let scenario = Scenario::parse("year", &scenario(&self.serial)).expect("a legal scenario");
                let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
                let (version, restart) = (FIRST_FIRMWARE.to_owned(), Duration::from_millis(300));
                let settings = Settings { listen, version, restart, trouble: Trouble::None };
                let plant = runtime.block_on(Plant::start(scenario)).expect("a port");
                let firmware = Arc::new(runtime.block_on(FirmwareTarget::start(settings)).expect("a port"));
                let front = self.front.get_or_insert_with(Front::start);
                front.put(Some(Behind { plant: plant.address("pump").expect("it listens"), firmware }));
                self.port = front.port();
                Body::Plant(Some(plant), runtime)
            }
        };
    }
}

fn scenario(serial: &str) -> String {
    let points: String =
        (1..10).map(|n| format!("{{ name = \"r{n}\", at = \"holding:{n}\", value = 0, write = true }},\n")).collect();
    format!(
        r#"
name = "year"
[[listener]]
name = "link"
kind = "tcp"
bind = "127.0.0.1:0"
[[device]]
name = "pump"
listener = "link"
identity = {{ vendor = "ACME", product = "P-100", revision = "1.4", serial = "{serial}" }}
points = [
{{ name = "level", at = "holding:0", value = 500 }},
{points}
{{ name = "clock", at = "holding:{CLOCK}", type = "u32", value = 1000000000, write = true }},
]
"#
    )
}
