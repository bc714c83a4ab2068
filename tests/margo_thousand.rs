//! **Figures of a large plant at a fleet manager**, with the real program: time to report, requests, memory, and what a steady
//! poll costs. Run with `FIELDGATE_FULL=1 … -- --nocapture` for 1,000 children; without it there are 60, and what is asserted
//! are the numbers of requests.
#![cfg(feature = "margo")]
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod margo_support;
mod support;
mod whole_support;

use std::time::{Duration, Instant};

use fieldgate_simulators::margo::Op;
use margo_support::{Manager, POINT, recipe};
use serde_json::json;
use whole_support::{FakeDevice, Mode, Site, sized, stop};

/// Devices that share one link.
const PER_LINK: usize = 100;

#[test]
fn a_thousand_children_are_reported_and_configured_once_and_a_steady_poll_is_one_conditional_request() {
    let count: usize = sized(60, 1_000);
    let manager = Manager::start(|_| {});
    let site = Site::new(&manager.settings(&["recipe"], "wildcard = \"every\""));
    let links: Vec<FakeDevice> = (0..count.div_ceil(PER_LINK)).map(|_| FakeDevice::start(Mode::Well)).collect();
    for n in 0..count {
        let link = format!(
            "link = \"tcp://127.0.0.1:{}\"\nunit = {}\nidentify = false\n[modbus.write]\nverify = false\n",
            links[n / PER_LINK].port(),
            n % PER_LINK + 1
        );
        let head = "delegated = [\"command\"]\nrate = \"30 s\"\n[modbus]\n";
        site.write(&format!("devices/d{n:04}.toml"), &format!("{head}{link}\n{POINT}"));
    }
    manager.join(&site);
    recipe(&site, "pump", &json!([{ "point": "setpoint", "value": 42 }]));

    let began = Instant::now();
    let gateway = site.start();
    let started = began.elapsed();
    let all = |what: &str, look: &dyn Fn(&fieldgate_simulators::margo::Records) -> usize| {
        let limit = margo_support::PATIENCE * sized(1, 5);
        let waited = manager.wfm.wait(what, limit, |seen| (look(seen) == count).then_some(()));
        manager.runtime.block_on(waited).unwrap_or_else(|error| panic!("{error}"));
    };
    all("every child", &|seen| seen.devices.keys().filter(|id| id.contains('/')).count());
    let reported = began.elapsed();
    let reports = manager.wfm.with(|seen| seen.requests_of(Op::Capabilities).count());
    println!(
        "{count} children: started after {started:?}, reported after {reported:?} by {reports} requests, {} MiB",
        gateway.resident_bytes() >> 20
    );
    assert_eq!(reports, count + 1, "each device once");

    let before = gateway.cpu_time();
    let began = Instant::now();
    let id = manager.deploy("plant/*", "pump");
    all("everywhere installed", &|seen| seen.latest(&id).iter().filter(|status| status.state == "installed").count());
    let statuses = manager.wfm.with(|seen| seen.requests_of(Op::Status).count());
    println!(
        "one deployment to all of them: installed and told after {:?} by {statuses} statuses, {:?} of processor time, {} MiB",
        began.elapsed(),
        gateway.cpu_time() - before,
        gateway.resident_bytes() >> 20
    );
    assert_eq!(links.iter().map(|link| link.writes().len()).sum::<usize>(), count, "each device once");

    manager.asked(2);
    let requests = || manager.wfm.with(|seen| (seen.requests.len(), seen.count(Op::Manifest, 304)));
    let (before, cpu) = (requests(), gateway.cpu_time());
    let span = sized(Duration::from_secs(5), Duration::from_secs(60));
    // Nothing can be awaited here: it is the time that is measured.
    std::thread::sleep(span);
    let (after, used) = (requests(), gateway.cpu_time() - cpu);
    println!(
        "steady, a poll per second: {} requests in {span:?}, {:.2} % of a core",
        after.0 - before.0,
        100.0 * used.as_secs_f64() / span.as_secs_f64()
    );
    assert_eq!((after.0 - before.0) as u64, after.1 - before.1, "every request is a poll that is answered by 304");
    assert!(after.0 > before.0);
    manager.found_nothing_wrong();
    stop(gateway);
}
