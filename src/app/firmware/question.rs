//! What the command line asks about firmware over the local socket, and the answers.

use serde::{Deserialize, Serialize};

use crate::management::firmware::{Job, Offer};

/// A question, as JSON in a request of the admin socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Question {
    /// Hands in an offer.
    Offer {
        /// `gateway` or the id of a device.
        target: String,
        /// What is offered.
        offer: Offer,
    },
    /// A part of an upload.
    Chunk {
        /// `gateway` or the id of a device.
        target: String,
        /// The job.
        id: String,
        /// Where the part begins.
        offset: u64,
        /// The octets in base64.
        data: String,
    },
    /// Approves or rejects.
    Decide {
        /// `gateway` or the id of a device.
        target: String,
        /// The job.
        id: String,
        /// Yes or no.
        approve: bool,
    },
    /// Where updates stand.
    Jobs {
        /// Only this one.
        target: Option<String>,
    },
}

/// The answer to a [`Question`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The job that was offered or decided about.
    Job(Box<Job>),
    /// Where the next part of the upload begins.
    Next(u64),
    /// Jobs that are known.
    Jobs(Vec<Job>),
}
