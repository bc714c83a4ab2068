//! The gateway's SVID from an enrolment server: granted to a new gateway, renewed while it runs, and kept over a kill.
#![cfg(all(feature = "margo", feature = "est"))]
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

mod support;
mod whole_support;

use std::sync::Arc;
use std::time::Duration;

use fieldgate_simulators::est::{EstServer, Fault, Options};
use fieldgate_simulators::margo::{Authority, Wfm, WfmOptions};
use support::eventually;
use whole_support::margo::{self, PATIENCE};
use whole_support::{Site, errors, stop, text};

const TOKEN: &str = "MARKED-SVID-TOKEN";
/// Short enough that a certificate is due for renewal within half a minute: it begins a minute before now.
const LIFE: Duration = Duration::from_secs(120);

#[test]
fn the_svid_is_enrolled_renewed_while_running_and_kept_over_a_kill() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let authority = Authority::new("plant.example").unwrap();
    let wfm = runtime.block_on(Wfm::start(WfmOptions::new(authority.clone()))).unwrap();
    let credentials = Some(("plant".to_owned(), TOKEN.to_owned()));
    let options = Options { listen: "127.0.0.1:0".parse().unwrap(), credentials, life: LIFE };
    let est = runtime.block_on(EstServer::start_for(options, Some(Arc::clone(&authority) as _))).unwrap();
    // The operator takes a moment to approve it.
    est.script([Fault::Slow(Duration::ZERO), Fault::Pending(1)]);
    let more = format!(
        "[margo.identity.est]\nurl = \"{}\"\nanchors = \"est-root.pem\"\nuser = \"plant\"\ntoken = {{ file = \"token\" }}\n\
         trust_domain = \"plant.example\"\nwfm = \"{}\"\n",
        est.url(),
        wfm.id()
    );
    let site = Site::new(&margo::settings(&wfm, &[], &more));
    site.write("est-root.pem", &est.root_pem());
    site.write("token", TOKEN);
    std::fs::set_permissions(site.path().join("token"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    margo::trust(&site, &authority);
    let told = site.done(&["margo", "join"]);
    assert!(told.contains(&authority.client_id(wfm.id(), "plant")) && told.contains(&est.url()), "{told}");

    let gateway = site.start();
    margo::wait(&runtime, &wfm, "the gateway", |seen| seen.devices.contains_key("plant").then_some(()));
    let shown = || wfm.with(|seen| seen.clients["plant"].certificate.clone());
    let first = shown();
    margo::wait(&runtime, &wfm, "its renewed SVID", |seen| (seen.clients["plant"].certificate != first).then_some(()));
    let asked: Vec<(String, bool, u16)> =
        est.log().into_iter().map(|asked| (asked.act, asked.mutual, asked.status)).collect();
    let act = |name: &str, mutual, status| (name.to_owned(), mutual, status);
    assert!(asked.contains(&act("simpleenroll", false, 202)) && asked.contains(&act("simpleenroll", false, 200)));
    assert!(asked.contains(&act("simplereenroll", true, 200)), "{asked:?}");

    gateway.kill();
    let enrolled = || est.log().iter().filter(|asked| asked.act == "simpleenroll" && asked.status == 200).count();
    let before = enrolled();
    let gateway = site.start();
    let requests = wfm.with(|seen| seen.clients["plant"].requests);
    margo::wait(&runtime, &wfm, "polls after the kill", |seen| {
        (seen.clients["plant"].requests > requests + 2).then_some(())
    });
    assert_eq!(enrolled(), before, "what was granted is kept");
    eventually("margo status to know it", PATIENCE, || {
        let status = site.run(&["margo", "status"]);
        let said = text(&status) + &errors(&status);
        (said.contains("the last request was answered") && said.contains("plant.example")).then_some(())
    });
    assert!(!gateway.lines().iter().any(|line| line.contains(TOKEN)), "the token is in the log");
    stop(gateway);
}
