//! The demo's configuration says what the scenario says: the same devices, addresses, types, orders and scales.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::FILES;
use crate::device::Point;
use crate::modbus::value::{Kind, Order};
use crate::scenario::{Link, Scenario};

fn file(name: &str) -> &'static str {
    FILES.iter().find(|(path, _)| *path == name).unwrap_or_else(|| panic!("no {name}")).1
}

fn table(name: &str) -> Table {
    file(name).parse().unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The rows of a point list. No cell of ours holds a quoted comma before the columns that count.
fn list(name: &str) -> Vec<Table> {
    let mut lines = file(name).lines();
    let header: Vec<&str> = lines.next().expect("a header").split(',').collect();
    lines
        .map(|line| {
            let quoted = line.split('"').enumerate();
            let flat: String =
                quoted.map(|(i, part)| if i % 2 == 1 { part.replace(',', ";") } else { part.into() }).collect();
            let cells: Vec<&str> = flat.split(',').collect();
            assert_eq!(cells.len(), header.len(), "{line}");
            let cell = |(name, cell): (&&str, &&str)| ((*name).to_owned(), Value::String((*cell).to_owned()));
            header.iter().zip(&cells).filter(|(_, cell)| !cell.is_empty()).map(cell).collect()
        })
        .collect()
}

/// All points that a device of the gateway has, from its file, its profile and its lists.
fn points(device: &Table) -> Vec<Table> {
    let mut points = Vec::new();
    let profile = device.get("profile").and_then(Value::as_str).map(|name| table(&format!("profiles/{name}.toml")));
    for entry in
        [Some(device), profile.as_ref()].into_iter().flatten().filter_map(|t| t.get("points")?.as_array()).flatten()
    {
        match entry {
            Value::String(path) => points.extend(list(path.trim_start_matches("../"))),
            Value::Table(point) => points.push(point.clone()),
            other => panic!("{other} is no point"),
        }
    }
    points
}

fn text(table: &Table, key: &str) -> String {
    match table.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

/// What a point of the gateway must say for a point of the scenario.
fn expected(point: &Point) -> [(&'static str, String); 8] {
    let format = &point.format;
    let none = String::new;
    let (kind, length, bit) = match format.kind {
        Kind::Bool => ("bool".to_owned(), none(), none()),
        Kind::Bits { first, count: 1 } => ("bool".to_owned(), none(), first.to_string()),
        Kind::Bits { .. } => panic!("the demo has no bit ranges"),
        Kind::Bcd { registers } => ("bcd".to_owned(), registers.to_string(), none()),
        Kind::Text { registers } => ("string".to_owned(), (registers * 2).to_string(), none()),
        number => (format!("{number:?}").to_lowercase(), none(), none()),
    };
    let order = if format.kind.items() > 1 { format.order } else { Order::Abcd };
    [
        ("table", point.table.as_str().to_owned()),
        ("address", point.address.to_string()),
        ("type", kind),
        ("length", length),
        ("bit", bit),
        ("order", order.as_str().to_owned()),
        ("scale", format!("{}", format.scale)),
        ("unit", point.unit.clone()),
    ]
}

fn said(point: &Table, device_order: &str, wide: bool) -> BTreeMap<&'static str, String> {
    let default = |key: &'static str, value: &str| {
        let said = text(point, key);
        (key, if said.is_empty() { value.to_owned() } else { said })
    };
    let bits = ["coil", "discrete"].contains(&text(point, "table").as_str()) || point.contains_key("bit");
    BTreeMap::from([
        default("table", ""),
        default("address", ""),
        default("type", if bits { "bool" } else { "u16" }),
        default("length", ""),
        default("bit", ""),
        if wide { default("order", device_order) } else { ("order", "abcd".to_owned()) },
        default("scale", "1"),
        default("unit", ""),
    ])
}

#[test]
fn every_device_and_point_of_the_plant_is_in_the_demo() {
    let scenario = Scenario::pump_station();
    for device in &scenario.devices {
        let config = table(&format!("devices/{}.toml", device.name));
        let profile =
            config.get("profile").map(|name| table(&format!("profiles/{}.toml", name.as_str().expect("text"))));
        let modbus = |key: &str| {
            let own = config["modbus"].get(key).cloned();
            own.or_else(|| profile.as_ref()?.get("modbus")?.get(key).cloned())
        };
        let link = match &scenario.listeners[device.listener].link {
            Link::Tcp(address) => format!("tcp://{address}"),
            Link::RtuOverTcp { bind, .. } => format!("rtu-over-tcp://{bind}"),
            Link::Serial { .. } => panic!("the demo has no serial line"),
        };
        assert_eq!(modbus("link").and_then(|v| v.as_str().map(String::from)), Some(link), "{}", device.name);
        assert_eq!(modbus("unit").and_then(|v| v.as_integer()), Some(device.unit.into()), "{}", device.name);
        let order = modbus("order").and_then(|v| v.as_str().map(String::from)).unwrap_or("abcd".into());

        let mut points: BTreeMap<String, Table> = points(&config).into_iter().map(|p| (text(&p, "id"), p)).collect();
        for point in &device.points {
            let name = format!("{} {}", device.name, point.name);
            let config = points.remove(&point.name).unwrap_or_else(|| panic!("{name} is not in the demo"));
            let wide = point.format.kind.items() > 1 && !matches!(point.format.kind, Kind::Bcd { .. });
            let said = said(&config, &order, wide);
            for (key, value) in expected(point) {
                assert_eq!(said[key], value, "{name}: {key}");
            }
            assert_eq!(text(&config, "access").contains("write"), point.writable, "{name}: access");
        }
        assert!(points.is_empty(), "{}: not in the plant: {:?}", device.name, points.keys());
    }
    let devices = FILES.iter().filter(|(path, _)| path.starts_with("devices/")).count();
    assert_eq!(devices, scenario.devices.len());
}
