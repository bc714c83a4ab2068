//! The command line as its user meets it: from `init` to values on the screen, what is said when something is wrong, and
//! the life of the process between start, reload and stop.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod whole_support;

use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use support::{Child, SOON, eventually, free_port, root, temp_dir, wait_for_port};
use whole_support::{FakeDevice, Mode, Site, body, errors, stop, tail, text};

/// Three registers of a [`FakeDevice`], reported whenever they were read.
const POINTS: &str = "[[points]]\nid = \"a\"\ntable = \"holding\"\naddress = 1\n\n[[points]]\nid = \"b\"\ntable = \"holding\"\naddress = 2\n";
const EAGER: &str = "rate = \"200 ms\"\non_change = false\n";

fn fieldgate(arguments: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_fieldgate")).args(arguments).output().expect("the program starts")
}

#[test]
fn from_init_to_values_on_the_screen() {
    let mut server = Command::new(support::python());
    server.arg("-u").arg(root().join("tests/servers/modbus_pymodbus.py")).args(["tcp", "1"]);
    let server = Child::spawn("modbus_pymodbus.py", server);
    let ready = server.wait_for("that it listens", SOON * 2, |line| line.starts_with("READY"));
    let link = format!("tcp://127.0.0.1:{}", ready.split(' ').nth(1).expect("a port"));

    let folder = temp_dir();
    let config = folder.path().join("my-plant").display().to_string();
    let made = fieldgate(&["--config", &config, "init", "--id", "bench", "--link", &link]);
    assert!(made.status.success(), "{}", errors(&made));
    assert!(text(&made).contains(&format!("fieldgate --config {config} check")), "no next step: {}", text(&made));
    let again = fieldgate(&["init", &config]);
    assert_eq!(again.status.code(), Some(1));
    assert!(errors(&again).contains("nothing was written"), "{}", errors(&again));

    // The ports of a test, and signs of life for `tail`, since this server's values never change.
    let main = format!("{config}/fieldgate.toml");
    let port = free_port();
    let starter = std::fs::read_to_string(&main).expect("written");
    let mine = starter.replace("127.0.0.1:1883", &format!("127.0.0.1:{port}")).replace("\"1 m\"", "\"500 ms\"");
    assert_ne!(starter, mine);
    std::fs::write(&main, mine).expect("writable");

    let run = |arguments: &[&str]| fieldgate(&[&["--config", config.as_str()], arguments].concat());
    let json = |arguments: &[&str]| -> Value {
        let output = run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", errors(&output));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {}", text(&output)))
    };
    let checked = run(&["check"]);
    assert!(checked.status.success() && text(&checked).contains("in order"), "{}", errors(&checked));
    let plan = run(&["explain"]);
    assert!(text(&plan).contains("requests/s") && text(&plan).contains("plc-1"), "{}", text(&plan));
    assert!(text(&run(&["explain", "plc-1"])).contains("plc-1"));
    let unknown = run(&["explain", "nobody"]);
    assert!(!unknown.status.success() && errors(&unknown).contains("plc-1"), "{}", errors(&unknown));

    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldgate"));
    command.args(["--config", &config, "run"]);
    let gateway = Child::spawn("fieldgate", command);
    wait_for_port(port, SOON);
    let device = eventually("the device to be online", SOON, || {
        let output = run(&["devices", "--json"]);
        let lines: Value = serde_json::from_slice(&output.stdout).ok()?;
        lines.as_array()?.iter().find(|line| line["device"] == "plc-1" && line["state"] == "online").cloned()
    });
    assert_eq!(device["points"], 3, "{device}");
    let points = eventually("all values", SOON, || {
        let points = json(&["points", "plc-1", "--json"]);
        let all = points.as_array().expect("a list").clone();
        all.iter().all(|point| point["quality"].as_str().is_some_and(|q| q.eq_ignore_ascii_case("good"))).then_some(all)
    });
    let value = |name: &str| points.iter().find(|point| point["point"] == name).expect("listed")["value"].clone();
    assert_eq!((value("level"), value("setpoint"), value("running")), (0.01.into(), 0.04.into(), true.into()));
    for table in [run(&["devices"]), run(&["points"])] {
        assert!(table.status.success() && text(&table).contains("plc-1"), "{}", text(&table));
    }

    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldgate"));
    command.args(["--config", &config, "tail", "plc-1", "level", "--json"]);
    let live = Child::spawn("fieldgate tail", command);
    let line = live.wait_for("a value", SOON, |line| line.starts_with('{'));
    let line: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!((&line["point"], &line["value"]), (&"level".into(), &0.01.into()), "{line}");

    let status = json(&["store", "status", "--json"]);
    let status_text = status.to_string();
    assert!(
        status_text.contains("bulk") && status_text.contains("critical") && status_text.contains("local"),
        "{status}"
    );
    let table = run(&["store", "status"]);
    assert!(text(&table).contains("bulk") && text(&table).contains("local"), "{}", text(&table));
    let version = json(&["version", "--json"]);
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"), "{version}");
    assert!(text(&run(&["version"])).contains(env!("CARGO_PKG_VERSION")));
    stop(gateway);

    // A tail says that the gateway went, and does not hang.
    let mut live = live;
    assert_eq!(live.wait(SOON).code(), Some(1));
}

#[test]
fn without_a_gateway_the_commands_say_so() {
    let site = Site::new("");
    site.device("one", 1, EAGER, "", POINTS);
    for arguments in [&["devices"][..], &["points"], &["tail"], &["store", "status"]] {
        let output = site.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", text(&output));
        assert!(errors(&output).contains("no gateway is running"), "{arguments:?}: {}", errors(&output));
        assert!(errors(&output).contains(&site.text()), "which one is not said: {}", errors(&output));
    }
    let nowhere = fieldgate(&["--config", "/nonexistent-folder", "check"]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(errors(&nowhere).contains("/nonexistent-folder"), "{}", errors(&nowhere));
    assert_eq!(fieldgate(&["nonsense"]).status.code(), Some(2));
}

#[test]
fn check_names_file_line_and_key() {
    let good = format!("{EAGER}\n[modbus]\nlink = \"tcp://127.0.0.1:1502\"\n\n{POINTS}");
    let main = "[gateway]\nid = \"plant\"\n";
    let cases = [
        // What is broken, where, and the words that must stand in the answer.
        ("fieldgate.toml", format!("{main}dta_dir = \"x\"\n"), "fieldgate.toml:3", "data_dir"),
        ("fieldgate.toml", format!("{main}[store]\nmax_size = 5\n"), "fieldgate.toml:4", "max_size"),
        ("fieldgate.toml", format!("{main}[uplink\n"), "fieldgate.toml:3", "]"),
        ("devices/one.toml", good.replace("address = 2", "adress = 2"), "devices/one.toml:15", "address"),
        ("devices/one.toml", good.replace("address = 2", "address = 70000"), "devices/one.toml:15", "70000"),
        ("devices/one.toml", good.replace("id = \"b\"", "id = \"a\""), "devices/one.toml:13", "a"),
        ("devices/one.toml", good.replace("\"200 ms\"", "200"), "devices/one.toml:1", "200 ms"),
        ("devices/one.toml", good.replace("tcp://127", "udp://127"), "devices/one.toml:5", "link"),
    ];
    for (file, broken, place, words) in cases {
        let site = Site::new("");
        site.write("fieldgate.toml", main);
        site.write("devices/one.toml", &good);
        assert!(site.run(&["check"]).status.success());
        site.write(file, &broken);
        let output = site.run(&["check"]);
        let said = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{broken}: {said}");
        assert!(said.contains(place) && said.contains(words), "wanted {place} and {words}, got: {said}\n{broken}");
        // `run` refuses it in the same words, before it touches anything.
        let run = site.run(&["run"]);
        assert_eq!(run.status.code(), Some(1));
        assert!(errors(&run).contains(place), "{}", errors(&run));
        assert!(!site.data().exists(), "a refused configuration made a data directory");
    }
}

#[test]
fn a_second_gateway_on_the_same_data_is_refused_in_words() {
    let device = FakeDevice::start(Mode::Well);
    let site = Site::new("");
    site.device("one", device.port(), EAGER, "", POINTS);
    let gateway = site.start();
    site.wait_for_state("one", "online");
    let second = site.run(&["run"]);
    assert_eq!(second.status.code(), Some(1), "{}", errors(&second));
    assert!(errors(&second).contains("another fieldgate process uses the store"), "{}", errors(&second));
    assert!(errors(&second).contains(&site.text()), "{}", errors(&second));
    // The first one did not notice: it answers, and its socket was not taken away.
    site.wait_for_state("one", "online");
    stop(gateway);
}

#[test]
fn a_reload_disturbs_only_what_changed_and_a_bad_one_nothing() {
    let (kept, changed) = (FakeDevice::start(Mode::Well), FakeDevice::start(Mode::Well));
    let site = Site::new("");
    site.device("kept", kept.port(), EAGER, "", POINTS);
    site.device("changed", changed.port(), EAGER, "", POINTS);
    let gateway = site.start();
    site.wait_for_state("kept", "online");
    site.wait_for_state("changed", "online");
    let values = site.subscribe("devices/+/telemetry");
    let health = site.subscribe("health");
    let count = |device: &str| values.messages().iter().filter(|m| body(&m.payload)["device"] == device).count();

    // A changed file is noticed without any word.
    let more = POINTS.to_owned() + "\n[[points]]\nid = \"c\"\ntable = \"holding\"\naddress = 3\n";
    site.device("changed", changed.port(), EAGER, "", &more);
    values.wait_for("the new point", SOON, |message| {
        body(&message.payload)["points"]
            .as_array()
            .is_some_and(|all| all.iter().any(|p| p["name"] == "c" && p["value"] == 1_003))
    });
    assert_eq!(kept.connections(), 1, "a device that did not change was connected to again");

    // A new device comes with SIGHUP at once.
    let added = FakeDevice::start(Mode::Well);
    site.device("added", added.port(), EAGER, "", POINTS);
    gateway.signal(Signal::HUP);
    values.wait_for("the new device", SOON, |message| body(&message.payload)["device"] == "added");
    assert_eq!((kept.connections(), added.connections()), (1, 1));

    // A bad file changes nothing and stands in `health`.
    let before = changed.connections();
    site.device("changed", changed.port(), EAGER, "tiemout = \"1 s\"", POINTS);
    gateway.signal(Signal::HUP);
    let told = health.wait_for("the problem", SOON, |message| {
        body(&message.payload)["problems"].to_string().contains("devices/changed.toml")
    });
    assert!(body(&told.payload)["problems"].to_string().contains("tiemout"), "{}", body(&told.payload));
    // Who looks at the gateway sees it all the same, though the files on disk are not in order.
    assert_eq!(site.json(&["devices", "--json"]).as_array().map(Vec::len), Some(3));
    let (kept_count, changed_count) = (count("kept"), count("changed"));
    eventually("both devices going on", SOON, || {
        (count("kept") > kept_count + 5 && count("changed") > changed_count + 5).then_some(())
    });
    assert_eq!((kept.connections(), changed.connections()), (1, before), "a bad configuration disturbed a device");

    // Mended, the problem goes; a removed device is not read any more.
    let seen = health.messages().len();
    site.device("changed", changed.port(), EAGER, "", &more);
    std::fs::remove_file(site.path().join("devices/added.toml")).expect("there");
    gateway.signal(Signal::HUP);
    eventually("health without the problem", SOON, || {
        health.messages()[seen..]
            .iter()
            .any(|m| !body(&m.payload)["problems"].to_string().contains("tiemout"))
            .then_some(())
    });
    eventually("the device to be gone", SOON, || {
        let devices = site.json(&["devices", "--json"]);
        (devices.as_array()?.len() == 2).then_some(())
    });
    assert_eq!(kept.connections(), 1);
    // Not one scan of the device that stayed was left out or made twice: its cycle is the one of its file.
    let device = site.wait_for_state("kept", "online");
    assert_eq!(device["failures"].as_u64(), Some(0), "{device}");
    stop(gateway);
}

#[test]
fn a_stop_takes_less_than_five_seconds_whatever_hangs() {
    let (well, hangs) = (FakeDevice::start(Mode::Well), FakeDevice::start(Mode::Hangs));
    // A broker that accepts connections and never answers, and one that is not there.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback gives a port");
    let site = Site::new(&format!(
        "[[uplink]]\nname = \"mute\"\nservers = [\"mqtt://127.0.0.1:{}\"]\n\n[[uplink]]\nname = \"away\"\nservers = [\"mqtt://127.0.0.1:{}\"]\n",
        mute.local_addr().expect("bound").port(),
        free_port(),
    ));
    site.device("well", well.port(), EAGER, "", POINTS);
    site.device("hangs", hangs.port(), EAGER, "timeout = \"30 s\"", POINTS);
    let mut gateway = site.start();
    site.wait_for_state("well", "online");
    eventually("a request that hangs", SOON, || (hangs.requests() > 0).then_some(()));
    // A client that never reads.
    let lazy = std::net::TcpStream::connect(("127.0.0.1", site.port())).expect("the broker's port answers");
    let began = Instant::now();
    gateway.signal(Signal::TERM);
    let status = gateway.wait(SOON);
    assert!(status.success(), "{status}\n{}", tail(&gateway));
    assert!(began.elapsed() <= Duration::from_secs(5), "the stop took {:?}\n{}", began.elapsed(), tail(&gateway));
    drop(lazy);
    // Stopped means stopped: what was read is on the disk, and the next start is as quick as the first.
    let gateway = site.start();
    site.wait_for_state("well", "online");
    stop(gateway);
}

#[test]
fn a_reader_that_left_is_no_reason_to_panic() {
    let site = Site::new("");
    let points: String =
        (0..2_000).map(|n| format!("[[points]]\nid = \"p{n}\"\ntable = \"holding\"\naddress = {}\n", 20 * n)).collect();
    site.device("one", 1, EAGER, "max_gap = 0\n", &points);
    for arguments in ["explain", "check", "version"] {
        let mut command = Command::new("sh");
        // More than fits into a pipe, to a reader that is gone.
        let program = env!("CARGO_BIN_EXE_fieldgate");
        command.arg("-c").arg(format!("'{program}' --config '{}' {arguments} | true", site.text()));
        let output = command.output().expect("a shell");
        assert!(!errors(&output).contains("panicked"), "{arguments}: {}", errors(&output));
    }
}

#[test]
fn a_port_that_is_taken_is_named_and_nothing_is_left_behind() {
    let site = Site::new("");
    site.device("one", 1, EAGER, "", POINTS);
    let taken = std::net::TcpListener::bind(("127.0.0.1", site.port())).expect("free until now");
    let output = site.run(&["run"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains(&format!("127.0.0.1:{}", site.port())), "{}", errors(&output));
    drop(taken);
    // And the data directory that it began serves the next start. Ctrl-C ends it as SIGTERM does.
    let mut gateway = site.start();
    gateway.signal(Signal::INT);
    assert!(gateway.wait(SOON).success());
}
