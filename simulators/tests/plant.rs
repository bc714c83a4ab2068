//! The plant as a client sees it, through tokio-modbus: a codec that is not ours.

use std::time::Duration;

use fieldgate_simulators::device::Fill;
use fieldgate_simulators::faults::{Delay, Faults, Lie, LieKind, OutageKind};
use fieldgate_simulators::modbus::Table;
use fieldgate_simulators::scenario::{Link, Listener};
use fieldgate_simulators::{Plant, Scenario, Signal};
use tokio::net::TcpStream;
use tokio_modbus::client::{Context, rtu, tcp};
use tokio_modbus::prelude::*;

const SOON: Duration = Duration::from_secs(10);

async fn start() -> Plant {
    Plant::start(Scenario::pump_station().on_free_ports()).await.expect("starts on free ports")
}

async fn connect(plant: &Plant, device: &str) -> Context {
    let unit = plant.endpoints().iter().find(|endpoint| endpoint.device == device).expect("known").unit;
    let address = plant.address(device).expect("a socket");
    tcp::connect_slave(address, Slave(unit)).await.expect("accepted")
}

fn float(words: &[u16]) -> f32 {
    f32::from_bits(u32::from(words[0]) << 16 | u32::from(words[1]))
}

#[tokio::test]
async fn levels_are_plausible_and_move() {
    let plant = start().await;
    let mut station = connect(&plant, "station").await;
    let first = station.read_input_registers(0, 2).await.expect("reply").expect("no exception");
    assert!((0.0..6.0).contains(&float(&first)), "{first:?}");
    let moved =
        async { while station.read_input_registers(0, 2).await.expect("reply").expect("no exception") == first {} };
    tokio::time::timeout(SOON, moved).await.expect("the level moves");
    plant.stop().await;
}

#[tokio::test]
async fn set_points_are_written_read_back_and_act() {
    let plant = start().await;
    let mut station = connect(&plant, "station").await;
    station.write_multiple_registers(22, &[0x4020, 0]).await.expect("reply").expect("2.5 m is in range");
    assert_eq!(plant.signal("control.start_level"), Some(Signal::Number(2.5)));
    assert_eq!(station.read_holding_registers(22, 2).await.expect("reply"), Ok(vec![0x4020, 0]));
    station.write_single_coil(1, false).await.expect("reply").expect("a coil");
    station.write_single_coil(3, true).await.expect("reply").expect("a coil");
    let runs = async { while station.read_discrete_inputs(9, 1).await.expect("reply") != Ok(vec![true]) {} };
    tokio::time::timeout(SOON, runs).await.expect("pump 2 starts");

    let refused = station.write_multiple_registers(22, &[0x42c8, 0]).await.expect("reply");
    assert_eq!(refused, Err(ExceptionCode::IllegalDataValue), "100 m is no level");
    assert_eq!(station.read_holding_registers(22, 2).await.expect("reply"), Ok(vec![0x4020, 0]));
    let hole = station.read_holding_registers(32, 1).await.expect("reply");
    assert_eq!(hole, Err(ExceptionCode::IllegalDataAddress));
    assert_eq!(
        station.write_single_register(8, 1).await.expect("reply"),
        Err(ExceptionCode::IllegalDataAddress),
        "the clock is not writable"
    );
    station.masked_write_register(40, 0, 0x1234).await.expect("reply").expect("scratch");
    let both = station.read_write_multiple_registers(40, 2, 41, &[7]).await.expect("reply");
    assert_eq!(both, Ok(vec![0x1234, 7]));
    plant.stop().await;
}

#[tokio::test]
async fn devices_say_who_they_are() {
    let plant = start().await;
    let mut meter = connect(&plant, "energy-meter").await;
    let reply = meter.read_device_identification(ReadCode::Basic, 0).await.expect("reply").expect("supported");
    let texts: Vec<_> = reply.device_id_objects.iter().filter_map(|object| object.value_as_str()).collect();
    assert_eq!(texts, ["Voltara", "EM-96", "3.0.1"]);
    let id = meter.call(Request::ReportServerId).await.expect("reply").expect("supported");
    assert_eq!(id, Response::ReportServerId(1, true, b"EM96-5567201".to_vec()));
    plant.stop().await;
}

#[tokio::test]
async fn two_sensors_share_a_line_and_one_may_die() {
    let plant = start().await;
    let address = plant.address("gas").expect("a socket");
    let mut bus = rtu::attach_slave(TcpStream::connect(address).await.expect("accepted"), Slave(11));
    bus.read_input_registers(0, 4).await.expect("reply").expect("gas");
    bus.set_slave(Slave(12));
    bus.read_input_registers(0, 8).await.expect("reply").expect("weather");

    plant.set_outage("weather", Some(OutageKind::Silent)).expect("known");
    let dead = tokio::time::timeout(Duration::from_millis(400), bus.read_input_registers(0, 8)).await;
    assert!(dead.is_err(), "replied while out");
    bus.set_slave(Slave(11));
    bus.read_input_registers(0, 4).await.expect("reply").expect("gas lives on");
    plant.set_outage("weather", None).expect("known");
    bus.set_slave(Slave(12));
    bus.read_input_registers(0, 8).await.expect("reply").expect("weather is back");
    assert_eq!(plant.stats("weather").expect("known").silenced, 1);
    plant.stop().await;
}

#[tokio::test]
async fn a_disconnected_device_refuses_and_comes_back() {
    let plant = start().await;
    let mut drive = connect(&plant, "pump-1").await;
    drive.read_holding_registers(0, 9).await.expect("reply").expect("lives");
    plant.set_outage("pump-1", Some(OutageKind::Disconnected)).expect("known");
    assert!(drive.read_holding_registers(0, 9).await.is_err());
    plant.set_outage("pump-1", None).expect("known");
    let mut drive = connect(&plant, "pump-1").await;
    drive.read_holding_registers(0, 9).await.expect("reply").expect("lives again");
    plant.stop().await;
}

#[tokio::test]
async fn a_late_reply_comes_late_and_a_stop_does_not_wait_for_it() {
    let mut scenario = Scenario::uniform(1, 10, Fill::Address);
    scenario.devices[0].faults = Faults { delay: Delay::fixed(Duration::from_millis(300)), ..Faults::default() };
    let plant = Plant::start(scenario).await.expect("starts");
    let mut device = connect(&plant, "device-000").await;
    let began = tokio::time::Instant::now();
    assert_eq!(device.read_holding_registers(3, 2).await.expect("reply"), Ok(vec![3, 4]));
    assert!(began.elapsed() >= Duration::from_millis(300));
    let waiting = tokio::spawn(async move { device.read_holding_registers(0, 1).await });
    while plant.stats("device-000").expect("known").requests < 2 {
        tokio::task::yield_now().await;
    }
    tokio::time::timeout(Duration::from_millis(250), plant.stop()).await.expect("stops at once");
    assert!(waiting.await.expect("joined").is_err());
}

#[tokio::test]
async fn a_liar_lies_as_often_as_it_should_and_repeats_itself() {
    async fn play(seed: u64) -> Vec<bool> {
        let mut scenario = Scenario::uniform(1, 10, Fill::Keep).with_seed(seed);
        let lie = Lie { kind: LieKind::Exception(fieldgate_simulators::modbus::Exception::Busy), chance: 0.25 };
        scenario.devices[0].faults.lies.push(lie);
        let plant = Plant::start(scenario).await.expect("starts");
        let mut device = connect(&plant, "device-000").await;
        let mut lies = Vec::new();
        for _ in 0..200 {
            lies.push(device.read_holding_registers(0, 1).await.expect("reply").is_err());
        }
        let told = plant.stats("device-000").expect("known").lies;
        assert_eq!(told, lies.iter().filter(|lie| **lie).count() as u64);
        assert!((30..=70).contains(&told), "{told} of 200");
        lies
    }
    assert_eq!(play(5).await, play(5).await);
    assert_ne!(play(5).await, play(6).await);
}

#[tokio::test]
async fn a_poke_is_read_at_once_and_time_can_be_led_by_hand() {
    let mut scenario = Scenario::uniform(2, 100, Fill::Keep);
    scenario.runs = false;
    let plant = Plant::start(scenario).await.expect("starts");
    let mut device = connect(&plant, "device-001").await;
    plant.poke("device-001", Table::Holding, 99, &[4_711]).expect("there");
    assert_eq!(device.read_holding_registers(99, 1).await.expect("reply"), Ok(vec![4_711]));
    assert!(plant.poke("device-001", Table::Holding, 99, &[1, 2]).is_err(), "100 is not there");
    assert!(plant.poke("device-009", Table::Holding, 0, &[1]).is_err());
    plant.advance(Duration::from_secs(60));
    assert_eq!(plant.elapsed(), Duration::from_secs(60));
    plant.stop().await;
}

#[tokio::test]
async fn rtu_works_on_a_pseudo_terminal() {
    let (mut near, far) = tokio_serial::SerialStream::pair().expect("a pty");
    near.set_exclusive(false).expect("shared");
    let path = tokio_serial::SerialPort::name(&far).expect("the far end has a path");
    let mut scenario = Scenario::uniform(1, 20, Fill::Address);
    let link = Link::Serial { path, baud: 19_200 };
    scenario.listeners[0] = Listener { name: "line".into(), link, max_connections: None };
    drop(far);
    let plant = Plant::start(scenario).await.expect("opens the pty");
    let mut line = rtu::attach_slave(near, Slave(1));
    let reply = tokio::time::timeout(SOON, line.read_holding_registers(5, 3)).await.expect("in time");
    assert_eq!(reply.expect("reply"), Ok(vec![5, 6, 7]));
    plant.stop().await;
}

#[tokio::test]
async fn garbage_on_every_port_harms_nobody() {
    use tokio::io::AsyncWriteExt;
    let plant = start().await;
    let mut rng = fieldgate_simulators::rng::Rng::new(3);
    for endpoint in plant.endpoints() {
        let address = plant.address(&endpoint.device).expect("a socket");
        let mut stream = TcpStream::connect(address).await.expect("accepted");
        let bytes: Vec<u8> = (0..2_000).map(|_| rng.next_u64() as u8).collect();
        let _ = stream.write_all(&bytes).await;
    }
    let mut station = connect(&plant, "station").await;
    station.read_input_registers(0, 2).await.expect("reply").expect("still there");
    plant.stop().await;
}

#[tokio::test]
async fn a_converter_may_give_a_late_reply_to_the_next_connection() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut scenario = Scenario::uniform(1, 10, Fill::Address);
    let bind = "127.0.0.1:0".parse().expect("an address");
    scenario.listeners[0].link = Link::RtuOverTcp { bind, baud: None, broadcast: true };
    scenario.devices[0].faults.delay = Delay::fixed(Duration::from_millis(300));
    let plant = Plant::start(scenario).await.expect("starts");
    let address = plant.address("device-000").expect("a socket");
    let request = fieldgate_simulators::modbus::frame::encode(
        fieldgate_simulators::modbus::frame::Framing::Rtu,
        0,
        1,
        &[3, 0, 4, 0, 1],
    );
    let mut first = TcpStream::connect(address).await.expect("accepted");
    first.write_all(&request).await.expect("sent");
    while plant.stats("device-000").expect("known").requests < 1 {
        tokio::task::yield_now().await;
    }
    drop(first);
    let mut second = TcpStream::connect(address).await.expect("accepted");
    let mut reply = [0; 7];
    tokio::time::timeout(SOON, second.read_exact(&mut reply)).await.expect("in time").expect("a late reply");
    assert_eq!(reply[..5], [1, 3, 2, 0, 4]);
    plant.stop().await;
}
