//! The reconciler against a plant that remembers what it was told, killed between any two steps.

mod bench;
mod choice;
mod engine;
mod hardware;
mod random;
mod status;

use std::collections::{BTreeMap, BTreeSet};

use bench::{Bench, manifest, path, view};
use bytes::Bytes;
use serde_json::{Value, json};

use super::*;
use crate::margo::api::{DeploymentStatus, State};
use crate::margo::component::{Fetched, Fits, PointValue, Work};
use crate::margo::deployment::tests::example;
use crate::margo::desired::Manifest;
use crate::margo::plant::{Act, Before, Functions, Identity, Order, Refusal};
use crate::margo::storage::{MemoryStorage, StorageError, commit_in_order};
use crate::margo::words::{DeploymentId, DevicePath, Digest};
use crate::model::DeviceId;

pub(crate) fn id(n: usize) -> String {
    format!("00000000-0000-4000-8000-{n:012}")
}

fn recipe(values: &[(&str, i64)]) -> Work {
    let value = |(point, value): &(&str, i64)| PointValue { point: (*point).to_owned(), value: json!(value) };
    Work::Recipe { values: values.iter().map(value).collect() }
}

#[tokio::test]
async fn a_deployment_is_installed_step_by_step_updated_and_undone() {
    let mut bench = Bench::new().await;
    bench.look().await;
    bench.want(&[(1, "gw/a", &["r1"])]).await;
    assert_eq!(bench.states(1, Some("gw/a")), ["pending", "installing", "installed"]);
    assert_eq!(bench.plant.point("a", "speed"), Some(10));
    assert_eq!(bench.last(1, Some("gw/a")).adopted_manifest_version, 2);
    bench.want(&[(1, "gw/a", &["r1@2"])]).await;
    assert_eq!(bench.code(1, Some("gw/a")), "artifact-unavailable", "what is not there changes nothing");
    assert_eq!(bench.plant.point("a", "speed"), Some(10));
    bench.works.insert("r1@2".to_owned(), recipe(&[("speed", 20), ("mode", 2)]));
    bench.pass(600).await;
    assert_eq!((bench.plant.point("a", "speed"), bench.plant.point("a", "mode")), (Some(20), Some(2)));
    bench.want(&[]).await;
    assert_eq!(bench.states(1, Some("gw/a")).last(), Some(&"removed"));
    assert!(bench.states(1, Some("gw/a")).contains(&"removing"));
    assert_eq!(
        (bench.plant.point("a", "speed"), bench.plant.point("a", "mode")),
        (Some(0), Some(0)),
        "back to the beginning"
    );
    assert!(bench.reconciler.view().next().is_none(), "nothing is left");
}

#[tokio::test]
async fn an_unchanged_component_is_not_applied_again() {
    let mut bench = Bench::new().await;
    bench.look().await;
    bench.want(&[(1, "gw/a", &["r1", "mode"])]).await;
    assert_eq!(bench.plant.done.len(), 2);
    bench.works.insert("r1@2".to_owned(), recipe(&[("speed", 10)]));
    bench.want(&[(1, "gw/a", &["r1@2", "mode"])]).await;
    assert_eq!(bench.plant.done.len(), 2, "another revision with the same effect");
    assert_eq!(bench.last(1, Some("gw/a")).adopted_manifest_version, 3);
    assert_eq!(bench.last(1, Some("gw/a")).state, State::Installed);
}

#[tokio::test]
async fn a_component_that_an_update_leaves_out_is_undone() {
    let mut bench = Bench::new().await;
    bench.look().await;
    bench.want(&[(1, "gw/a", &["r1", "mode"])]).await;
    bench.want(&[(1, "gw/a", &["r1"])]).await;
    assert_eq!((bench.plant.point("a", "speed"), bench.plant.point("a", "mode")), (Some(10), Some(0)));
    assert_eq!(bench.last(1, Some("gw/a")).components.len(), 1);
    // A recipe that writes less puts the rest back.
    let mut bench = Bench::new().await;
    bench.look().await;
    bench.works.insert("x".to_owned(), recipe(&[("speed", 20), ("mode", 2)]));
    bench.works.insert("x@2".to_owned(), recipe(&[("speed", 30)]));
    bench.want(&[(1, "gw/a", &["x"])]).await;
    bench.want(&[(1, "gw/a", &["x@2"])]).await;
    assert_eq!((bench.plant.point("a", "speed"), bench.plant.point("a", "mode")), (Some(30), Some(0)));
}

#[tokio::test]
async fn an_unknown_child_is_101_an_unreachable_one_102_and_a_refused_choice_103() {
    let mut bench = Bench::new().await;
    bench.scope.wildcard = Wildcard::Refused;
    bench.reconciler = Reconciler::load(bench.scope.clone(), &bench.storage).await.unwrap();
    bench.devices.get_mut(&path("gw/b")).unwrap().reachable = false;
    bench.look().await;
    bench.want(&[(1, "gw/x", &["r1"]), (2, "gw/b", &["r1"]), (3, "gw/*", &["r1"])]).await;
    for (n, device, code, message) in [
        (1, Some("gw/x"), "101", "Unknown child device ID"),
        (2, Some("gw/b"), "102", "Child device unreachable"),
        (3, None, "103", "Autonomous placement not supported"),
    ] {
        let status = bench.last(n, device);
        let error = status.error.as_ref().unwrap();
        assert_eq!((error.code.as_str(), error.source.as_str(), error.message.as_str()), (code, "gw", message));
        assert_eq!((status.state, status.components[0].state), (State::Failed, State::Failed));
    }
    bench.set("gw/b", |view| view.reachable = true).await;
    assert_eq!(bench.states(2, Some("gw/b")).last(), Some(&"installed"), "it answers again");
    bench.devices.insert(path("gw/x"), view(Some("x")));
    bench.look().await;
    assert_eq!(bench.states(1, Some("gw/x")).last(), Some(&"installed"), "it was approved");
}

#[tokio::test]
async fn an_unreachable_child_keeps_its_adopted_version_while_siblings_move_on() {
    let mut bench = Bench::new().await;
    bench.scope.wildcard = Wildcard::Every;
    bench.devices.remove(&path("gw/c"));
    bench.reconciler = Reconciler::load(bench.scope.clone(), &bench.storage).await.unwrap();
    bench.look().await;
    bench.want(&[(1, "gw/*", &["r1"])]).await;
    assert_eq!(bench.last(1, Some("gw/b")).adopted_manifest_version, 2);
    bench.want(&[(1, "gw/*", &["r1"]), (2, "gw/a", &["mode"])]).await;
    assert_eq!(bench.last(1, Some("gw/b")).adopted_manifest_version, 3, "the newest that carries its revision");
    bench.set("gw/b", |view| view.reachable = false).await;
    bench.works.insert("r1@2".to_owned(), recipe(&[("speed", 20)]));
    bench.want(&[(1, "gw/*", &["r1@2"]), (2, "gw/a", &["mode"])]).await;
    assert_eq!(
        (bench.last(1, Some("gw/a")).adopted_manifest_version, bench.last(1, Some("gw/a")).state),
        (4, State::Installed)
    );
    assert_eq!(
        (bench.last(1, Some("gw/b")).adopted_manifest_version, bench.code(1, Some("gw/b"))),
        (3, "102".to_owned())
    );
    assert_eq!((bench.plant.point("a", "speed"), bench.plant.point("b", "speed")), (Some(20), Some(10)));
    bench.set("gw/b", |view| view.reachable = true).await;
    assert_eq!((bench.last(1, Some("gw/b")).adopted_manifest_version, bench.plant.point("b", "speed")), (4, Some(20)));
}

#[tokio::test]
async fn a_failed_health_gate_is_reported_failed_and_not_tried_again() {
    let mut bench = Bench::new().await;
    bench.look().await;
    bench.want(&[(1, "gw/a", &["r1"])]).await;
    let gate = Refusal::new("health-gate", "values went bad; the device was set back");
    bench.plant.refuse.insert("a".to_owned(), gate);
    bench.works.insert("r1@2".to_owned(), recipe(&[("speed", 20)]));
    bench.want(&[(1, "gw/a", &["r1@2", "mode"])]).await;
    let last = bench.last(1, Some("gw/a"));
    assert_eq!((last.state, bench.code(1, Some("gw/a")).as_str()), (State::Failed, "health-gate"));
    assert_eq!(last.components[1].state, State::Pending, "what follows is not begun");
    let orders = bench.plant.answers.len();
    bench.pass(3_600).await;
    bench.look().await;
    assert_eq!(bench.plant.answers.len(), orders, "the fleet manager decides");
    bench.plant.refuse.clear();
    bench.want(&[(1, "gw/a", &["r1", "mode"])]).await;
    assert_eq!(bench.last(1, Some("gw/a")).state, State::Installed);
    bench.want(&[]).await;
    assert_eq!((bench.plant.point("a", "speed"), bench.plant.point("a", "mode")), (Some(0), Some(0)));
}

/// Device management may know better than our own rules: it is asked once, not again and again.
#[tokio::test]
async fn a_refusal_of_the_plant_in_our_own_words_is_final_too() {
    let mut bench = Bench::new().await;
    bench.look().await;
    let refusal = Refusal::new("not-delegated", "a tier 1 device that keeps this for itself");
    bench.plant.refuse.insert("a".to_owned(), refusal);
    bench.want(&[(1, "gw/a", &["r1"])]).await;
    assert_eq!(
        (bench.last(1, Some("gw/a")).state, bench.code(1, Some("gw/a")).as_str()),
        (State::Failed, "not-delegated")
    );
    let orders = bench.plant.answers.len();
    bench.pass(3_600).await;
    bench.look().await;
    assert_eq!(bench.plant.answers.len(), orders);
}

#[tokio::test]
async fn two_deployments_cannot_hold_the_same_point() {
    let mut bench = Bench::new().await;
    bench.look().await;
    bench.want(&[(1, "gw/a", &["r1"])]).await;
    bench.want(&[(1, "gw/a", &["r1"]), (2, "gw/a", &["r2"])]).await;
    assert_eq!(bench.code(2, Some("gw/a")), "conflict");
    assert!(bench.last(2, Some("gw/a")).error.as_ref().unwrap().message.contains(&id(1)));
    assert_eq!(bench.plant.point("a", "speed"), Some(10));
    bench.want(&[(2, "gw/a", &["r2"])]).await;
    bench.pass(1).await;
    assert_eq!((bench.last(2, Some("gw/a")).state, bench.plant.point("a", "speed")), (State::Installed, Some(20)));
}

#[tokio::test]
async fn what_is_not_delegated_or_does_not_fit_is_refused_in_words() {
    let mut bench = Bench::new().await;
    bench.devices.get_mut(&path("gw/a")).unwrap().functions = Functions::default();
    bench.devices.get_mut(&path("gw/b")).unwrap().able = Functions::default();
    bench.fits = Fits { vendor: Some("Acme".to_owned()), ..Fits::default() };
    bench.devices.get_mut(&path("gw/c")).unwrap().identity = Identity::default();
    bench.look().await;
    bench.want(&[(1, "gw/a", &["r1"]), (2, "gw/b", &["r1"]), (3, "gw/c", &["r1"])]).await;
    let codes = [(1, "gw/a"), (2, "gw/b"), (3, "gw/c")].map(|(n, device)| bench.code(n, Some(device)));
    assert_eq!(codes, ["not-delegated", "not-supported", "does-not-fit"]);
    assert!(bench.plant.done.is_empty());
    bench.set("gw/a", |view| view.functions = view.able).await;
    assert_eq!(bench.states(1, Some("gw/a")).last(), Some(&"installed"), "the configuration was changed");
}

#[tokio::test]
async fn the_gateways_choice_stays_and_moves_only_when_the_device_is_gone() {
    let mut bench = Bench::new().await;
    bench.devices.get_mut(&path("gw")).unwrap().functions = Functions::default();
    bench.look().await;
    bench.want(&[(1, "gw/*", &["r1"])]).await;
    assert_eq!(bench.states(1, Some("gw/a")).last(), Some(&"installed"));
    bench.want(&[(1, "gw/*", &["r1"]), (2, "gw/*", &["mode"])]).await;
    assert_eq!(bench.states(2, Some("gw/b")).last(), Some(&"installed"), "the idler one");
    bench.set("gw/a", |view| view.reachable = false).await;
    assert_eq!(bench.states(1, Some("gw/a")).last(), Some(&"installed"), "a device that is away for a moment keeps it");
    bench.devices.remove(&path("gw/a"));
    bench.look().await;
    assert_eq!(bench.states(1, Some("gw/a")).last(), Some(&"removed"));
    assert_eq!(bench.states(1, Some("gw/c")).last(), Some(&"installed"));
}

#[tokio::test]
async fn an_opaque_gateway_chooses_and_speaks_for_itself() {
    let mut bench = Bench::new().await;
    bench.scope.opaque = true;
    bench.devices.get_mut(&path("gw")).unwrap().functions = Functions::default();
    bench.reconciler = Reconciler::load(bench.scope.clone(), &bench.storage).await.unwrap();
    bench.look().await;
    bench.want(&[(1, "gw", &["r1"]), (2, "gw/a", &["r1"])]).await;
    assert_eq!(bench.states(1, None), ["pending", "installing", "installed"]);
    assert_eq!(bench.code(2, None), "101", "it shows no children");
    bench.want(&[]).await;
    assert_eq!(bench.states(1, None).last(), Some(&"removed"));
}

#[tokio::test]
async fn other_kinds_of_deployments_and_broken_ones_fail_in_words() {
    let mut bench = Bench::new().await;
    bench.look().await;
    let compose = example(&id(1), "gw", &[("a", "1")], " {}").replace("type: custom", "type: compose");
    bench.yamls = [(DeploymentId::new(&id(1)).unwrap(), compose.into())].into();
    bench.manifest = manifest(2, &bench.yamls);
    let step = bench.reconciler.accept(&bench.manifest.clone(), 1, &bench.yamls.clone(), 0);
    bench.take(step).await;
    bench.settle().await;
    assert_eq!(bench.code(1, None), "unsupported-profile");
}

#[tokio::test]
async fn a_device_that_is_unreachable_during_removal_is_undone_when_it_answers() {
    let mut bench = Bench::new().await;
    bench.look().await;
    bench.want(&[(1, "gw/a", &["r1"])]).await;
    bench.set("gw/a", |view| view.reachable = false).await;
    bench.want(&[]).await;
    assert_eq!((bench.last(1, Some("gw/a")).state, bench.code(1, Some("gw/a"))), (State::Removing, "102".to_owned()));
    bench.set("gw/a", |view| view.reachable = true).await;
    assert_eq!((bench.last(1, Some("gw/a")).state, bench.plant.point("a", "speed")), (State::Removed, Some(0)));
}

#[tokio::test]
async fn what_was_removed_and_comes_back_is_done_again() {
    let mut bench = Bench::new().await;
    bench.look().await;
    for _ in 0..3 {
        bench.want(&[(1, "gw/a", &["r1"])]).await;
        assert_eq!((bench.last(1, Some("gw/a")).state, bench.plant.point("a", "speed")), (State::Installed, Some(10)));
        bench.want(&[]).await;
        assert_eq!((bench.last(1, Some("gw/a")).state, bench.plant.point("a", "speed")), (State::Removed, Some(0)));
        bench.rise().await;
    }
    assert_eq!(bench.plant.done.len(), 6, "each order has a key of its own: {:?}", bench.plant.done);
}

/// Install, update, a component less, a second deployment, removal, the removed one again: with a death after every number
/// of commits.
async fn life(die_after: Option<usize>) -> Bench {
    let mut bench = Bench::new().await;
    bench.works.insert("r1@2".to_owned(), recipe(&[("speed", 20)]));
    bench.storage.die_after(die_after);
    bench.look().await;
    bench.want(&[(1, "gw/a", &["r1", "mode"]), (2, "gw/b", &["r1"])]).await;
    bench.want(&[(1, "gw/a", &["r1@2"]), (2, "gw/b", &["r1"])]).await;
    bench.want(&[(2, "gw/b", &["r1"])]).await;
    bench.want(&[(1, "gw/a", &["mode"]), (2, "gw/b", &["r1"])]).await;
    bench
}

#[tokio::test]
async fn killed_between_any_two_steps_nothing_is_applied_twice_and_nothing_is_lost() {
    let whole = life(None).await;
    let sorted = |bench: &Bench| {
        let mut done = bench.plant.done.clone();
        done.sort();
        done
    };
    assert_eq!(
        whole.plant.done.len(),
        7,
        "two installs on a, one on b, an update, two undone, and one install again: {:?}",
        whole.plant.done
    );
    for commits in 0.. {
        let bench = life(Some(commits)).await;
        assert_eq!(sorted(&bench), sorted(&whole), "died after {commits} commits");
        assert_eq!(bench.plant.points, whole.plant.points, "died after {commits} commits");
        for (n, device) in [(1, "gw/a"), (2, "gw/b")] {
            let (last, wanted) = (bench.last(n, Some(device)), whole.last(n, Some(device)));
            assert_eq!(
                (last.state, &last.components),
                (wanted.state, &wanted.components),
                "died after {commits} commits"
            );
            let mut states = bench.states(n, Some(device));
            let wanted = whole.states(n, Some(device));
            // A report may come twice, never less than once.
            let mut rest = states.drain(..);
            assert!(
                wanted.iter().all(|state| rest.any(|told| told == *state)),
                "died after {commits}: {:?}",
                bench.states(n, Some(device))
            );
        }
        if bench.deaths == 0 {
            assert!(commits > 20, "{commits}");
            return;
        }
    }
}

#[tokio::test]
async fn a_thousand_children_are_configured_by_one_deployment() {
    let mut bench = Bench::new().await;
    bench.scope.wildcard = Wildcard::Every;
    bench.reconciler = Reconciler::load(bench.scope.clone(), &bench.storage).await.unwrap();
    bench.devices = (0..1_000).map(|i| (path(&format!("gw/d{i}")), view(Some(&format!("d{i}"))))).collect();
    let top = DeviceView { functions: Functions::default(), ..view(None) };
    bench.devices.insert(path("gw"), top);
    bench.look().await;
    bench.want(&[(1, "gw/*", &["r1"])]).await;
    let installed: BTreeSet<_> = bench
        .told
        .iter()
        .filter(|status| status.state == State::Installed)
        .filter_map(|status| status.device.clone())
        .collect();
    assert_eq!((installed.len(), bench.plant.done.len()), (1_000, 1_000));
}
