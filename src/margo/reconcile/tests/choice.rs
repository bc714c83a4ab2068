//! Where the gateway's choice falls when deployments stand in each other's way, and what another fleet manager hears.

use super::*;

impl Bench {
    /// Of which device each deployment holds `speed`, by its value.
    fn speeds(&self) -> Vec<Option<i64>> {
        ["a", "b", "c"].map(|device| self.plant.point(device, "speed")).to_vec()
    }

    async fn again(&mut self) {
        self.reconciler = Reconciler::load(self.scope.clone(), &self.storage).await.unwrap();
        self.look().await;
    }
}

/// Three pumps; the gateway itself takes nothing.
async fn pumps(opaque: bool) -> Bench {
    let mut bench = Bench::new().await;
    bench.devices.get_mut(&path("gw")).unwrap().functions = Functions::default();
    bench.scope.opaque = opaque;
    bench.again().await;
    bench
}

#[tokio::test]
async fn copies_of_a_recipe_go_to_devices_that_are_free_and_only_one_too_many_is_in_conflict() {
    for (opaque, target) in [(true, "gw"), (true, "gw/*"), (false, "gw/*")] {
        let mut bench = pumps(opaque).await;
        bench.want(&[(1, target, &["r1"]), (2, target, &["r1"]), (3, target, &["r1"])]).await;
        assert_eq!(bench.speeds(), [Some(10); 3], "{target}");
        bench.want(&[(1, target, &["r1"]), (2, target, &["r1"]), (3, target, &["r1"]), (4, target, &["r1"])]).await;
        let device = (!opaque).then_some("gw/a");
        assert_eq!((bench.last(4, device).state, bench.code(4, device).as_str()), (State::Failed, "conflict"));
        let why = bench.last(4, device).error.as_ref().unwrap().message.clone();
        assert!(why.contains("is held by deployment 00000000-"), "{why}");
        assert_eq!(bench.plant.done.len(), 3);
    }
}

#[tokio::test]
async fn another_device_is_chosen_when_the_idlest_one_holds_what_is_claimed() {
    let mut bench = pumps(true).await;
    bench.devices.remove(&path("gw/c"));
    bench.look().await;
    // a: speed; b: mode and a configuration. The idlest is a, and it is the one that is taken.
    bench.works.insert("slow".to_owned(), recipe(&[("speed", 1)]));
    bench.want(&[(1, "gw", &["r1"]), (2, "gw", &["mode"]), (3, "gw", &["cfg"])]).await;
    let held = |bench: &Bench, n: usize| {
        let of = bench.reconciler.view().find(|(record, _)| record.id.as_str() == id(n)).unwrap().1;
        of.iter().map(|placement| placement.path.as_str().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!([held(&bench, 1), held(&bench, 2), held(&bench, 3)], [["gw/a"], ["gw/b"], ["gw/a"]]);
    bench
        .want(&[
            (1, "gw", &["r1"]),
            (2, "gw", &["mode"]),
            (3, "gw", &["cfg"]),
            (4, "gw", &["slow"]),
            (5, "gw", &["cfg"]),
        ])
        .await;
    assert_eq!([held(&bench, 4), held(&bench, 5)], [["gw/b"], ["gw/b"]]);
    assert_eq!(bench.last(4, None).state, State::Installed);
    // Where something is, it stays, over restarts and whoever is idler.
    bench.devices.insert(path("gw/c"), view(Some("c")));
    bench.again().await;
    assert_eq!([held(&bench, 1), held(&bench, 4)], [["gw/a"], ["gw/b"]]);
}

#[tokio::test]
async fn a_free_device_that_does_not_answer_is_better_than_one_in_conflict_and_one_that_answers_is_better_still() {
    let mut bench = pumps(false).await;
    bench.devices.get_mut(&path("gw/b")).unwrap().reachable = false;
    bench.look().await;
    bench.want(&[(1, "gw/a", &["r1"]), (2, "gw/*", &["r1"])]).await;
    assert_eq!(bench.speeds(), [Some(10), None, Some(10)]);
    bench.want(&[(1, "gw/a", &["r1"]), (2, "gw/*", &["r1"]), (3, "gw/*", &["r1"])]).await;
    assert_eq!(bench.code(3, Some("gw/b")), "102");
    bench.set("gw/b", |view| view.reachable = true).await;
    assert_eq!(bench.speeds(), [Some(10); 3]);
}

#[tokio::test]
async fn who_is_in_conflict_and_has_begun_nothing_moves_when_another_device_is_free() {
    for opaque in [true, false] {
        let target = if opaque { "gw" } else { "gw/*" };
        let mut bench = pumps(opaque).await;
        let c = bench.devices.remove(&path("gw/c")).unwrap();
        bench.look().await;
        let wanted = [(1, target, &["r1"][..]), (2, target, &["r1"]), (3, target, &["r1"])];
        bench.want(&wanted).await;
        let at = |name| (!opaque).then_some(name);
        assert_eq!(bench.code(3, at("gw/a")), "conflict");
        // A third device is approved.
        bench.devices.insert(path("gw/c"), c);
        bench.look().await;
        assert_eq!(bench.last(3, at("gw/c")).state, State::Installed);
        assert_eq!(bench.states(3, at("gw/a")).last(), Some(if opaque { &"installed" } else { &"removed" }));
        assert_eq!(bench.speeds(), [Some(10); 3]);
        // One more, and then the second is given up: its device is free for the one that waits.
        bench.want(&[wanted[0], wanted[1], wanted[2], (4, target, &["r1"])]).await;
        assert_eq!(bench.code(4, at("gw/a")), "conflict");
        bench.want(&[wanted[0], wanted[2], (4, target, &["r1"])]).await;
        assert_eq!(bench.last(4, at("gw/b")).state, State::Installed);
        assert_eq!(bench.speeds(), [Some(10); 3]);
        bench.want(&[]).await;
        assert_eq!(bench.speeds(), [Some(0); 3]);
        assert_eq!(bench.last(4, at("gw/b")).state, State::Removed);
    }
}

#[tokio::test]
async fn a_named_device_is_never_left_for_a_conflict() {
    let mut bench = pumps(false).await;
    bench.want(&[(1, "gw/a", &["r1"]), (2, "gw/a", &["r1"])]).await;
    assert_eq!((bench.code(2, Some("gw/a")).as_str(), bench.speeds()), ("conflict", vec![Some(10), None, None]));
}

#[tokio::test]
async fn another_fleet_manager_hears_nothing_of_what_it_does_not_want_and_all_of_what_it_wants() {
    let mut bench = Bench::new().await;
    bench.look().await;
    for _ in 0..5 {
        bench.want(&[(1, "gw/a", &["r1"]), (2, "gw/b", &["r1"]), (3, "gw/nobody", &["r1"])]).await;
    }
    // The name changes, and with it the fleet manager; its manifests begin anew.
    let changes = bench.reconciler.forget_relation().unwrap();
    commit_in_order(&bench.storage, changes).await.unwrap();
    bench.told.clear();
    bench.manifest.version = 0;
    bench.set("gw/a", |view| view.reachable = false).await;
    bench.set("gw/a", |view| view.reachable = true).await;
    assert_eq!(bench.told, []);
    bench.want(&[(2, "gw/b", &["r1"])]).await;
    assert!(bench.told.iter().all(|status| status.deployment_id.as_str() == id(2)), "{:?}", bench.told);
    assert_eq!((bench.states(2, Some("gw/b")), bench.plant.point("a", "speed")), (vec!["installed"], Some(0)));
    assert_eq!(bench.last(2, Some("gw/b")).adopted_manifest_version, 1, "of the manifests of this one");
    assert_eq!(bench.plant.done.len(), 3, "what is there already is not done again");
    bench.want(&[(1, "gw/a", &["r1"]), (2, "gw/b", &["r1"])]).await;
    assert_eq!(bench.states(1, Some("gw/a")).last(), Some(&"installed"), "and what comes anew is told as ever");
}

#[tokio::test]
async fn who_finds_its_device_taken_moves_to_one_that_became_free_before() {
    for (opaque, target) in [(true, "gw"), (false, "gw/*")] {
        let mut bench = pumps(opaque).await;
        bench.set("gw/a", |view| view.reachable = false).await;
        bench.wish(&[(5, target, &["r1"])]).await;
        bench.do_job(0).await;
        bench.do_job(0).await;
        // The place of 5 is still held when the others are placed: two of them are to have the same device.
        bench.wish(&[(1, target, &["r1"]), (2, target, &["r1"]), (3, target, &["r1"])]).await;
        bench.set("gw/a", |view| view.reachable = true).await;
        bench.settle().await;
        assert_eq!(bench.speeds(), [Some(10); 3], "{target}");
    }
}
