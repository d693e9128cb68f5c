//! Why an engine process does not start, or ends.

use std::io;

use kiln_stdx::ErrorClass;

/// A failed engine process.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// An address that cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address as configured.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// A configuration file that cannot be used.
    #[error("configuration {path}: {why}")]
    Config {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// Certificates that cannot be used.
    #[error("TLS: {why}")]
    Tls {
        /// What is wrong with them.
        why: String,
    },
    /// Another engine serves this root.
    #[error("another engine uses state root {root}")]
    InUse {
        /// The state root.
        root: String,
    },
    /// The process lacks something it needs.
    #[error("{what}: {source}")]
    Start {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl DaemonError {
    /// Returns the class of the error.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Config { .. } | Self::Tls { .. } => ErrorClass::UserInput,
            _ => ErrorClass::Environment,
        }
    }
}
