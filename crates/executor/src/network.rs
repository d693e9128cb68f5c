//! Networks of sandboxes: a seam, and the two providers every host has.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use async_trait::async_trait;

use crate::{ExecError, NetworkMode};

/// Gives networks to sandboxes.
#[async_trait]
pub trait NetworkProvider: Send + Sync {
    /// Returns the provider's name for messages.
    fn name(&self) -> &str;

    /// Returns a network for one run.
    ///
    /// # Errors
    /// [`ExecError::Network`] when none can be had.
    async fn acquire(&self, hostname: &str) -> Result<Network, ExecError>;
}

/// One run's network; dropping it gives the network back.
pub struct Network {
    /// Which namespace the process is put in.
    pub namespace: Namespace,
    /// What `/etc/resolv.conf` must say in this network; `None` takes the host's.
    pub resolv_conf: Option<Vec<u8>>,
    /// Whatever has to live as long as the run.
    pub guard: Option<Box<dyn Send + Sync>>,
}

/// A network namespace.
pub enum Namespace {
    /// The host's.
    Host,
    /// A new one with loopback up and nothing else.
    Isolated,
    /// An existing one, as an open file of `/proc/<pid>/ns/net` or its like.
    Existing(OwnedFd),
}

/// The host's own network.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostNetwork;

#[async_trait]
impl NetworkProvider for HostNetwork {
    fn name(&self) -> &str {
        "host"
    }

    async fn acquire(&self, _hostname: &str) -> Result<Network, ExecError> {
        Ok(Network { namespace: Namespace::Host, resolv_conf: None, guard: None })
    }
}

/// Loopback alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoNetwork;

#[async_trait]
impl NetworkProvider for NoNetwork {
    fn name(&self) -> &str {
        "none"
    }

    async fn acquire(&self, _hostname: &str) -> Result<Network, ExecError> {
        Ok(Network { namespace: Namespace::Isolated, resolv_conf: None, guard: None })
    }
}

/// Which provider serves which mode.
#[derive(Clone)]
pub struct Networks {
    /// For [`NetworkMode::Auto`].
    pub auto: Arc<dyn NetworkProvider>,
    /// For [`NetworkMode::Host`].
    pub host: Arc<dyn NetworkProvider>,
    /// For [`NetworkMode::None`].
    pub none: Arc<dyn NetworkProvider>,
}

impl Networks {
    /// Returns the provider for `mode`.
    pub fn get(&self, mode: NetworkMode) -> &Arc<dyn NetworkProvider> {
        match mode {
            NetworkMode::Auto => &self.auto,
            NetworkMode::Host => &self.host,
            NetworkMode::None => &self.none,
        }
    }
}

impl Default for Networks {
    fn default() -> Self {
        Self { auto: Arc::new(HostNetwork), host: Arc::new(HostNetwork), none: Arc::new(NoNetwork) }
    }
}
