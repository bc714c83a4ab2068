//! The harness itself: what the other tests lean on must hold.

mod support;

use std::process::Command;
use std::time::Duration;

use support::{Child, Mosquitto, PtyPair, SOON, Subscriber, eventually, program, publish};

#[test]
fn a_child_and_its_children_end_with_the_value() {
    let mut command = Command::new("sh");
    command.args(["-c", "sleep 1000 & echo grandchild $!; wait"]);
    let child = Child::spawn("sh", command);
    let line = child.wait_for("its child", SOON, |line| line.starts_with("grandchild"));
    let grandchild = line.split_whitespace().nth(1).expect("an id").to_owned();
    let (own, grand) = (format!("/proc/{}", child.id()), format!("/proc/{grandchild}/stat"));
    assert!(std::fs::exists(&own).expect("readable"));
    drop(child);
    assert!(!std::fs::exists(&own).expect("readable"), "the child is still there");
    // An orphan that nobody has reaped yet is dead all the same.
    eventually("the end of the grandchild", SOON, || {
        let stat = std::fs::read_to_string(&grand).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
}

#[test]
#[should_panic(expected = "did not say the word")]
fn waiting_for_a_line_that_never_comes_fails_with_the_output() {
    let mut command = Command::new("echo");
    command.arg("something else");
    Child::spawn("echo", command).wait_for("the word", SOON, |line| line == "word");
}

#[test]
fn mosquitto_delivers_retained_messages_after_a_restart() {
    let mut broker = Mosquitto::with_config("allow_anonymous true\npersistence true\npersistence_location {dir}/\n");
    publish(broker.port(), "a/b", "kept", &["-r"]).expect("published");
    broker.restart();
    let subscriber = Subscriber::start(broker.port(), "a/#", &[]);
    let message = subscriber.wait_for("the retained message", SOON, |message| message.topic == "a/b");
    assert_eq!((message.payload.as_slice(), message.retain, message.qos), (&b"kept"[..], true, 1));
    publish(broker.port(), "a/c", "", &[]).expect("published");
    assert_eq!(subscriber.wait_for_count(2, SOON)[1].payload, b"");
    broker.kill();
    assert!(publish(broker.port(), "a/b", "nobody", &[]).is_err());
}

#[test]
fn bytes_cross_a_pty_pair() {
    let line = PtyPair::open();
    let mut command = Command::new(program("head"));
    command.arg("-c5").arg(&line.far);
    let reader = Child::spawn("head", command);
    std::fs::write(&line.near, "hello\n").expect("the near end takes bytes");
    reader.wait_for("the bytes", Duration::from_secs(5), |text| text == "hello");
}

/// Reads a plant as a client does, registers 0 to 99 at once.
fn read_all(port: u16) -> Option<Vec<u16>> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(SOON)).ok()?;
    stream.write_all(&[0, 1, 0, 0, 0, 6, 1, 3, 0, 0, 0, 100]).ok()?;
    let mut reply = [0; 209];
    stream.read_exact(&mut reply).ok()?;
    Some(reply[9..].chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect())
}

fn value(device: u32, register: u32, n: u32) -> u16 {
    (n + 1_009 * device + 257 * register) as u16
}

#[test]
fn the_judging_plants_serve_what_they_count() {
    for script in ["plant_pymodbus.py", "plant_pymodbustcp.py"] {
        let config = support::temp_dir();
        let folder = config.path().display().to_string();
        let mut plant = support::PythonServer::start(script, &["--devices", "3", "--config", &folder]);
        let port = plant.ports()[2];
        for n in 1..=3 {
            let values = read_all(port).expect("it replies");
            let expected: Vec<u16> = (0..100).map(|register| value(2, register, n)).collect();
            assert_eq!(values, expected, "{script}, read {n}");
        }
        let stats = plant.ask("stats");
        assert_eq!(stats["devices"]["plc-02"]["requests"], 3, "{script}: {stats}");
        assert_eq!(stats["registers"], 300, "{script}: {stats}");
        assert_eq!(plant.ask("kill 2")["ok"], true, "{script}");
        assert_eq!(read_all(port), None, "{script}: a killed device replied");
        assert_eq!(plant.ask("revive 2")["ok"], true, "{script}");
        assert_eq!(read_all(port).expect("it is back")[0], value(2, 0, 4), "{script}");
        let toml = std::fs::read_to_string(config.path().join("devices/plc-02.toml")).expect("written");
        assert!(toml.contains(&format!("127.0.0.1:{port}")), "{script}: {toml}");
    }
}

#[test]
fn the_recorder_finds_what_is_missing_twice_and_late() {
    let broker = Mosquitto::start();
    let port = broker.port().to_string();
    let mut recorder = support::PythonServer::start("record.py", &["--counting", "--port", &port]);
    for (n, historical) in [(1, false), (2, false), (5, false), (5, false), (6, false), (3, true)] {
        let body = serde_json::json!({
            "device": "plc-01",
            "time": "2026-06-15T06:00:00Z",
            "historical": historical,
            "seq": n.to_string(),
            "points": [{"name": "r007", "value": value(1, 7, n), "quality": "GOOD"},
                {"name": "r008", "quality": "BAD", "reason": "timeout"}],
        });
        publish(broker.port(), "fieldgate/v1/test/devices/plc-01/telemetry", &body.to_string(), &[])
            .expect("published");
    }
    publish(broker.port(), "fieldgate/v1/test/devices/plc-01/telemetry", "no json", &[]).expect("published");
    eventually("all messages", SOON, || (recorder.ask("count")["messages"] == 6).then_some(()));
    eventually("the broken one", SOON, || (recorder.ask("report")["broken"] == 1).then_some(()));
    let report = recorder.ask("report");
    let judged = &report["judged"];
    assert_eq!(judged["missing"], 1, "{report}"); // 4
    assert_eq!(judged["duplicate"], 1, "{report}");
    assert_eq!(judged["out_of_order"], 1, "{report}");
    assert_eq!(judged["out_of_order_live"], 0, "{report}");
    assert_eq!(report["repeated_seq"], 1, "{report}");
    assert_eq!(report["quality"]["BAD"], 6, "{report}");
    assert_eq!(report["historical"], 2, "{report}");
}
