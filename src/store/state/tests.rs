//! The state through restarts and damage.

use std::path::Path;

use super::*;
use crate::platform::clock::SystemClock;
use crate::store::{Config, Store};

fn open(dir: &Path) -> Store {
    Store::open(Config::with_quota(dir.join("store"), 16 << 20), SystemClock::shared()).unwrap()
}

async fn reopen(store: Store, dir: &Path) -> Store {
    store.close().await.unwrap();
    for _ in 0..500 {
        match Store::open(Config::with_quota(dir.join("store"), 16 << 20), SystemClock::shared()) {
            Ok(store) => return store,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
    panic!("the store cannot be opened again");
}

fn put(tree: &str, key: &str, value: &str) -> Op {
    Op::Put {
        tree: tree.into(),
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
    }
}

fn text(value: Option<Bytes>) -> String {
    value.map_or("-".to_owned(), |v| String::from_utf8(v.to_vec()).unwrap())
}

#[tokio::test]
async fn changes_survive_a_restart_and_a_lost_or_damaged_database() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let state_dir = dir.path().join("store").join("state");
    store.state().put("devices", b"pump", "pending".into()).await.unwrap();
    store.state().batch(vec![put("devices", "pump", "active"), put("jobs", "1", "done")]).await.unwrap();
    store.state().delete("jobs", b"1").await.unwrap();
    assert_eq!(store.state().next_epoch().await, Ok(1));
    store.state().put_lazy("retained", b"a/b", "21".into()).await.unwrap();
    assert_eq!(text(store.state().get("retained", b"a/b").unwrap()), "21");

    for (round, damage) in ["nothing", "deleted", "flipped", "a file", "no journal", "deleted"].into_iter().enumerate()
    {
        store.close().await.unwrap();
        match damage {
            "deleted" => std::fs::remove_dir_all(&state_dir).unwrap(),
            "flipped" => {
                let path = state_dir.join("db");
                let mut bytes = std::fs::read(&path).unwrap();
                bytes.iter_mut().for_each(|b| *b ^= 0x55);
                std::fs::write(&path, bytes).unwrap();
            }
            "a file" => {
                std::fs::remove_dir_all(&state_dir).unwrap();
                std::fs::write(&state_dir, "not a directory").unwrap();
            }
            "no journal" => std::fs::remove_dir_all(dir.path().join("store").join("buffer")).unwrap(),
            _ => {}
        }
        store = open(dir.path());
        let state = store.state();
        assert_eq!(text(state.get("devices", b"pump").unwrap()), "active", "{damage}");
        assert_eq!(text(state.get("jobs", b"1").unwrap()), "-", "{damage}");
        assert_eq!(state.next_epoch().await, Ok(round as u64 + 2), "{damage}");
        let retained = state.scan("retained", b"a/").unwrap().len();
        assert_eq!(retained, usize::from(round == 0), "{damage}");
    }
    assert!(state_dir.with_extension("bad").exists(), "the damaged directory is kept for people");
}

#[tokio::test]
async fn a_damaged_value_is_found_and_rebuilt_while_running() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.state().put("devices", b"pump", "active".into()).await.unwrap();
    let bad = Op::Put { tree: "devices".into(), key: "pump".into(), value: "x".into() };
    store.state().shared.tamper(&bad);
    assert_eq!(store.state().get("devices", b"pump"), Err(StateError::Damaged("devices".into())));
    // Behind the rebuild in the queue.
    store.state().flush().await.unwrap();
    assert_eq!(text(store.state().get("devices", b"pump").unwrap()), "active");
}

#[tokio::test]
async fn the_journal_is_compacted_and_still_rebuilds_everything() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let value = Bytes::from(vec![7; 20_000]);
    for n in 0..60u8 {
        store.state().put("config", &[n % 10], value.clone()).await.unwrap();
    }
    store.state().put("config", b"last", "word".into()).await.unwrap();
    store.close().await.unwrap();
    std::fs::remove_dir_all(dir.path().join("store").join("state")).unwrap();
    store = open(dir.path());
    assert_eq!(text(store.state().get("config", b"last").unwrap()), "word");
    assert_eq!(store.state().scan("config", b"").unwrap().len(), 11);
    let next = store.stats().borrow().critical.next_seq;
    assert!(next > 62 + 3, "snapshots were written: {next}");
    store = reopen(store, dir.path()).await;
    assert_eq!(store.state().scan("config", b"").unwrap().len(), 11);
}

#[tokio::test]
async fn a_tree_is_written_in_one_way() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let state = store.state();
    state.put("a", b"k", "v".into()).await.unwrap();
    state.put_lazy("b", b"k", "v".into()).await.unwrap();
    assert_eq!(state.put_lazy("a", b"k", "v".into()).await, Err(StateError::Mixed("a".into(), "durably")));
    assert_eq!(state.put("b", b"k", "v".into()).await, Err(StateError::Mixed("b".into(), "lazily")));
    state.delete_lazy("b", b"k").await.unwrap();
    assert_eq!(state.get("b", b"k"), Ok(None));
    state.flush().await.unwrap();
    assert_eq!(state.get("b", b"k"), Ok(None));
    assert!(matches!(state.put("fieldgate", b"epoch", "v".into()).await, Err(StateError::Tree(_))));
    assert!(matches!(state.put("a b", b"k", "v".into()).await, Err(StateError::Tree(_))));
    let large = Bytes::from(vec![0; MAX_VALUE + 1]);
    assert!(matches!(state.put("a", b"k", large).await, Err(StateError::TooLarge { .. })));
}
