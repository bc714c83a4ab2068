//! **Figures of a large plant**: many devices approved in one batch and configured, with the real program: time, memory,
//! messages on topics, and what the gateway costs when nothing happens. Run with `FIELDGATE_FULL=1 … -- --nocapture` for
//! 1,000 devices; without it there are 50, and what is asserted is only that all of it happens.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod whole_support;

use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Child, SOON, Subscriber, eventually};
use whole_support::{FakeDevice, Mode, Site, body, errors, sized, stop};

const POINTS: &str = "[[points]]\nid = \"level\"\ntable = \"holding\"\naddress = 10\n";
/// Devices that share one link.
const PER_LINK: usize = 100;

fn in_state(site: &Site, state: &str) -> Option<usize> {
    let all = site.json(&["devices", "--json"]);
    Some(all.as_array()?.iter().filter(|d| d["life"] == state).count())
}

fn mib(gateway: &Child) -> u64 {
    gateway.resident_bytes() >> 20
}

#[test]
fn approved_in_one_batch_and_configured() {
    let full = std::env::var("FIELDGATE_FULL").is_ok_and(|value| value == "1");
    let count: usize = if full { 1_000 } else { 50 };
    let limit = SOON * if full { 15 } else { 3 };
    let links: Vec<FakeDevice> = (0..count.div_ceil(PER_LINK)).map(|_| FakeDevice::start(Mode::Well)).collect();
    let roles =
        "[management]\napprove_declared = false\n[[management.role]]\nidentity = \"mqtt:*\"\nrole = \"engineer\"\n";
    let site = Site::new(roles);
    for n in 0..count {
        let link = format!(
            "link = \"tcp://127.0.0.1:{}\"\nunit = {}\nidentify = false\n",
            links[n / PER_LINK].port(),
            n % PER_LINK + 1
        );
        site.write(&format!("devices/d{n:04}.toml"), &format!("tier = 2\nrate = \"30 s\"\n[modbus]\n{link}\n{POINTS}"));
    }
    let gateway = site.start();
    eventually("all devices to wait", limit, || (in_state(&site, "pending")? == count).then_some(()));
    let waiting = mib(&gateway);
    let (shown, reported) = (site.subscribe("devices/+/onboarding"), site.subscribe("devices/+/config/reported"));
    let state_is = |subscriber: &Subscriber, fits: &dyn Fn(&Value) -> bool| {
        let messages = subscriber.messages();
        let last: std::collections::BTreeMap<_, _> = messages.iter().map(|m| (&m.topic, &m.payload)).collect();
        (last.values().filter(|payload| fits(&body(payload))).count(), messages.len())
    };
    eventually("what is retained", limit, || (state_is(&shown, &|_| true).0 == count).then_some(()));
    let before = state_is(&shown, &|_| true).1;

    let began = Instant::now();
    let approved = site.run(&["approve", "*"]);
    assert!(approved.status.success(), "{}", errors(&approved));
    let answered = began.elapsed();
    let messages = eventually("all devices to be active", limit, || {
        let (active, messages) = state_is(&shown, &|b| b["state"] == "active");
        (active == count).then_some(messages)
    });
    println!(
        "{count} devices approved: answered after {answered:?}, all active on their topics after {:?}, {} messages, {waiting} to {} MiB",
        began.elapsed(),
        messages - before,
        mib(&gateway)
    );

    site.write("wish.json", r#"{"heartbeat": "10 min"}"#);
    let wish = site.path().join("wish.json").display().to_string();
    let began = Instant::now();
    for n in 0..count {
        let set = site.run(&["config", "set", &format!("d{n:04}"), &wish, "--prove-within", "2 s"]);
        assert!(set.status.success(), "{}", errors(&set));
    }
    let asked = began.elapsed();
    let messages = eventually("all devices to be configured", limit, || {
        let (settled, messages) = state_is(&reported, &|b| b["state"] == "settled");
        (settled == count).then_some(messages)
    });
    println!(
        "{count} devices configured one by one: asked within {asked:?}, all settled after {:?}, {messages} messages, {} MiB",
        began.elapsed(),
        mib(&gateway)
    );

    let (span, before) = (sized(Duration::from_secs(3), Duration::from_secs(60)), gateway.cpu_time());
    // Nothing can be awaited here: it is the time that is measured.
    std::thread::sleep(span);
    let used = gateway.cpu_time() - before;
    println!("steady state: {:.2} % of a core over {span:?}", 100.0 * used.as_secs_f64() / span.as_secs_f64());
    stop(gateway);
}
