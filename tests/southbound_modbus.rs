//! The southbound side against Modbus servers that nobody here wrote: pymodbus and pyModbusTCP.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod southbound_support;

use std::time::Duration;

use fieldgate::model::{DataType, DeviceId, Reason, Value};
use fieldgate::southbound::modbus::{Config, Link, Parity, PointAddress, SerialLine, Table, WordOrder, WriteFunction};
use fieldgate::southbound::{Update, WriteError};
use southbound_support::*;

const FAST: Duration = Duration::from_millis(50);

fn holding(unit: u16, address: u16) -> Result<Value, Reason> {
    Ok(Value::Uint(u64::from((3 * u32::from(address) + u32::from(unit)) as u16)))
}

/// Points of all four tables with gaps between them.
fn mixed_points() -> Vec<PointAddress> {
    let mut points = words(Table::Holding, (0..200).step_by(3));
    points.extend(words(Table::Input, [0, 1, 2, 500, 1999]));
    points.extend(bits(Table::Coil, [0, 1, 3, 1000, 1999]));
    points.extend(bits(Table::Discrete, [0, 4, 5, 1234]));
    points
}

fn check_mixed(scan: &fieldgate::southbound::Scan, unit: u16) {
    assert_eq!(scan.results.len(), mixed_points().len());
    for (index, point) in mixed_points().iter().enumerate() {
        let a = point.address;
        let expected = match point.table {
            Table::Holding => holding(unit, a),
            Table::Input => Ok(Value::Uint(u64::from(a ^ 0x5555))),
            Table::Coil => Ok(Value::Bool(a % 3 == 0)),
            Table::Discrete => Ok(Value::Bool(a % 5 == 0)),
        };
        assert_eq!(outcome(scan, index as u32), expected, "{} {a} of unit {unit}", point.table.as_str());
    }
}

fn config(link: Link, unit: u8, points: Vec<PointAddress>) -> Config {
    Config { points, ..Config::new(link, unit) }
}

fn serial(path: &std::path::Path) -> Link {
    Link::Serial(SerialLine { parity: Parity::None, ..SerialLine::new(path.to_str().unwrap(), 115_200) })
}

#[tokio::test]
async fn pymodbus_tcp_every_value_is_right_and_the_device_says_what_it_is() {
    let (_server, port) = python_server("modbus_pymodbus.py", &["tcp", "1,2"]);
    let devices = [1, 2].map(|unit| device(&format!("d{unit}"), config(tcp(port), unit, mixed_points()), FAST));
    let mut running = start(devices.into());
    let identity = running
        .wait("an identity", |update| match update {
            Update::Identity { identity, .. } => Some(identity),
            _ => None,
        })
        .await;
    for unit in [1, 2] {
        check_mixed(&running.good_scan(&format!("d{unit}")).await, unit);
    }
    assert_eq!(identity.vendor.as_deref(), Some("ACME"));
    assert_eq!(identity.model.as_deref(), Some("PM-5"));
    assert_eq!(identity.firmware.as_deref(), Some("1.2"));
    assert_eq!(running.southbound.identify(&DeviceId::new("d1").unwrap()).await, Ok(identity));
    running.southbound.shutdown().await;
}

#[tokio::test]
async fn pymodbustcp_every_value_is_right() {
    let (_server, port) = python_server("modbus_pymodbustcp.py", &[]);
    let mut running = start(vec![device("d1", config(tcp(port), 1, mixed_points()), FAST)]);
    check_mixed(&running.good_scan("d1").await, 1);
    assert_eq!(
        running.southbound.identify(&DeviceId::new("d1").unwrap()).await.unwrap().vendor.as_deref(),
        Some("Beta")
    );
    running.southbound.shutdown().await;
}

#[tokio::test]
async fn pymodbus_rtu_over_tcp_with_two_units() {
    let (_server, port) = python_server("modbus_pymodbus.py", &["rtu-tcp", "1,7"]);
    let devices = [1, 7].map(|unit| device(&format!("d{unit}"), config(rtu_tcp(port), unit, mixed_points()), FAST));
    let mut running = start(devices.into());
    for unit in [1u8, 7] {
        check_mixed(&running.good_scan(&format!("d{unit}")).await, unit.into());
    }
    running.southbound.shutdown().await;
}

#[tokio::test]
async fn pymodbus_rtu_over_a_serial_line_with_two_units() {
    let pair = pty_pair().await;
    let theirs = pair.theirs.to_str().unwrap();
    let (_server, _) = python_server("modbus_pymodbus.py", &["rtu", "1,7", "--path", theirs]);
    let devices =
        [1, 7].map(|unit| device(&format!("d{unit}"), config(serial(&pair.ours), unit, mixed_points()), FAST));
    let mut running = start(devices.into());
    for unit in [1u8, 7] {
        check_mixed(&running.good_scan(&format!("d{unit}")).await, unit.into());
    }
    running.southbound.shutdown().await;
}

#[tokio::test]
async fn a_hole_in_the_address_space_is_learned_and_read_around() {
    let (_server, port) = python_server("modbus_pymodbus.py", &["tcp", "1"]);
    // 300 to 309 do not exist: 305 is really illegal, the others only seem so when read in one piece with it.
    let points = words(Table::Holding, [290, 295, 299, 305, 310, 320, 330]);
    let mut running = start(vec![device("d1", config(tcp(port), 1, points.clone()), FAST)]);
    for _ in 0..5 {
        let scan = running.scan("d1").await;
        for (index, point) in points.iter().enumerate() {
            let expected = if point.address == 305 { Err(Reason::IllegalAddress) } else { holding(1, point.address) };
            assert_eq!(outcome(&scan, index as u32), expected, "address {}", point.address);
        }
    }
    let fifth = running.stats("d1").await;
    running.scan("d1").await;
    let state = running.state("d1", "degraded").await;
    assert!(state.reason().unwrap().contains("1 points have an address"), "{state}");
    assert!(fifth.exceptions < 12, "learned, not asked again: {fifth:?}");
    running.southbound.shutdown().await;
}

/// All writable shapes: what is written must read back and be seen by the next scan.
async fn write_everything(link: Link) {
    let point = |address, data_type| PointAddress::new(Table::Holding, address, data_type);
    let order = |address, data_type, order| PointAddress { order, ..point(address, data_type) };
    let points = vec![
        point(10, DataType::U16),
        order(20, DataType::F32, WordOrder::CDAB),
        order(30, DataType::I64, WordOrder::DCBA),
        PointAddress { bit: Some((4, 7)), ..point(40, DataType::U16) },
        PointAddress { length: 10, ..point(50, DataType::Text) },
        PointAddress::new(Table::Coil, 7, DataType::Bool),
        PointAddress { length: 2, ..point(60, DataType::Bcd) },
        PointAddress { bit: Some((15, 15)), ..point(70, DataType::Bool) },
    ];
    let values = [
        Value::Uint(65535),
        Value::Double(21.3),
        Value::Int(-5_000_000_000),
        Value::Uint(9),
        Value::Text("pump".into()),
        Value::Bool(true),
        Value::Uint(12_345_678),
        Value::Bool(true),
    ];
    let mut expected = values.clone();
    expected[1] = Value::Float(21.3);
    let mut running = start(vec![device("d1", config(link, 1, points), FAST)]);
    running.scan("d1").await;
    let id = DeviceId::new("d1").unwrap();
    for (point, value) in values.iter().enumerate() {
        let done = running.southbound.write(&id, point as u32, value.clone()).await;
        let done = done.unwrap_or_else(|error| panic!("point {point}: {error}"));
        assert_eq!(done.read_back.as_ref(), Some(&expected[point]), "point {point}");
    }
    running
        .wait("all written values in one scan", |update| match update {
            Update::Scan(scan) => {
                expected.iter().enumerate().all(|(i, v)| outcome(&scan, i as u32) == Ok(v.clone())).then_some(())
            }
            _ => None,
        })
        .await;
    let error = running.southbound.write(&id, 0, Value::Uint(65536)).await.unwrap_err();
    assert_eq!(error.code(), "out-of-range");
    let error = running.southbound.write(&id, 99, Value::Uint(1)).await.unwrap_err();
    assert!(matches!(error, WriteError::UnknownPoint { .. }));
    running.southbound.shutdown().await;
}

#[tokio::test]
async fn writes_of_every_shape_to_pymodbus() {
    let (_server, port) = python_server("modbus_pymodbus.py", &["tcp", "1"]);
    write_everything(tcp(port)).await;
}

#[tokio::test]
async fn writes_of_every_shape_to_pymodbustcp_which_knows_no_mask_write() {
    let (_server, port) = python_server("modbus_pymodbustcp.py", &[]);
    write_everything(tcp(port)).await;
}

#[tokio::test]
async fn writes_of_every_shape_over_rtu() {
    let pair = pty_pair().await;
    let theirs = pair.theirs.to_str().unwrap();
    let (_server, _) = python_server("modbus_pymodbus.py", &["rtu", "1", "--path", theirs]);
    write_everything(serial(&pair.ours)).await;
}

#[tokio::test]
async fn functions_15_16_and_23_write_when_asked_for() {
    let (_server, port) = python_server("modbus_pymodbus.py", &["tcp", "1"]);
    let points = vec![
        PointAddress::new(Table::Coil, 2000 - 1, DataType::Bool),
        PointAddress::new(Table::Holding, 10, DataType::U16),
        PointAddress::new(Table::Holding, 20, DataType::F64),
    ];
    let mut config = config(tcp(port), 1, points);
    config.write.function = WriteFunction::Multiple;
    config.write.read_write = true;
    let running = start(vec![device("d1", config, FAST)]);
    let id = DeviceId::new("d1").unwrap();
    for (point, value) in [Value::Bool(true), Value::Uint(7), Value::Double(0.1)].into_iter().enumerate() {
        let done = running.southbound.write(&id, point as u32, value.clone()).await.unwrap();
        assert_eq!(done.read_back, Some(value));
    }
    running.southbound.shutdown().await;
}

/// A read of register 900 is answered 800 ms late, the timeout is 200 ms; register 5 is polled all the time. The late
/// reply (2701) must never be seen, neither as register 5 nor as register 900.
async fn late_reply(link: Link) {
    let mut late = config(link.clone(), 1, words(Table::Holding, [900]));
    late.reply_timeout = Some(Duration::from_millis(200));
    late.breaker.failures = 1000;
    late.retries = 0;
    let mut prompt = config(link, 1, words(Table::Holding, [5]));
    prompt.reply_timeout = Some(Duration::from_millis(200));
    prompt.breaker.failures = 1000;
    let mut running = start(vec![device("late", late, FAST), device("prompt", prompt, FAST)]);
    let (mut good, mut timeouts) = (0, 0);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while good < 8 || timeouts < 3 {
        assert!(tokio::time::Instant::now() < deadline, "only {good} good scans and {timeouts} timeouts");
        let scan =
            running.wait("scans", |update| if let Update::Scan(scan) = update { Some(scan) } else { None }).await;
        match (scan.device.as_str(), &scan.results[0].outcome) {
            ("prompt", Ok(value)) => {
                assert_eq!(value, &Value::Uint(16), "register 5 of unit 1");
                good += 1;
            }
            ("late", Ok(value)) => panic!("the late reply was taken: {value:?}"),
            ("late", Err(Reason::Timeout)) => timeouts += 1,
            _ => {}
        }
    }
    running.southbound.shutdown().await;
}

#[tokio::test]
async fn a_late_reply_is_never_taken_for_another_on_tcp() {
    let (_server, port) = python_server("modbus_pymodbus.py", &["tcp", "1", "--late", "800"]);
    late_reply(tcp(port)).await;
}

#[tokio::test]
async fn a_late_reply_is_never_taken_for_another_on_rtu_over_tcp() {
    let (_server, port) = python_server("modbus_pymodbus.py", &["rtu-tcp", "1", "--late", "800"]);
    late_reply(rtu_tcp(port)).await;
}

#[tokio::test]
async fn a_late_reply_is_never_taken_for_another_on_a_serial_line() {
    let pair = pty_pair().await;
    let theirs = pair.theirs.to_str().unwrap();
    let (_server, _) = python_server("modbus_pymodbus.py", &["rtu", "1", "--path", theirs, "--late", "800"]);
    late_reply(serial(&pair.ours)).await;
}

/// CPU time of this process so far, user and system, from the kernel's account (clock ticks of 10 ms).
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// 20 devices of 100 registers each ten times a second; one dies; the others keep their schedule.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_devices_keep_their_schedule_when_one_of_them_dies() {
    const EVERY: Duration = Duration::from_millis(100);
    const WINDOW: Duration = Duration::from_secs(5);
    let (_servers, ports) = python_servers("modbus_pymodbus.py", &["tcp", "1", "--servers", "19"]);
    let (victim, victim_port) = python_server("modbus_pymodbus.py", &["tcp", "1"]);
    let devices = ports.iter().copied().chain([victim_port]).enumerate().map(|(index, port)| {
        let mut config = config(tcp(port), 1, words(Table::Holding, 0..100));
        config.identify = false;
        device(&format!("d{index}"), config, EVERY)
    });
    let mut running = start(devices.collect());
    running.good_scan("d19").await;
    drop(victim);
    running.bad_scan("d19", Reason::LinkDown).await;

    let (begun, cpu) = (tokio::time::Instant::now(), cpu_time());
    let (mut scans, mut values) = ([0u32; 20], 0);
    while begun.elapsed() < WINDOW {
        let Ok(Some(Update::Scan(scan))) = tokio::time::timeout(EVERY, running.updates.recv()).await else { continue };
        let index: usize = scan.device.as_str()[1..].parse().unwrap();
        if index < 19 {
            scans[index] += 1;
            values += scan.results.len();
            for result in &scan.results {
                assert_eq!(result.outcome, holding(1, result.point as u16));
            }
        }
    }
    let (cpu, planned) = (cpu_time() - cpu, WINDOW.as_secs_f64() / EVERY.as_secs_f64());
    println!(
        "{values} values, {:.2} µs of CPU each, client and checks together",
        cpu.as_secs_f64() * 1e6 / values as f64
    );
    let kept = f64::from(scans[..19].iter().sum::<u32>()) / (19.0 * planned);
    assert!(kept >= 0.99, "kept {kept:.3} of the schedule: {scans:?}");
    running.southbound.shutdown().await;
}
