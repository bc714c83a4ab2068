//! The Modbus part of the plan that is shown before it runs.

use std::time::Duration;

use crate::southbound::DeviceConfig;
use crate::southbound::explain::{GroupPlan, PlannedRequest};

use super::pdu::Request;
use super::plan::{Learned, ReadRequest, plan};
use super::{Config, Link, timing};

/// Assumed time from request to reply over TCP when nothing is measured: a PLC answers once in its own cycle.
const TCP_ROUND_TRIP: Duration = Duration::from_millis(10);
/// Assumed time that a serial unit takes to answer when nothing is measured.
const SERIAL_TURNAROUND: Duration = Duration::from_millis(20);

/// The plan of each rate group, and what its times are based on.
pub fn groups(device: &DeviceConfig, config: &Config, measured: Option<Duration>) -> (Vec<GroupPlan>, String) {
    let learned = Learned::default();
    let planned = |request: &ReadRequest| PlannedRequest {
        function: format!("FC {}", request.table.read_function()),
        area: request.table.as_str(),
        first: request.address.into(),
        count: request.count.into(),
        wasted: request.wasted().into(),
        points: request.entries.iter().map(|entry| device.device.points[entry.point as usize].id.clone()).collect(),
        time: time(config, request, measured) + config.options.pause_between_requests,
    };
    let groups = device.groups.iter().map(|group| GroupPlan {
        every: group.every,
        requests: plan(config, &group.points, &learned).iter().map(|request| planned(request)).collect(),
    });
    (groups.collect(), basis(config, measured))
}

fn time(config: &Config, request: &ReadRequest, measured: Option<Duration>) -> Duration {
    let Link::Serial(line) = &config.link else { return measured.unwrap_or(TCP_ROUND_TRIP) };
    let read = Request::Read { table: request.table, address: request.address, count: request.count };
    let wire = timing::on_wire(line, read.length(), read.longest_reply());
    // A measured mean covers requests of all lengths; it can only say that the line is slower than arithmetic.
    (wire + SERIAL_TURNAROUND.min(config.options.turnaround)).max(measured.unwrap_or_default())
}

fn basis(config: &Config, measured: Option<Duration>) -> String {
    match (&config.link, measured) {
        (Link::Serial(line), _) => format!("{} Bd, units answer after 20 ms", line.baud),
        (_, Some(measured)) => format!("{:.1} ms round trip, measured", measured.as_secs_f64() * 1e3),
        (_, None) => format!("{} ms round trip, assumed", TCP_ROUND_TRIP.as_millis()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Access, DataType, Device, DeviceId, Point, PointId, Tier};
    use crate::southbound::modbus::{PointAddress, SerialLine, Table};
    use crate::southbound::{DriverConfig, RateGroup, explain};

    fn device(link: Link, points: u16, every: Duration) -> DeviceConfig {
        let point = |index| Point {
            id: PointId::new(&format!("p{index}")).unwrap(),
            description: String::new(),
            unit: String::new(),
            data_type: DataType::U16,
            access: Access::Read,
            limits: None,
        };
        let mut config = Config::new(link, 1);
        config.points = (0..points).map(|address| PointAddress::new(Table::Holding, address, DataType::U16)).collect();
        let device = Device {
            id: DeviceId::new("d").unwrap(),
            description: String::new(),
            protocol: "modbus",
            address: String::new(),
            tier: Tier::One,
            points: (0..points).map(point).collect(),
        };
        let groups = vec![RateGroup { every, points: (0..points.into()).collect() }];
        DeviceConfig { device: Arc::new(device), groups, driver: DriverConfig::Modbus(config) }
    }

    #[test]
    fn tells_requests_rates_and_load() {
        let link = Link::Tcp { host: "plc".into(), port: 502 };
        let plan = explain::explain(&[device(link, 200, Duration::from_millis(100))], |_| None);
        assert_eq!(plan.links[0].requests_per_second(), 20.0);
        assert!((plan.links[0].load() - 0.2).abs() < 1e-9);
        let text = plan.to_string();
        assert!(
            text.contains("modbus-tcp://plc:502\n  1 devices, 200 points, 20.0 requests/s, 20 % of the link"),
            "{text}"
        );
        assert!(text.contains("FC 3   holding        0    125     125       0    10.0 ms"), "{text}");
    }

    #[test]
    fn warns_when_a_serial_line_cannot_carry_the_plan() {
        let line = SerialLine::new("/dev/ttyS0", 9600);
        let plan = explain::explain(&[device(Link::Serial(line), 125, Duration::from_millis(200))], |_| None);
        // 305 ms on the wire and 20 ms of the unit, five times a second.
        assert!((plan.links[0].load() - 0.3254 / 0.2).abs() < 0.01, "{}", plan.links[0].load());
        assert!(plan.to_string().contains("! more than the link can carry"));
    }
}
