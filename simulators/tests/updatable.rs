//! The device that takes firmware, as the program starts it.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use tokio_modbus::client::tcp;
use tokio_modbus::prelude::*;

#[tokio::test]
async fn the_program_starts_a_device_that_takes_firmware_and_says_where() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldgate-sim"));
    command.args(["--free-ports", "--firmware-device", "127.0.0.1:0", "--firmware-trouble", "does-not-start"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let lines: Vec<String> = lines.take_while(|line| line != "ready").collect();
    let place =
        lines.iter().find(|line| line.contains("updatable")).expect("it says where").rsplit(' ').next().unwrap();
    let mut device = tcp::connect(place.parse().unwrap()).await.unwrap();
    let version = device.read_holding_registers(32, 3).await.unwrap().unwrap();
    assert_eq!(version, [0x312e, 0x302e, 0x3000], "1.0.0 in ASCII");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn an_unknown_trouble_is_refused_with_the_known_ones() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldgate-sim"));
    let output = command.args(["--firmware-device", "127.0.0.1:0", "--firmware-trouble", "gremlins"]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("bad-memory"), "{told}");
}
