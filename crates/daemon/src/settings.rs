//! What an administrator decides for one engine, beside where it listens: registries, entitlements, limits, labels.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use kiln_registry::HostConfig;

use crate::collect::GcSettings;
use crate::network::NetworkSettings;
use crate::tls::TlsSettings;

/// Settings of an engine. The default is what an engine that a client starts for itself has.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Mirrors, schemes and certificates by registry host.
    pub registries: BTreeMap<String, HostConfig>,
    /// Entitlements that clients may ask for: `network.host`, `security.insecure`.
    pub entitlements: Vec<String>,
    /// Labels of the worker beside the engine's own.
    pub labels: BTreeMap<String, String>,
    /// Platforms the worker announces; the host's own when empty.
    pub platforms: Vec<String>,
    /// Most steps that run a process at once; the engine's own high limit when absent.
    pub max_parallelism: Option<usize>,
    /// Most blobs transferred with one registry at a time.
    pub registry_concurrency: Option<usize>,
    /// What steps find in `/etc/resolv.conf` instead of the host's.
    pub dns: Option<Dns>,
    /// Control group under which steps are put that name none.
    pub cgroup_parent: Option<String>,
    /// `overlay` or `copy`; chosen by what the host has when absent.
    pub snapshotter: Option<String>,
    /// The OCI runtime that runs steps, a path or a name; the engine's own sandbox when absent.
    pub runtime: Option<PathBuf>,
    /// Which network steps get.
    pub network: NetworkSettings,
    /// How garbage is collected; never by itself when absent.
    pub gc: Option<GcSettings>,
    /// TLS of addresses that are not unix sockets.
    pub tls: TlsSettings,
    /// Where the engine tells what it is about: `host:port` or `unix://PATH`. Nowhere when absent.
    pub debug_address: Option<String>,
    /// Which frontends clients may use.
    pub frontends: Frontends,
    /// How much history is kept.
    pub history: HistorySettings,
    /// Where JSON files with additions to provenance are.
    pub provenance_env_dir: Option<PathBuf>,
    /// Whether the log is written as JSON.
    pub log_json: bool,
    /// Least level of log lines: `error`, `warn`, `info`, `debug`, `trace`; by `debug` when absent.
    pub log_level: Option<String>,
    /// Owner and group numbers of unix sockets.
    pub socket_owner: (Option<u32>, Option<u32>),
}

/// The name service of steps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    pub nameservers: Vec<String>,
    pub options: Vec<String>,
    pub search: Vec<String>,
}

/// Which frontends clients may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontends {
    pub dockerfile: bool,
    pub gateway: bool,
    /// Repositories whose images may run as frontends; any when empty.
    pub allowed_repositories: Vec<String>,
}

/// How much history is kept. Absent values keep the engine's defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HistorySettings {
    pub max_age: Option<Duration>,
    pub max_entries: Option<usize>,
}

impl Default for Frontends {
    fn default() -> Self {
        Self { dockerfile: true, gateway: true, allowed_repositories: Vec::new() }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            registries: BTreeMap::new(),
            entitlements: vec!["network.host".to_owned()],
            labels: BTreeMap::new(),
            platforms: Vec::new(),
            max_parallelism: None,
            registry_concurrency: None,
            dns: None,
            cgroup_parent: None,
            snapshotter: None,
            runtime: None,
            network: NetworkSettings::default(),
            gc: None,
            tls: TlsSettings::default(),
            debug_address: None,
            frontends: Frontends::default(),
            history: HistorySettings::default(),
            provenance_env_dir: None,
            log_json: false,
            log_level: None,
            socket_owner: (None, None),
        }
    }
}

impl Dns {
    /// Returns the text of `/etc/resolv.conf`.
    pub fn resolv_conf(&self) -> String {
        let mut text = String::new();
        for server in &self.nameservers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.search.is_empty() {
            text.push_str(&format!("search {}\n", self.search.join(" ")));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}
