//! What can go wrong when a simulator is set up or asked for something.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a simulated service could not start, or refused what its handle was asked.
#[derive(Debug, thiserror::Error)]
pub enum MargoSimError {
    /// A certificate, key or request could not be made or read.
    #[error("certificate of {what}: {source}")]
    Certificate {
        /// For whom or what.
        what: String,
        /// What the library said.
        source: rcgen::Error,
    },
    /// TLS settings that do not hold together.
    #[error("TLS of the simulator: {0}")]
    Tls(#[from] rustls::Error),
    /// An address that cannot be listened on.
    #[error("cannot listen on {address}: {source}; stop what uses the port, or choose port 0")]
    Bind {
        /// Address that was asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Whoever reaches the control API gets keys from it.
    #[error("the control API must listen on a loopback address, not on {0}")]
    NotLoopback(SocketAddr),
    /// A file that cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A scenario that is not of the documented shape.
    #[error("scenario {name}: {source}")]
    Scenario {
        /// File or built-in name.
        name: String,
        /// Line, column and what was expected.
        source: Box<toml::de::Error>,
    },
    /// A deployment that cannot be made.
    #[error("deployment {id}: {problem}")]
    Deployment {
        /// Its id, or empty.
        id: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// What was waited for did not happen.
    #[error("waited {seconds} s in vain for {what}")]
    Waited {
        /// How long.
        seconds: u64,
        /// For what.
        what: String,
    },
    /// The service has ended.
    #[error("the simulator has ended")]
    Ended,
}

impl MargoSimError {
    pub(crate) fn certificate(what: impl Into<String>) -> impl FnOnce(rcgen::Error) -> Self {
        let what = what.into();
        move |source| Self::Certificate { what, source }
    }
}
