//! What a scenario file may say, and what is refused.

use super::*;
use crate::modbus::value::{Kind, Order};

const SMALL: &str = r#"
name = "small"
[[signal]]
name = "level"
shape = "sine"
[[listener]]
name = "a"
kind = "tcp"
bind = "127.0.0.1:0"
[[device]]
name = "d"
listener = "a"
points = [ { name = "p", at = "input:0", type = "f32", signal = "level" } ]
"#;

fn refusal(text: &str) -> String {
    Scenario::parse("test.toml", text).map(|_| ()).expect_err("should be refused").to_string()
}

#[test]
fn the_built_in_plant_shows_what_it_promises() {
    let scenario = Scenario::pump_station();
    assert_eq!(scenario.devices.len(), 8);
    let points: Vec<_> = scenario.devices.iter().flat_map(|device| &device.points).collect();
    assert!((110..=160).contains(&points.len()), "{} points", points.len());
    for order in [Order::Abcd, Order::Cdab, Order::Badc, Order::Dcba] {
        assert!(points.iter().any(|p| p.format.order == order && p.format.kind.items() == 2), "{order:?}");
    }
    let has = |wanted: fn(Kind) -> bool| points.iter().any(|point| wanted(point.format.kind));
    assert!(has(|kind| matches!(kind, Kind::U64)) && has(|kind| matches!(kind, Kind::F64)));
    assert!(has(|kind| matches!(kind, Kind::Bcd { .. })) && has(|kind| matches!(kind, Kind::Text { .. })));
    for table in ["coil", "discrete", "input", "holding"] {
        assert!(points.iter().any(|point| point.table.as_str() == table), "no {table}");
    }
    let faults = || scenario.devices.iter().map(|device| &device.faults);
    assert!(faults().any(|f| !f.outages.is_empty()) && faults().any(|f| !f.lies.is_empty()));
    assert!(scenario.devices.iter().all(|device| !device.identity.vendor.is_empty()));
}

#[test]
fn small_files_work() {
    let scenario = Scenario::parse("test.toml", SMALL).expect("valid");
    assert_eq!(scenario.devices[0].unit, 1);
    assert_eq!(scenario.step, Duration::from_millis(100));
}

#[test]
fn every_refusal_names_the_place_and_what_to_do() {
    let change = |from: &str, to: &str| {
        assert!(SMALL.contains(from));
        refusal(&SMALL.replace(from, to))
    };
    let cases = [
        (change("kind = \"tcp\"", "knid = \"tcp\""), "line 8"),
        (change("listener = \"a\"", "listener = \"b\""), "device `d`: there is no listener `b`"),
        (change("signal = \"level\"", "signal = \"lvl\""), "point `p`: there is no signal `lvl`"),
        (change("signal = \"level\"", "signal = \"level\", value = 1"), "either signal or value"),
        (change("input:0", "inputs:0"), "`inputs:0` is not an address"),
        (change("input:0", "input:65535"), "beyond address 65535"),
        (change("\"f32\"", "\"f33\""), "`f33` is not a type"),
        (change("type = \"f32\"", "type = \"f32\", write = true"), "cannot be written"),
        (change("127.0.0.1:0", "localhost"), "listener `a`: needs bind"),
        (change("shape = \"sine\"", "shape = \"sin\""), "`sin` is not a shape"),
        (change("shape = \"sine\"", "shape = \"sine\"\nperiod = \"5\""), "`5` is not a duration"),
        (change("listener = \"a\"", "listener = \"a\"\nunit = 248"), "unit must be 1 to 247"),
        (
            refusal(&SMALL.replace("points = [", "points = [ { name = \"q\", at = \"input:1\", signal = \"level\" },")),
            "shares input 1 with point `q`",
        ),
        (refusal(&format!("{SMALL}[[device.lie]]\nkind = \"garbage\"\nchance = 2.0\n")), "chance of a lie is 0 to 1"),
        (
            refusal(&format!("{SMALL}[[device.outage]]\nafter = \"1s\"\nlasts = \"5s\"\nevery = \"5s\"\n")),
            "over before",
        ),
    ];
    for (text, expected) in cases {
        assert!(text.contains(expected), "`{text}` does not say `{expected}`");
    }
}
