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
