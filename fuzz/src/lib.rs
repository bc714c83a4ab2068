//! Every parser that reads what others wrote, as a function that takes any bytes: it may refuse them and must not panic,
//! hang or break its own promises. The fuzzer's binaries and `tests/fuzz_smoke.rs` share this file.

use std::fs;
use std::path::Path;

use fieldgate::contract::topics::RequestTopic;
use fieldgate::contract::{ContractMessage, Encoding, v1};
use fieldgate::{admin, broker, config, margo, southbound::modbus, store};

/// A parser under test.
pub struct Target {
    /// Name of the fuzzer's binary.
    pub name: &'static str,
    /// Feeds it.
    pub run: fn(&[u8]),
    /// Inputs that are right or nearly so, to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// What one input costs, compared with the cheapest.
    pub cost: usize,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "broker_packets", run: broker::fuzz_packets, seeds: broker_packets, cost: 1 },
    Target { name: "broker_topics", run: broker::fuzz_topics, seeds: broker_topics, cost: 1 },
    Target { name: "broker_retained", run: broker::fuzz_retained, seeds: broker_retained, cost: 1 },
    Target { name: "modbus_tcp", run: modbus::fuzz_tcp, seeds: modbus_tcp, cost: 1 },
    Target { name: "modbus_rtu", run: modbus::fuzz_rtu, seeds: modbus_rtu, cost: 1 },
    Target { name: "modbus_pdu", run: modbus::fuzz_pdu, seeds: modbus_pdu, cost: 1 },
    Target { name: "store_segment", run: store::fuzz_segment, seeds: store_segment, cost: 4 },
    Target { name: "store_acks", run: store::fuzz_acks, seeds: store_acks, cost: 4 },
    Target { name: "contract_json", run: contract_json, seeds: contract_texts, cost: 2 },
    Target { name: "contract_protobuf", run: contract_protobuf, seeds: contract_binaries, cost: 1 },
    Target { name: "contract_topics", run: contract_topics, seeds: contract_topic_texts, cost: 1 },
    Target { name: "config_gateway", run: config_gateway, seeds: config_gateways, cost: 40 },
    Target { name: "config_device", run: config_device, seeds: config_devices, cost: 40 },
    Target { name: "config_list", run: config_list, seeds: config_lists, cost: 40 },
    Target { name: "admin_line", run: admin_line, seeds: admin_lines, cost: 1 },
    Target { name: "margo_desired", run: margo::desired::fuzz::fuzz_desired, seeds: margo_desired, cost: 4 },
    Target { name: "margo_compose", run: margo::component::compose::fuzz_compose, seeds: margo_compose, cost: 8 },
];

/// Feeds one input to the target of this name.
///
/// # Panics
/// When there is no such target, and when the target found something.
pub fn feed(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.unwrap_or_else(|| panic!("no target is named {name}")).run)(data);
}

fn broker_packets() -> Vec<Vec<u8>> {
    let connect: &[u8] = &[0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 60, 0, 1, b'g'];
    let connect5: &[u8] = &[0x10, 14, 0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 60, 0, 0, 1, b'h'];
    let subscribe: &[u8] = &[0x82, 6, 0, 1, 0, 1, b'#', 1];
    let publish: &[u8] = &[0x33, 6, 0, 1, b't', 0, 7, b'x'];
    let other: &[u8] = &[0x40, 2, 0, 1, 0xc0, 0, 0xa2, 5, 0, 2, 0, 1, b'#', 0xe0, 0];
    // A byte in front of each piece says how long it is and which of two clients sends it.
    let piece = |who: u8, octets: &[u8]| [&[(octets.len() as u8) << 1 | who], octets].concat();
    vec![
        [piece(0, connect), piece(0, subscribe), piece(1, connect5), piece(1, publish), piece(0, other)].concat(),
        [piece(0, connect), piece(0, publish), piece(0, publish), piece(1, connect), piece(1, subscribe)].concat(),
    ]
}

fn broker_topics() -> Vec<Vec<u8>> {
    ["a/+/c/#\0a/b/c", "$share/g/a/#\0a", "#\0$SYS/x", "+/+\0a/b/c", "a//b\0a/+/b"].map(|t| t.into()).to_vec()
}

fn broker_retained() -> Vec<Vec<u8>> {
    vec![vec![1; 40], vec![0; 40], (0..80).collect()]
}

fn modbus_tcp() -> Vec<Vec<u8>> {
    vec![
        vec![0, 1, 0, 0, 0, 7, 1, 3, 4, 0, 1, 0, 2],
        vec![0, 1, 0, 0, 0, 3, 1, 0x83, 2, 0, 2, 0, 0, 0, 4, 1, 1, 1, 0xff],
    ]
}

fn modbus_rtu() -> Vec<Vec<u8>> {
    // The second one without its checksum, which the target adds.
    vec![vec![1, 3, 2, 0, 1, 0x79, 0x84], vec![17, 1, 1, 0xff], vec![1, 0x83, 2]]
}

fn modbus_pdu() -> Vec<Vec<u8>> {
    let device_id = [&[43, 14, 1, 1, 0, 0, 2, 0, 4][..], b"Acme", &[1, 3], b"P-1"].concat();
    vec![vec![3, 8, 0x41, 0x42, 0, 2, 0x7f, 0xc0, 0, 0], vec![1, 2, 0xff, 1], vec![17, 3, 7, 0xff, b'x'], device_id]
}

fn store_segment() -> Vec<Vec<u8>> {
    let frame = |sequence: u64, payload: &[u8]| {
        let mut octets = vec![0; 36];
        octets[..2].copy_from_slice(FRAME_MAGIC);
        octets[2] = 1;
        octets[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        octets[12..20].copy_from_slice(&sequence.to_le_bytes());
        octets[32] = 1;
        octets.extend_from_slice(payload);
        octets
    };
    let header = [&b"FGSG"[..], &[1, 0], &[0; 58]].concat();
    vec![[frame(1, b"one"), frame(2, b""), frame(3, b"three")].concat(), [header, frame(1, &[7; 200])].concat()]
}

/// First bytes of a frame.
const FRAME_MAGIC: &[u8; 2] = &[0xd1, 0xf6];

fn store_acks() -> Vec<Vec<u8>> {
    let body = [&[1, 1, 1, 0][..], &[2; 48], &[5], b"local", &[3; 16], &[1], &[4; 16], &[5; 40], &[1]].concat();
    vec![[&[0; 24][..], &body].concat(), vec![0; 200]]
}

fn contract_json(data: &[u8]) {
    contract(Encoding::Json, data);
}

fn contract_protobuf(data: &[u8]) {
    contract(Encoding::Protobuf, data);
}

/// The messages that others send.
fn contract(encoding: Encoding, data: &[u8]) {
    fn one<M: ContractMessage>(encoding: Encoding, data: &[u8]) {
        if let Ok(message) = M::decode_as(encoding, data) {
            // What was understood can be said again.
            let _ = message.encode_as(Encoding::Protobuf);
            let _ = message.encode_as(Encoding::Json);
        }
    }
    one::<v1::Command>(encoding, data);
    one::<v1::ManagementRequest>(encoding, data);
    one::<v1::Announcement>(encoding, data);
    one::<v1::DesiredConfig>(encoding, data);
    one::<v1::Telemetry>(encoding, data);
}

fn contract_texts() -> Vec<Vec<u8>> {
    [
        r#"{"correlationId":"1","writes":[{"point":"p","value":3.5}],"expires":"2026-01-01T00:00:00Z"}"#,
        r#"{"correlationId":"c","method":"reset","arguments":[{"name":"a","value":{"x":[1,null,true]}}]}"#,
        r#"{"device":"d","at":"2026-01-01T00:00:00.5Z","points":[{"id":"p","value":1e300,"quality":"GOOD"}]}"#,
        r#"{"correlationId":"c","action":"approve","device":"d"}"#,
    ]
    .map(|t| t.into())
    .to_vec()
}

fn contract_binaries() -> Vec<Vec<u8>> {
    vec![vec![10, 1, b'1', 18, 6, 10, 1, b'p', 18, 1, 0], vec![10, 3, b'a', b'b', b'c', 34, 2, 8, 1]]
}

fn contract_topics(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = RequestTopic::parse(&text);
    let _ = fieldgate::contract::topics::parse_point(&text);
}

fn contract_topic_texts() -> Vec<Vec<u8>> {
    ["devices/pump-1/command", "devices/d/config/desired", "management/request", "devices/d/points/p"]
        .map(|t| t.into())
        .to_vec()
}

const MAIN: &str = "[gateway]\nid = \"g\"\n";
const POINT: &str = "[[points]]\nid = \"p\"\ntable = \"holding\"\naddress = 1\n";

fn config_gateway(data: &[u8]) {
    load(data, format!("[modbus]\nlink = \"tcp://h\"\n{POINT}").as_bytes(), b"");
}

fn config_device(data: &[u8]) {
    load(MAIN.as_bytes(), data, b"id,table,address\np,holding,1\n");
}

fn config_list(data: &[u8]) {
    load(MAIN.as_bytes(), b"points = \"list.csv\"\n[modbus]\nlink = \"tcp://h\"\n", data);
}

/// Every problem has a place, and a text that can be shown.
fn load(main: &[u8], device: &[u8], list: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory for the configuration");
    let write = |name: &str, octets: &[u8]| fs::write(dir.path().join(name), octets).expect("the file is written");
    fs::create_dir(dir.path().join("devices")).expect("a directory for devices");
    write("fieldgate.toml", main);
    write("devices/d.toml", device);
    write("devices/list.csv", list);
    match config::load_with(Path::new(dir.path()), &|_| None) {
        Ok(loaded) => {
            for device in &loaded.devices {
                assert_eq!(device.southbound().check(), Ok(()), "what passed the checks passes the driver's own");
            }
        }
        Err(problems) => assert!(!problems.to_string().is_empty()),
    }
}

fn config_gateways() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../examples/config/reference/fieldgate.toml").to_vec(),
        b"[gateway]\nid = \"g\"\n[store]\nmax_size = \"64 MiB\"\n[[uplink]]\nname = \"u\"\nservers = \"mqtt://h\"\n"
            .to_vec(),
    ]
}

fn config_devices() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../examples/config/reference/devices/pump-1.toml").to_vec(),
        include_bytes!("../../examples/config/reference/devices/boiler.toml").to_vec(),
        format!("rate = \"100 ms\"\n[modbus]\nlink = \"serial:///dev/x?baud=9600\"\n{POINT}type = \"f32\"\n")
            .into_bytes(),
    ]
}

fn config_lists() -> Vec<Vec<u8>> {
    [
        "id,table,address,type,scale,description\na,holding,1,i16,0.1,\"x, y\"\nb,coil,2,,,\n",
        "sep=;\r\nid;table;address;bits;access;min;max\r\na;holding;4;0-3;read-write;0;9\r\n# note\r\n",
    ]
    .map(|t| t.into())
    .to_vec()
}

fn admin_line(data: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<admin::Request>(data) {
        let line = serde_json::to_vec(&request).expect("a request can be written");
        let again: admin::Request = serde_json::from_slice(&line).expect("and read again");
        assert_eq!(again, request);
    }
}

fn admin_lines() -> Vec<Vec<u8>> {
    [
        r#"{"ask":"devices"}"#,
        r#"{"ask":"tail","device":"d","point":"p"}"#,
        r#"{"ask":"manage","question":{"a":[1,2.5,null]}}"#,
    ]
    .map(|t| t.into())
    .to_vec()
}

fn margo_compose() -> Vec<Vec<u8>> {
    let plain = "services:\n  web:\n    image: a\n    environment: {NAME: '${NAME}'}\n    volumes: ['./a:/a', {type: bind, source: /, target: /b}]\n    privileged: yes\nvolumes: {data: {driver_opts: {device: /}}}\n";
    let merged = "x-a: &a {restart: always, deploy: {resources: {limits: {cpus: '1'}}}}\nservices: {web: {<<: *a, image: b, security_opt: [a:b]}}\n";
    // A gzipped tar with `web/compose.yaml`.
    let archive = "1f8b08000000000002032b4f4dd24fcecf2dc82f4ed5ab4ccccd61a001300002331313300d04e8b48181b111820d12373434303163503060a003282d2e492c025acf303241716a515966726ab1954275221067e626a6a75a2924d5d672318c8251300a46c12818c60000baef1a3800080000";
    let octet = |pair: usize| u8::from_str_radix(&archive[pair..pair + 2], 16).unwrap_or(0);
    vec![plain.into(), merged.into(), (0..archive.len()).step_by(2).map(octet).collect()]
}

fn margo_desired() -> Vec<Vec<u8>> {
    let manifest = r#"{"manifestVersion":3,"bundle":null,"deployments":[{"deploymentId":"6ba7b810-9dad-41d1-80b4-00c04fd430c8","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","url":"/api/v1/x"}]}"#;
    let deployment = "kind: ApplicationDeployment\nmetadata:\n  annotations: {id: 6ba7b810-9dad-41d1-80b4-00c04fd430c8}\n  deviceId: gw/a\nspec:\n  deploymentProfile:\n    type: custom\n    components: [{name: a, properties: {repository: oci://r/a, revision: '1'}}]\n";
    let bundle = r#"{"spiffe_sequence":1,"keys":[{"kty":"EC","use":"x509-svid","x5c":["MAA="]}]}"#;
    [manifest, deployment, bundle].map(|text| text.as_bytes().to_vec()).to_vec()
}
