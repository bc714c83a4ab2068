//! The local door for the command line: a Unix socket in the data directory, one JSON object per line.
//!
//! Promise:
//! - Only the user who runs the gateway (and root) can open the socket: it is made with mode 0600.
//! - A request is at most 1 MiB (a document of a transfer has 768 KiB), an answer is one line, a stream is one line per item until either side closes.
//! - A client that does not read is cut off; it never holds the gateway back.
//!
//! It must not know the gateway: what is asked goes to a [`Service`] that `app` implements.

mod address;
mod client;
mod server;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub use client::{AdminError, Client};
pub use server::{ServeError, bind, serve};

/// Name of the socket in the data directory.
pub const SOCKET: &str = "admin.sock";

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// All devices with their state: answers [`Answer::Devices`].
    Devices,
    /// Points with their last values, of one device or all: answers [`Answer::Points`].
    Points {
        /// Only this device.
        device: Option<String>,
    },
    /// New samples as they are kept: a stream of [`Answer::Sample`].
    Tail {
        /// Only this device.
        device: Option<String>,
        /// Only this point.
        point: Option<String>,
    },
    /// The health message: answers [`Answer::Json`].
    Health,
    /// A question or request about firmware, as its own JSON: answers [`Answer::Json`].
    Firmware {
        /// What is asked, see `app::firmware::Question`.
        question: serde_json::Value,
    },
    /// Read the configuration again: answers [`Answer::Text`].
    Reload,
    /// A question or request of device management, as its own JSON: answers [`Answer::Json`].
    Manage {
        /// What is asked, see `management::socket::SocketAsk`.
        question: serde_json::Value,
    },
}

/// What a client gets, one per line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// All devices.
    Devices {
        /// In the order of the configuration.
        devices: Vec<DeviceLine>,
    },
    /// Points with their last values.
    Points {
        /// In the order of the configuration.
        points: Vec<PointLine>,
    },
    /// One new sample.
    Sample(PointLine),
    /// Any JSON document.
    Json {
        /// The document.
        value: serde_json::Value,
    },
    /// Words for people.
    Text {
        /// The words.
        text: String,
    },
    /// Items of a stream were left out because the client read too slowly.
    Skipped {
        /// How many.
        count: u64,
    },
    /// The request failed.
    Error {
        /// What is wrong and what to do.
        error: String,
    },
}

/// One device as a table shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the columns' headings")]
pub struct DeviceLine {
    pub device: String,
    pub protocol: String,
    pub address: String,
    /// Margo tier, 1 or 2.
    pub tier: u8,
    /// Where it is in its life, such as `active` or `pending`.
    #[serde(default)]
    pub life: String,
    /// State of the link: `connecting`, `online`, `degraded`, `off-scan`, `offline`; `not-polled` for a device that must not
    /// be polled.
    pub state: String,
    pub reason: String,
    pub points: usize,
    pub requests: u64,
    pub failures: u64,
    pub overruns: u64,
    /// What the device says of itself.
    pub identity: BTreeMap<String, String>,
}

/// One point as a table shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the columns' headings")]
pub struct PointLine {
    pub device: String,
    pub point: String,
    /// Number, boolean, text or null.
    pub value: serde_json::Value,
    pub unit: String,
    /// `good`, `uncertain`, `bad`.
    pub quality: String,
    pub reason: String,
    /// RFC 3339; empty when there is no value yet.
    pub time: String,
}

/// How a request is answered.
#[derive(Debug)]
pub enum Reply {
    /// One line.
    One(Answer),
    /// Lines until the channel closes. The channel is bounded; the service drops what a slow client does not take.
    Stream(mpsc::Receiver<Answer>),
}

/// What stands behind the socket.
pub trait Service: Send + Sync + 'static {
    /// Answers one request of the user `uid`.
    fn answer(&self, uid: u32, request: Request) -> impl Future<Output = Reply> + Send;
}
