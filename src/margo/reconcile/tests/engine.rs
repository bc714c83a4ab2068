//! Compose projects on hosts with a container engine.

use super::*;
use crate::margo::component::compose::tests::file;
use crate::margo::component::compose::{Allowed, Privilege};

const OWNER: &str = "1/web";

fn project(more: &str) -> Work {
    let mut project = file(&format!("services: {{web: {{image: a{more}}}}}")).unwrap();
    project.owner = OWNER.to_owned();
    Work::Compose(Box::new(project))
}

/// A bench where `gw/a` and the gateway have engines.
async fn bench() -> Bench {
    let mut bench = Bench::new().await;
    bench.works.insert("web".to_owned(), project(""));
    bench.works.insert("root".to_owned(), project(", privileged: true"));
    for host in ["gw", "gw/a"] {
        bench.devices.get_mut(&path(host)).unwrap().engine = Some(Allowed::default());
    }
    bench.look().await;
    bench
}

fn applied(bench: &Bench, name: &str) -> usize {
    bench.plant.done.iter().filter(|(device, kind)| device == name && kind == "apply").count()
}

#[tokio::test]
async fn a_project_goes_where_an_engine_is_that_allows_it() {
    let mut bench = bench().await;
    bench.want(&[(1, "gw", &["web"]), (2, "gw/b", &["web"]), (3, "gw/a", &["root"]), (4, "gw/*", &["web"])]).await;
    assert_eq!(bench.last(1, None).state, State::Installed);
    assert_eq!(bench.code(2, Some("gw/b")), "not-supported");
    assert_eq!(bench.code(3, Some("gw/a")), "not-allowed");
    assert_eq!(bench.last(4, Some("gw/a")).state, State::Installed, "the child that can");
    // Somebody allows it: nobody has to deploy it again.
    let allowed = Allowed { privileges: [Privilege::Privileged].into(), is_local: true };
    bench.set("gw/a", |view| view.engine = Some(allowed)).await;
    assert_eq!(bench.last(3, Some("gw/a")).state, State::Installed);
}

#[tokio::test]
async fn containers_that_are_gone_are_brought_back_once() {
    let mut bench = bench().await;
    bench.want(&[(1, "gw", &["web"])]).await;
    assert_eq!(applied(&bench, "gateway"), 1);
    bench.set("gw", |view| view.lost = [OWNER.to_owned()].into()).await;
    assert_eq!(applied(&bench, "gateway"), 2);
    assert_eq!(bench.states(1, None), ["pending", "installing", "installed", "pending", "installing", "installed"]);
    bench.set("gw", |view| view.lost.clear()).await;
    bench.pass(600).await;
    assert_eq!(applied(&bench, "gateway"), 2);
    bench.want(&[]).await;
    assert_eq!(bench.states(1, None).last(), Some(&"removed"));
}

#[tokio::test]
async fn what_may_pass_is_tried_again_with_its_own_words() {
    let mut bench = bench().await;
    let down = Refusal { passing: true, ..Refusal::new("engine-unreachable", "the engine does not answer") };
    bench.plant.refuse.insert("gateway".to_owned(), down);
    bench.want(&[(1, "gw", &["web"])]).await;
    assert_eq!((bench.last(1, None).state, bench.code(1, None)), (State::Failed, "engine-unreachable".to_owned()));
    bench.plant.refuse.clear();
    bench.pass(600).await;
    assert_eq!(bench.last(1, None).state, State::Installed);
}

#[tokio::test]
async fn after_a_restart_what_was_refused_is_looked_at_again() {
    let mut bench = bench().await;
    bench.works.remove("web");
    bench.want(&[(1, "gw", &["web"])]).await;
    assert_eq!(bench.code(1, None), "artifact-unavailable");
    bench.works.insert("web".to_owned(), project(""));
    bench.rise().await;
    bench.settle().await;
    assert_eq!(bench.last(1, None).state, State::Installed);
}
