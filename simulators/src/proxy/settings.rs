//! What the proxy does to a link.

use std::time::Duration;

/// How a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutKind {
    /// An orderly end: the peers read end-of-file.
    Fin,
    /// A reset: the peers get an error.
    Rst,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From client to server.
    Up,
    /// From server to client.
    Down,
    /// Both.
    Both,
}

impl Direction {
    /// Calls `act` for the flows that it names.
    pub(crate) fn each(self, faults: &mut Faults, act: impl Fn(&mut Flow)) {
        if self != Direction::Down {
            act(&mut faults.up);
        }
        if self != Direction::Up {
            act(&mut faults.down);
        }
    }
}

/// Faults of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flow {
    /// Every byte takes this long.
    pub latency: Duration,
    /// And up to this much longer, drawn per chunk; bytes keep their order.
    pub jitter: Duration,
    /// Bytes per second; `None`: as fast as it goes.
    pub bytes_per_second: Option<u64>,
    /// Largest number of bytes handed to the system at once; `None`: as they come.
    pub slice: Option<usize>,
}

/// Faults of all links of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// From client to server.
    pub up: Flow,
    /// From server to client.
    pub down: Flow,
    /// Cut when a connection has carried this many bytes, both directions together.
    pub cut_after: Option<(u64, CutKind)>,
    /// Cut at random, this long after its beginning in the mean.
    pub cut_random: Option<(Duration, CutKind)>,
    /// Nothing is forwarded while it is set; nothing is lost.
    pub hold: bool,
    /// Everything is swallowed while it is set, and connections that it hit stay dead.
    pub blackhole: bool,
    /// New connections are refused.
    pub refuse: bool,
}
