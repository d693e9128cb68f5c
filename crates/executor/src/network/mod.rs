//! Networks of sandboxes: a seam, the two providers every host has, and those that keep steps apart from the host.

mod bridge;
mod link;
mod masquerade;
mod namespace;
mod netlink;
mod pool;
mod resolver;
mod slirp;
mod subnet;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use async_trait::async_trait;

use crate::{ExecError, NetworkMode};

pub use subnet::Subnet;

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

/// A kind of network that keeps steps apart from the host and from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// A bridge, whose steps go by the host's address. The host has to forward packets.
    Bridge,
    /// `slirp4netns`.
    Slirp,
    /// A bridge where the host forwards and lets one be made, else `slirp4netns`.
    Either,
}

/// How isolated networks are made.
#[derive(Debug, Clone)]
pub struct IsolatedConfig {
    /// What carries the packets.
    pub kind: Isolation,
    /// Name of the host's end of a bridge, at most 15 letters; no other engine of this host has it.
    pub name: String,
    /// Addresses of a bridge; some that the host has no route to when absent.
    pub subnet: Option<Subnet>,
    /// How many networks are kept ready.
    pool: usize,
}

/// The fewest and most networks that are kept ready.
const POOL: (usize, usize) = (1, 64);
const FORWARDS: &str = "/proc/sys/net/ipv4/ip_forward";

impl IsolatedConfig {
    /// Returns the configuration of networks of a kind.
    pub fn new(kind: Isolation, name: impl Into<String>) -> Self {
        Self { kind, name: name.into(), subnet: None, pool: POOL.0 }
    }

    /// Keeps `pool` networks ready, within reason.
    #[must_use]
    pub fn with_pool(mut self, pool: usize) -> Self {
        self.pool = pool.clamp(POOL.0, POOL.1);
        self
    }

    /// Prepares the networks. May take seconds where another engine's are still being taken down.
    ///
    /// # Errors
    /// [`ExecError::Network`] when this host cannot have them.
    pub fn provider(&self) -> Result<Arc<dyn NetworkProvider>, ExecError> {
        match self.kind {
            Isolation::Bridge => self.bridge(),
            Isolation::Slirp => self.slirp(),
            Isolation::Either => self.bridge().or_else(|refused| {
                tracing::info!(%refused, "steps get their network from slirp4netns");
                self.slirp().map_err(|_| refused)
            }),
        }
    }

    fn bridge(&self) -> Result<Arc<dyn NetworkProvider>, ExecError> {
        let failed = |error: io::Error| ExecError::network("bridge", &error);
        if std::fs::read_to_string(FORWARDS).is_ok_and(|text| text.trim() != "1") {
            return Err(failed(io::Error::other("this host does not forward packets (net.ipv4.ip_forward is 0)")));
        }
        let bridge = bridge::Bridge::new(&self.name, self.subnet).map_err(failed)?;
        Ok(Arc::new(pool::Pool::new(bridge, self.pool)))
    }

    fn slirp(&self) -> Result<Arc<dyn NetworkProvider>, ExecError> {
        let missing = io::Error::new(io::ErrorKind::NotFound, "slirp4netns is not installed");
        let slirp = slirp::Slirp::find().ok_or_else(|| ExecError::network("slirp", &missing))?;
        Ok(Arc::new(pool::Pool::new(slirp, self.pool)))
    }
}
