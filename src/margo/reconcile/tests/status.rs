//! What statuses say: whose, of which components, and of which manifest.

use super::*;

#[tokio::test]
async fn a_status_has_one_entry_per_component_and_names_the_child_with_its_full_path() {
    let mut bench = Bench::new().await;
    bench.look().await;
    bench.want(&[(1, "gw/a", &["r1", "mode"]), (2, "gw", &["cfg"])]).await;
    for status in &bench.told {
        let names: Vec<&str> = status.components.iter().map(|component| component.name.as_str()).collect();
        match status.device.as_ref().map(DevicePath::as_str) {
            Some("gw/a") => assert_eq!(names, ["r1", "mode"]),
            None => assert_eq!(names, ["cfg"], "the device that the client is has no name of its own"),
            other => panic!("{other:?}"),
        }
    }
    assert!(bench.last(1, Some("gw/a")).components.iter().all(|component| component.state == State::Installed));
}

#[tokio::test]
async fn every_change_of_a_component_is_told_in_order() {
    let mut bench = Bench::new().await;
    bench.look().await;
    bench.want(&[(1, "gw/a", &["r1", "mode"])]).await;
    bench.want(&[]).await;
    let of = |status: &DeploymentStatus| status.components.iter().map(|c| c.state.as_str()).collect::<Vec<_>>();
    let mut steps: Vec<_> = bench.told.iter().map(of).collect();
    steps.dedup();
    let wanted = [
        ["pending", "pending"],
        ["installing", "pending"],
        ["installed", "pending"],
        ["installed", "installing"],
        ["installed", "installed"],
        ["installed", "removing"],
        ["removing", "removed"],
        ["removed", "removed"],
    ];
    assert_eq!(steps, wanted);
}

#[tokio::test]
async fn fetching_alone_does_not_advance_the_adopted_version() {
    let mut bench = Bench::new().await;
    bench.look().await;
    bench.want(&[(1, "gw/a", &["r1"])]).await;
    assert_eq!(bench.last(1, Some("gw/a")).adopted_manifest_version, 2);
    bench.set("gw/a", |view| view.reachable = false).await;
    bench.works.insert("r1@2".to_owned(), recipe(&[("speed", 20)]));
    bench.want(&[(1, "gw/a", &["r1@2"])]).await;
    assert_eq!(bench.last(1, Some("gw/a")).adopted_manifest_version, 2, "held, and not begun");
    bench.set("gw/a", |view| view.reachable = true).await;
    assert_eq!(bench.last(1, Some("gw/a")).adopted_manifest_version, 3);
}

#[tokio::test]
async fn a_manifest_that_carries_an_unchanged_deployment_advances_its_adopted_version() {
    let mut bench = Bench::new().await;
    bench.look().await;
    bench.want(&[(1, "gw/a", &["r1"])]).await;
    bench.want(&[(1, "gw/a", &["r1"]), (2, "gw/b", &["r1"])]).await;
    assert_eq!(bench.last(1, Some("gw/a")).adopted_manifest_version, 3);
    assert_eq!(bench.plant.done.len(), 2, "and nothing is applied for it");
}

#[tokio::test]
async fn absence_from_the_manifest_is_what_deletes() {
    let mut bench = Bench::new().await;
    bench.look().await;
    bench.want(&[(1, "gw/a", &["r1"]), (2, "gw/b", &["r1"])]).await;
    bench.want(&[(2, "gw/b", &["r1"])]).await;
    assert_eq!((bench.plant.point("a", "speed"), bench.plant.point("b", "speed")), (Some(0), Some(10)));
    assert_eq!(bench.last(1, Some("gw/a")).state, State::Removed);
    assert_eq!(bench.last(1, Some("gw/a")).adopted_manifest_version, 3, "the removal is what that manifest wants");
}

#[tokio::test]
async fn a_device_that_has_not_had_the_time_to_answer_is_waited_for_without_a_word() {
    let mut bench = Bench::new().await;
    let (a, b) = (path("gw/a"), path("gw/b"));
    for device in [&a, &b] {
        let view = bench.devices.get_mut(device).unwrap();
        (view.reachable, view.connecting) = (false, true);
    }
    bench.look().await;
    bench.want(&[(1, "gw/a", &["r1"]), (2, "gw/b", &["r1"])]).await;
    assert_eq!((bench.states(1, Some("gw/a")), bench.code(1, Some("gw/a"))), (vec!["pending"], String::new()));
    bench.set("gw/a", |view| (view.reachable, view.connecting) = (true, false)).await;
    assert_eq!(bench.states(1, Some("gw/a")), ["pending", "installing", "installed"]);
    bench.set("gw/b", |view| view.connecting = false).await;
    assert_eq!((bench.last(2, Some("gw/b")).state, bench.code(2, Some("gw/b")).as_str()), (State::Failed, "102"));
}
