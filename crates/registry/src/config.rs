//! What the client is told about registries: mirrors, schemes, certificates, limits.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

/// How the client waits between attempts; tests replace it.
pub type Pause = Arc<dyn Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync>;

/// The whole configuration of a [`crate::Registry`].
#[derive(Clone)]
pub struct RegistryConfig {
    /// Settings per host, keyed as in references (`docker.io`, `localhost:5000`, a mirror's `host:port`).
    pub hosts: BTreeMap<String, HostConfig>,
    /// The `User-Agent` header.
    pub user_agent: String,
    /// Limits on waiting for one answer.
    pub timeouts: Timeouts,
    /// How failed requests are repeated.
    pub retry: RetryPolicy,
    /// Most blobs transferred with one host at a time.
    pub max_concurrency: usize,
    /// How the client waits between attempts.
    pub pause: Pause,
}

/// Settings of one registry host; the tables `[registry."host"]` of a BuildKit configuration.
#[derive(Debug, Clone, Default)]
pub struct HostConfig {
    /// Mirrors for pulls in order of preference, `host[:port][/path]`; the host itself comes last.
    pub mirrors: Vec<String>,
    /// Plain HTTP. Unset means: only for loopback hosts without TLS settings.
    pub http: Option<bool>,
    /// Accept any certificate; together with `http`, TLS is tried first.
    pub insecure: bool,
    /// PEM files of further certificate authorities.
    pub ca: Vec<PathBuf>,
    /// Client certificates; the registry's wishes choose among several.
    pub keypairs: Vec<KeyPair>,
}

/// PEM files of a client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    pub key: PathBuf,
    pub cert: PathBuf,
}

/// Limits on waiting for one answer.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// For the connection with its TLS handshake.
    pub connect: Duration,
    /// From a request without a body to the head of its answer.
    pub response: Duration,
    /// Without a byte moved in either direction.
    pub stall: Duration,
}

/// How often and how long failed requests are repeated.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Most attempts of one request, or of one blob without progress.
    pub attempts: u32,
    /// The wait before the second attempt; it doubles each time, with jitter.
    pub base: Duration,
    /// The longest wait of its own accord. A server's `Retry-After` may ask for more.
    pub cap: Duration,
    /// Longest sum of waits of one request; a `Retry-After` beyond it fails at once.
    pub total: Duration,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            user_agent: concat!("kiln/", env!("CARGO_PKG_VERSION")).to_owned(),
            timeouts: Timeouts::default(),
            retry: RetryPolicy::default(),
            max_concurrency: 4,
            pause: Arc::new(|wait| tokio::time::sleep(wait).boxed()),
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(30), response: Duration::from_secs(60), stall: Duration::from_secs(60) }
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 6,
            base: Duration::from_millis(250),
            cap: Duration::from_secs(10),
            total: Duration::from_secs(120),
        }
    }
}
