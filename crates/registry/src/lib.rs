//! OCI distribution client: resolve, fetch and push, with authentication, mirrors, retries and resumed transfers.
//!
//! Invariant: no store, no files of its own. What is fetched is verified (length and digest) before its last byte is
//! handed out; what is pushed is verified before its last byte leaves. Credentials and tokens never reach an error,
//! a log line or a redirect to another origin.

mod auth;
mod challenge;
mod config;
mod credentials;
mod error;
mod fetch;
mod host;
mod push;
mod repository;
mod resolve;
mod retry;
mod size;
mod tls;
mod token;
mod transport;

use std::sync::Arc;

pub use config::{HostConfig, KeyPair, Pause, RegistryConfig, RetryPolicy, Timeouts};
pub use credentials::{
    Anonymous, Credential, CredentialError, CredentialSource, Credentials, StaticCredentials, Token, TokenRequest,
};
pub use error::{ErrorKind, RegistryError};
pub use fetch::{BlobStream, FetchStart};
pub use push::{BlobSource, FileBlob, Pushed};
pub use repository::Repository;
pub use resolve::FetchedManifest;

/// How requests are sent, guarded and repeated, for clients of other protocols.
pub mod transfer {
    pub use crate::push::{Sending, Upload, UploadState};
    pub use crate::retry::{Retries, backoff, retry_after};
    pub use crate::transport::guarded;
}

/// A client for any number of registries. Cheap to clone; clones share connections and tokens.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<transport::Transport>,
}

impl Registry {
    /// Returns a client with this configuration. Files named in it are read when their host is first used.
    pub fn new(config: RegistryConfig) -> Self {
        Self { inner: Arc::new(transport::Transport::new(config)) }
    }

    /// Returns how many hosts serve pulls from `repository`: its mirrors and itself.
    pub fn pull_hosts(&self, repository: &Repository) -> usize {
        self.inner.hosts.pull(repository).map_or(0, |endpoints| endpoints.len())
    }

    /// Returns a client that also accepts `host` without a valid certificate or without TLS (`registry.insecure`).
    ///
    /// It has connections and tokens of its own, so that the leniency reaches nobody else.
    #[must_use]
    pub fn allowing_insecure(&self, host: &str) -> Self {
        let mut config = (*self.inner.config).clone();
        let settings = config.hosts.entry(host.to_owned()).or_default();
        settings.insecure = true;
        settings.http = Some(true);
        Self::new(config)
    }
}
