//! What can go wrong when a plant or a proxy is set up.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a plant or a proxy could not start, or a request to its handle was refused.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// The scenario file cannot be read.
    #[error("cannot read the scenario {path}: {source}; check the path, or leave --scenario out for the built-in one")]
    ReadScenario {
        /// File that was asked for.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The scenario is not TOML of the documented shape.
    #[error("scenario {name}: {source}")]
    Syntax {
        /// File or built-in name.
        name: String,
        /// Line, column and what was expected.
        source: Box<toml::de::Error>,
    },
    /// The scenario contradicts itself.
    #[error("scenario {name}: {at}: {problem}")]
    Invalid {
        /// File or built-in name.
        name: String,
        /// Place, such as ``device `plc`: point `level` ``.
        at: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A listener's address is taken or not ours.
    #[error("cannot listen on {address}: {source}; stop what uses the port, or choose port 0")]
    Bind {
        /// Address that was asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A serial line cannot be opened.
    #[error("cannot open the serial line {path}: {source}; check the path and that you may read and write it")]
    Serial {
        /// Device path.
        path: String,
        /// What the system said.
        source: tokio_serial::Error,
    },
    /// No device of that name.
    #[error("the plant has no device `{0}`")]
    NoDevice(String),
    /// The model refused a value.
    #[error("signal `{name}`: {problem}")]
    Refused {
        /// Signal that was to be set.
        name: String,
        /// Why it was not.
        problem: String,
    },
    /// An address outside what the device has.
    #[error("device `{device}` has no {table} {address}")]
    NoAddress {
        /// Device that was asked.
        device: String,
        /// Table name.
        table: &'static str,
        /// 0-based address.
        address: u16,
    },
    /// A proxy that listens beyond loopback would open the plant to the network.
    #[error("refusing to listen on {0}: it is not a loopback address; pass --any-address if you mean it")]
    NotLoopback(SocketAddr),
}
