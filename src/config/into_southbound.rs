//! Checked devices as the southbound side takes them.

use std::time::Duration;

use super::checked::{
    Device, LinkOptions, Modbus, ModbusPoint, Order, Parity, Protocol, Serial, Table, Transport, Write, WriteFunction,
};
use crate::model::{self, DataType};
use crate::southbound::modbus::{
    self, DataBits, PointAddress, SerialLine, StopBits, TextOptions, WordOrder, WriteOptions,
};
use crate::southbound::{DeviceConfig, DriverConfig, RateGroup, breaker};

/// Share of a pause that is left to chance, so that devices which died together are not probed together.
const JITTER: f64 = 0.2;

impl Device {
    /// What the southbound side needs to know of this device.
    pub fn southbound(&self) -> DeviceConfig {
        let groups = self.groups.iter().map(|g| RateGroup { every: g.every, points: g.points.clone() });
        let Protocol::Modbus(modbus) = &self.protocol;
        DeviceConfig {
            device: self.model.clone(),
            groups: groups.collect(),
            driver: DriverConfig::Modbus(driver(modbus, &self.model)),
        }
    }
}

/// A device without points at an address: enough to ask it who it is.
pub fn probe_device(host: std::net::Ipv4Addr, port: u16, unit: u8) -> Option<Device> {
    let transport = Transport::Tcp { host: host.to_string(), port };
    let model = model::Device {
        id: model::DeviceId::new("probe").ok()?,
        description: String::new(),
        protocol: transport.protocol(),
        address: format!("{transport} unit {unit}"),
        tier: model::Tier::One,
        points: [].into(),
    };
    let options = LinkOptions {
        connect_timeout: Duration::from_secs(1),
        pause_after_connect: Duration::ZERO,
        pause_between_requests: Duration::ZERO,
        close_after_cycle: false,
        late_reply_guard: None,
        resync_echo: false,
        turnaround: Duration::ZERO,
        check_unit: true,
    };
    let write = Write {
        function: WriteFunction::Auto,
        verify: true,
        verify_delay: Duration::ZERO,
        tolerance: 0.0,
        read_write: false,
        mask_write: false,
    };
    let modbus = Modbus {
        link: super::checked::Link { transport, options },
        unit,
        max_registers: 125,
        max_bits: 2_000,
        max_gap: None,
        max_write_registers: 123,
        timeout: Some(Duration::from_secs(1)),
        retries: 0,
        write,
        identify: true,
        breaker: super::checked::Breaker {
            failures: 1,
            pause: Duration::from_secs(5),
            max_pause: Duration::from_secs(5),
        },
        points: Vec::new(),
    };
    Some(Device {
        model: model.into(),
        file: std::path::PathBuf::new(),
        groups: Vec::new(),
        rules: Vec::new(),
        batch_samples: 1,
        batch_delay: Duration::ZERO,
        management: super::checked::DeviceManagement::default(),
        protocol: Protocol::Modbus(modbus),
    })
}

fn driver(modbus: &Modbus, device: &model::Device) -> modbus::Config {
    let points = modbus.points.iter().zip(device.points.iter()).map(|(p, point)| address(p, point.data_type));
    modbus::Config {
        link: link(&modbus.link.transport),
        options: options(&modbus.link.options),
        unit: modbus.unit,
        points: points.collect(),
        limits: modbus::Limits {
            max_registers: modbus.max_registers,
            max_bits: modbus.max_bits,
            max_write_registers: modbus.max_write_registers,
            max_gap: modbus.max_gap,
        },
        reply_timeout: modbus.timeout,
        retries: modbus.retries,
        breaker: breaker::Settings {
            failures: modbus.breaker.failures,
            backoff_min: modbus.breaker.pause,
            backoff_max: modbus.breaker.max_pause,
            jitter: JITTER,
        },
        write: write(&modbus.write),
        identify: modbus.identify,
    }
}

fn link(transport: &Transport) -> modbus::Link {
    match transport.clone() {
        Transport::Tcp { host, port } => modbus::Link::Tcp { host, port },
        Transport::RtuOverTcp { host, port } => modbus::Link::RtuOverTcp { host, port },
        Transport::Serial(Serial { path, baud, parity, data_bits, stop_bits }) => modbus::Link::Serial(SerialLine {
            path,
            baud,
            data_bits: if data_bits == 7 { DataBits::Seven } else { DataBits::Eight },
            parity: match parity {
                Parity::None => modbus::Parity::None,
                Parity::Even => modbus::Parity::Even,
                Parity::Odd => modbus::Parity::Odd,
            },
            stop_bits: if stop_bits == 2 { StopBits::Two } else { StopBits::One },
        }),
    }
}

fn options(options: &LinkOptions) -> modbus::LinkOptions {
    modbus::LinkOptions {
        connect_timeout: options.connect_timeout,
        pause_after_connect: options.pause_after_connect,
        pause_between_requests: options.pause_between_requests,
        close_after_cycle: options.close_after_cycle,
        late_reply_guard: options.late_reply_guard,
        resync_echo: options.resync_echo,
        turnaround: options.turnaround,
        check_unit: options.check_unit,
    }
}

fn write(write: &Write) -> WriteOptions {
    WriteOptions {
        function: match write.function {
            WriteFunction::Auto => modbus::WriteFunction::Auto,
            WriteFunction::Single => modbus::WriteFunction::Single,
            WriteFunction::Multiple => modbus::WriteFunction::Multiple,
        },
        verify: write.verify,
        verify_delay: write.verify_delay,
        tolerance: write.tolerance,
        read_write: write.read_write,
        mask_write: write.mask_write,
    }
}

fn address(point: &ModbusPoint, data_type: DataType) -> PointAddress {
    let order = match point.order {
        Order::Abcd => WordOrder::ABCD,
        Order::Cdab => WordOrder::CDAB,
        Order::Badc => WordOrder::BADC,
        Order::Dcba => WordOrder::DCBA,
    };
    let table = match point.table {
        Table::Coil => modbus::Table::Coil,
        Table::Discrete => modbus::Table::Discrete,
        Table::Input => modbus::Table::Input,
        Table::Holding => modbus::Table::Holding,
    };
    PointAddress {
        table,
        address: point.address,
        data_type,
        length: if data_type == DataType::Bcd { point.count } else { point.length },
        order,
        bit: point.bits.map(|b| (b.low, b.high)),
        text: TextOptions { swap_octets: order.swaps_octets(), ..TextOptions::default() },
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::load_with;

    /// What passed the checks here passes the driver's own.
    #[test]
    fn the_reference_devices_are_legal_to_the_driver() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/config/reference");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("fieldgate.toml"),
            "[gateway]\nid = \"g\"\n[defaults.groups.slow]\nrate = \"1 m\"\n",
        )
        .unwrap();
        for part in ["devices", "profiles", "points"] {
            std::fs::create_dir(dir.path().join(part)).unwrap();
            for entry in std::fs::read_dir(source.join(part)).unwrap() {
                let entry = entry.unwrap();
                std::fs::copy(entry.path(), dir.path().join(part).join(entry.file_name())).unwrap();
            }
        }
        let loaded = load_with(dir.path(), &|_| None).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(loaded.devices.len(), 3);
        for device in &loaded.devices {
            assert_eq!(device.southbound().check(), Ok(()), "{}", device.model.id);
            assert_eq!(device.rules().len(), device.model.points.len());
        }
    }
}
