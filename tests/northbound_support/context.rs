//! What a session under test knows of its surroundings, and the other ends of it.
#![allow(dead_code, reason = "every test binary uses its own part")]

use std::sync::Arc;

use fieldgate::northbound::*;
use fieldgate::platform::clock::ManualClock;
use tokio::sync::{mpsc, watch};

/// The test's ends.
pub struct Surroundings {
    pub board: StateBoard,
    pub requests: mpsc::Receiver<Request>,
    pub notices: mpsc::Receiver<Notice>,
    pub clock: Arc<ManualClock>,
}

/// A context whose queue of requests takes this many.
pub fn context(requests: usize) -> (Context, Surroundings) {
    let (requests_in, requests) = mpsc::channel(requests);
    let (notices_in, notices) = mpsc::channel(64);
    let (board, clock) = (StateBoard::default(), ManualClock::at(1_763_812_800_000));
    let context = Context {
        gateway: GatewayInfo { id: "gw".into(), version: "0".into(), epoch: 7 },
        board: board.clone(),
        directory: watch::channel(Arc::default()).1,
        requests: requests_in,
        notices: notices_in,
        settings: Arc::default(),
        clock: clock.clone(),
    };
    (context, Surroundings { board, requests, notices, clock })
}
