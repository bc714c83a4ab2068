//! The Margo client against the simulated fleet manager: whole ways through TLS, HTTP and the reconciler.
#![cfg(feature = "margo")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod wfm_support;

use std::time::Duration;

use fieldgate::margo::capabilities::is_label;
use fieldgate::margo::plant::Refusal;
use fieldgate_simulators::margo::wfm::Generation as Interface;
use fieldgate_simulators::margo::{Deployment, Fault, Flaw, Op, Rule};
use serde_json::json;
use wfm_support::{Bench, PATIENCE, pump};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_reaches_a_device_is_updated_and_removed() {
    let mut bench = Bench::new(&["a", "b"], |_| {}).await;
    bench.start();
    bench.wfm.wait("children", PATIENCE, |seen| seen.devices.contains_key("gw/b").then_some(())).await.unwrap();
    let labels = bench.wfm.with(|seen| seen.devices["gw/a"].capabilities["labels"].clone());
    assert!(labels.as_object().unwrap().values().all(is_label));
    let id = bench.deploy(pump("gw/a", "1.0").parameter("speed", 45, "/values/speed", "recipe")).await;
    bench.reaches(&id, Some("gw/a"), "installed").await;
    assert_eq!(bench.site.point("a", "speed"), Some(json!(45)));
    let before = bench.wfm.with(|seen| seen.manifests.back().unwrap().version);
    let update = Deployment { id: id.clone(), ..pump("gw/a", "2.0") };
    bench.deploy(update).await;
    let updated = |seen: &fieldgate_simulators::margo::Records| {
        let status = seen.status(&id, Some("gw/a"))?;
        (status.state == "installed" && status.adopted? > before).then_some(())
    };
    bench.wfm.wait("the update", PATIENCE, updated).await.unwrap();
    assert_eq!(bench.site.point("a", "mode"), Some(json!("auto")));
    let unknown = bench.deploy(pump("gw/nobody", "1.0")).await;
    bench.reaches(&unknown, Some("gw/nobody"), "failed").await;
    assert!(bench.wfm.remove(&id) && bench.wfm.remove(&unknown));
    bench.reaches(&id, Some("gw/a"), "removed").await;
    assert_eq!((bench.site.point("a", "speed"), bench.site.point("b", "speed")), (Some(json!(0)), None));
    bench.site.change(|children| drop(children.pop()));
    bench
        .wfm
        .wait("a child that left", PATIENCE, |seen| (!seen.devices.contains_key("gw/b")).then_some(()))
        .await
        .unwrap();
    assert_eq!(bench.wfm.records().notes(), Vec::<String>::new(), "nothing that we sent contradicts the reference");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_steady_poll_costs_one_conditional_request_and_a_restart_sends_nothing_again() {
    let mut bench = Bench::new(&["a"], |_| {}).await;
    bench.start();
    let id = bench.deploy(pump("gw/a", "1.0")).await;
    bench.reaches(&id, Some("gw/a"), "installed").await;
    bench.polls(3).await;
    bench.stop().await;
    let (reports, statuses, answers) = bench.wfm.with(|seen| {
        (
            seen.requests_of(Op::Capabilities).count(),
            seen.requests_of(Op::Status).count(),
            seen.count(Op::Manifest, 304),
        )
    });
    assert!(answers >= 2, "polls are conditional");
    bench.start();
    bench.polls(3).await;
    bench.stop().await;
    bench.wfm.with(|seen| {
        assert_eq!(seen.requests_of(Op::Capabilities).count(), reports);
        assert_eq!(seen.requests_of(Op::Status).count(), statuses);
        let last = seen.requests_of(Op::Manifest).last().unwrap();
        assert!(last.if_none_match.is_some());
    });
    assert_eq!(bench.site.answers.lock().unwrap().len(), 1, "nothing is applied again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_only_odd_is_accepted() {
    let faults = [
        Fault::SizesLie { by: -7 },
        Fault::SizesMissing,
        Fault::UnknownFields,
        Fault::BundleNull,
        Fault::EtagIgnored,
        Fault::EtagMissing,
    ];
    let mut bench = Bench::new(&["a"], |_| {}).await;
    faults.into_iter().for_each(|fault| bench.wfm.inject(fault));
    bench.start();
    let id = bench.deploy(pump("gw/a", "1.0")).await;
    bench.reaches(&id, Some("gw/a"), "installed").await;
    bench.polls(3).await;
    assert!(bench.site.alerts.lock().unwrap().is_empty(), "an identical re-delivery is no rollback");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_manager_with_a_flawed_svid_is_not_spoken_to() {
    let mut bench = Bench::new(&["a"], |_| {}).await;
    for flaw in Flaw::ALL {
        bench.wfm.serve(flaw).unwrap();
        bench.wfm.disconnect().await.unwrap();
        let requests = bench.wfm.with(|seen| seen.clients.values().map(|client| client.requests).sum::<u64>());
        bench.start();
        bench.problem("no connection that both sides believe").await;
        let after = bench.wfm.with(|seen| seen.clients.values().map(|client| client.requests).sum::<u64>());
        assert_eq!(after, requests, "{flaw:?}");
        bench.stop().await;
    }
    bench.wfm.serve(Flaw::None).unwrap();
    bench.start();
    bench.connected().await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_anchors_are_exchanged_while_running() {
    let mut bench = Bench::new(&["a"], |_| {}).await;
    bench.start();
    bench.connected().await;
    let before = bench.wfm.with(|seen| seen.clients.values().next().unwrap().certificate.clone());
    bench.authority.add_root().unwrap();
    bench.renew(Duration::from_secs(86_400));
    let changed = |seen: &fieldgate_simulators::margo::Records| {
        seen.clients.values().any(|client| client.certificate != before).then_some(())
    };
    bench.wfm.wait("the new certificate", PATIENCE, changed).await.unwrap();
    bench.authority.retire_old_roots();
    bench.renew(Duration::from_secs(86_400));
    bench.wfm.serve(Flaw::None).unwrap();
    bench.wfm.disconnect().await.unwrap();
    let id = bench.deploy(pump("gw/a", "1.0")).await;
    bench.reaches(&id, Some("gw/a"), "installed").await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statuses_wait_while_the_fleet_manager_refuses_them_and_arrive_in_order() {
    let mut bench = Bench::new(&["a"], |_| {}).await;
    bench.start();
    bench.connected().await;
    let busy = Fault::Problem {
        name: "server-cannot-generate-response".to_owned(),
        status: 503,
        root: Default::default(),
        retry_after: Some(1),
        retryable: Some(true),
        retry_after_seconds: None,
        backoff: Some("fixed".to_owned()),
    };
    bench.wfm.inject(Rule::from(busy).on(Op::Status).times(3));
    bench.wfm.inject(Rule::from(Fault::LoseAnswer).on(Op::Status).times(1));
    let id = bench.deploy(pump("gw/a", "1.0")).await;
    bench.reaches(&id, Some("gw/a"), "installed").await;
    let mut states: Vec<String> =
        bench.wfm.with(|seen| seen.statuses.iter().filter(|s| s.deployment == id).map(|s| s.state.clone()).collect());
    states.dedup();
    assert_eq!(states, ["pending", "installing", "installed"]);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retired_relationship_stops_all_requests_and_raises_an_alarm() {
    let mut bench = Bench::new(&["a"], |_| {}).await;
    bench.start();
    bench.connected().await;
    bench.wfm.inject(Fault::Retired);
    let retired = bench.status.wait_for(|status| status.retired);
    tokio::time::timeout(PATIENCE, retired).await.unwrap().unwrap();
    let requests = bench.wfm.with(|seen| seen.requests.len());
    bench.wfm.clear_faults();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(bench.wfm.with(|seen| seen.requests.len()), requests, "nothing is sent any more");
    assert!(bench.site.alerts.lock().unwrap().iter().any(|alert| alert.code == "margo-retired"));
    // A new identity begins anew.
    bench.renew(Duration::from_secs(86_400));
    bench.polls(1).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_older_interface_is_onboarded_signed_and_deployed_to() {
    let mut bench = Bench::new(&["a"], |options| options.generation = Interface::Older).await;
    bench.start();
    let id = bench.deploy(pump("gw/a", "1.0")).await;
    bench.reaches(&id, Some("gw/a"), "installed").await;
    bench.stop().await;
    bench.start();
    bench.polls(2).await;
    assert_eq!(bench.wfm.with(|seen| seen.requests_of(Op::Onboarding).count()), 1, "the client id is kept");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_health_gate_is_reported_and_the_old_revision_stays() {
    let mut bench = Bench::new(&["a"], |_| {}).await;
    bench.start();
    let id = bench.deploy(pump("gw/a", "1.0")).await;
    bench.reaches(&id, Some("gw/a"), "installed").await;
    *bench.site.refuse.lock().unwrap() = Some(Refusal::new("health-gate", "values went bad; set back"));
    bench.deploy(Deployment { id: id.clone(), ..pump("gw/a", "2.0") }).await;
    bench.reaches(&id, Some("gw/a"), "failed").await;
    let error = bench.wfm.with(|seen| seen.status(&id, Some("gw/a")).unwrap().body["status"]["error"].clone());
    assert_eq!((&error["code"], &error["source"]), (&json!("health-gate"), &json!("gw/a")));
    assert_eq!(bench.site.point("a", "speed"), Some(json!(40)));
    bench.stop().await;
}
