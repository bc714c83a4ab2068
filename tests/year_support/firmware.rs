//! Updates of the device's firmware: images that are signed, offered, approved and followed to their end.

use serde_json::{Value, json};

use super::front::FIRMWARE;
use crate::whole_support::{Gate, Site, errors, said};

/// Name of the profile, and so of the kind of device that images are signed for.
pub const KIND: &str = "pump-p7";
/// Octets of an image: with `rate` it travels for about a second, long enough for kills to fall into it.
const SIZE: usize = 40_000;

/// The profile of a device that takes firmware. The device reports a failure by itself, so that the time for the proof is
/// only a bound for a machine under load.
fn profile() -> String {
    let register = |offset: u16| FIRMWARE + offset;
    format!(
        "[firmware]\nmethod = \"modbus-files\"\nstatus = {}\ncommand = {}\nsize = {}\nreceived = {}\ndigest = {}\nversion = {}\n\
         prove_within = \"60 s\"\nrate = \"48 KiB\"\n",
        register(0),
        register(1),
        register(2),
        register(4),
        register(8),
        register(32)
    )
}

fn done(site: &Site, arguments: &[&str]) {
    let output = site.run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", errors(&output));
}

fn path(site: &Site, name: &str) -> String {
    site.path().join(name).display().to_string()
}

/// The plant's key, the profile and what belongs into `fieldgate.toml` of both gateways.
pub fn prepare(signer: &Gate, other: &Gate) -> &'static str {
    done(signer.site(), &["firmware", "keygen", &path(signer.site(), "plant")]);
    std::fs::copy(path(signer.site(), "plant.pub"), path(other.site(), "plant.pub")).expect("writable");
    for gate in [signer, other] {
        gate.site().write(&format!("profiles/{KIND}.toml"), &profile());
    }
    "[firmware]\nkeys = [\"plant.pub\"]\n"
}

/// Builds, signs, offers and approves an image, and says how the job ended. Returns the image too.
pub fn update(gate: &Gate, id: &str, version: &str) -> (Vec<u8>, Value) {
    let (site, image) = (gate.site(), path(gate.site(), &format!("image-{version}")));
    let mut bytes = format!("#!/bin/sh\necho {version}\n").into_bytes();
    bytes.resize(SIZE, b'#');
    std::fs::write(&image, &bytes).expect("writable");
    done(site, &["firmware", "sign", &image, "--key", &path(site, "plant"), "--target", KIND, "--release", version]);
    let manifest = std::fs::read_to_string(format!("{image}.manifest")).expect("signed");
    let offer = json!({"correlationId": id, "manifest": manifest, "url": format!("file://{image}")});
    gate.done("devices/pump/firmware/desired", &offer);
    let approve = json!({"correlationId": format!("{id}-approve"), "action": "approve", "job": id});
    gate.done("devices/pump/firmware/request", &approve);
    let is_over = |job: &Value| ["done", "rolled-back", "failed", "refused"].contains(&said(job, "stage"));
    let jobs = gate.until("the end of the update", &["firmware", "status", "pump", "--json"], |jobs| {
        said(&jobs[0], "id") == id && is_over(&jobs[0])
    });
    (bytes, jobs[0].clone())
}
