//! A repository: a registry host and a path on it.

use std::fmt;

use kiln_oci::Reference;

/// Where content lives: `docker.io` and `library/alpine`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    /// Registry host with its port; `docker.io` for Docker Hub.
    pub host: String,
    /// Path without the host.
    pub path: String,
}

impl Repository {
    /// Returns the repository of these parts.
    pub fn new(host: impl Into<String>, path: impl Into<String>) -> Self {
        Self { host: host.into(), path: path.into() }
    }
}

impl From<&Reference> for Repository {
    fn from(reference: &Reference) -> Self {
        Self::new(reference.host(), reference.path())
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)
    }
}
