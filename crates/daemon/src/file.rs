//! The configuration file, `buildkitd.toml` (features 6.2): every table is known, an unknown key is an error.
//!
//! Keys that set up what this engine does in another way (snapshotter plugins, containerd) are read and checked, so
//! that a file written for that daemon serves unchanged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_stdx::suggest::nearest;
use serde::Deserialize;

use crate::DaemonError;
use crate::registry_table::RegistryTable;
use crate::settings::{Dns, Settings};
use crate::space::duration;
use crate::tls::TlsSettings;
use crate::worker_table;

/// Names at the top of the file.
const KNOWN: &[&str] = &[
    "root",
    "debug",
    "trace",
    "insecure-entitlements",
    "proxyNetwork",
    "provenanceEnvDir",
    "log",
    "grpc",
    "otel",
    "cdi",
    "worker",
    "registry",
    "dns",
    "history",
    "frontend",
    "system",
    "cache",
];

/// A configuration file, as far as this engine makes use of it.
#[derive(Debug, Default)]
pub struct ConfigFile {
    /// Everything that is not an address or a path of the engine's own.
    pub settings: Settings,
    pub root: Option<PathBuf>,
    pub addresses: Vec<String>,
    pub debug: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    root: Option<PathBuf>,
    debug: bool,
    trace: bool,
    #[serde(rename = "insecure-entitlements")]
    entitlements: Vec<String>,
    #[serde(rename = "proxyNetwork")]
    proxy_network: bool,
    #[serde(rename = "provenanceEnvDir")]
    provenance_env_dir: Option<PathBuf>,
    log: Log,
    grpc: Grpc,
    #[serde(rename = "otel")]
    _otel: Otel,
    #[serde(rename = "cdi")]
    _cdi: Cdi,
    worker: Workers,
    registry: BTreeMap<String, RegistryTable>,
    dns: Option<DnsTable>,
    history: History,
    frontend: BTreeMap<String, FrontendTable>,
    system: System,
    #[serde(rename = "cache")]
    _cache: BTreeMap<String, toml::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Log {
    format: String,
    level: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Grpc {
    address: Vec<String>,
    debug_address: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
    #[serde(rename = "securityDescriptor")]
    _security_descriptor: Option<String>,
    tls: Tls,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Tls {
    cert: String,
    key: String,
    ca: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Otel {
    #[serde(rename = "socketPath")]
    _socket_path: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Cdi {
    #[serde(rename = "disabled")]
    _disabled: Option<bool>,
    #[serde(rename = "specDirs")]
    _spec_dirs: Vec<PathBuf>,
    #[serde(rename = "autoAllowed")]
    _auto_allowed: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Workers {
    oci: BTreeMap<String, toml::Value>,
    containerd: BTreeMap<String, toml::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct DnsTable {
    nameservers: Vec<String>,
    options: Vec<String>,
    search_domains: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct History {
    max_age: Option<toml::Value>,
    max_entries: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct FrontendTable {
    enabled: Option<bool>,
    allowed_repositories: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct System {
    #[serde(rename = "platformsCacheMaxAge")]
    _platforms_cache_max_age: Option<toml::Value>,
    max_registry_concurrency: Option<usize>,
}

impl ConfigFile {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML, or has a key or value that is not known.
    pub fn read(path: &Path) -> Result<Self, DaemonError> {
        let bad = |why: String| DaemonError::Config { path: path.display().to_string(), why };
        let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
        Self::parse(&text).map_err(bad)
    }

    /// Reads the text of a configuration file.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| e.to_string().trim().to_owned())?;
        if let Some(name) = table.keys().find(|name| !KNOWN.contains(&name.as_str())) {
            let near = nearest(name, KNOWN.iter().copied()).map(|n| format!(", did you mean `{n}`?"));
            return Err(format!("unknown setting `{name}`{}", near.unwrap_or_default()));
        }
        let file = File::deserialize(table).map_err(|e| e.to_string().trim().to_owned())?;
        let mut settings = Settings { entitlements: file.entitlements, ..Settings::default() };
        worker_table::apply(&file.worker.oci, &mut settings)?;
        containerd(&file.worker.containerd)?;
        for entitlement in &settings.entitlements {
            known_entitlement(entitlement)?;
        }
        if file.proxy_network {
            return Err("proxyNetwork is not supported by this engine".to_owned());
        }
        settings.tls =
            TlsSettings { cert: path(file.grpc.tls.cert), key: path(file.grpc.tls.key), ca: path(file.grpc.tls.ca) };
        settings.debug_address = file.grpc.debug_address.filter(|a| !a.is_empty());
        settings.provenance_env_dir = file.provenance_env_dir;
        settings.registry_concurrency = file.system.max_registry_concurrency;
        for (host, table) in file.registry {
            let host_settings = table.settings().map_err(|why| format!("[registry.\"{host}\"]: {why}"))?;
            settings.registries.insert(host, host_settings);
        }
        settings.dns =
            file.dns.map(|t| Dns { nameservers: t.nameservers, options: t.options, search: t.search_domains });
        settings.history.max_age = file.history.max_age.as_ref().map(duration).transpose()?;
        settings.history.max_entries = file.history.max_entries;
        for (name, table) in file.frontend {
            let enabled = table.enabled.unwrap_or(true);
            match name.as_str() {
                "dockerfile.v0" => settings.frontends.dockerfile = enabled,
                "gateway.v0" => {
                    settings.frontends.gateway = enabled;
                    settings.frontends.allowed_repositories = table.allowed_repositories;
                }
                other => return Err(format!("unknown frontend {other:?}")),
            }
        }
        settings.log_json = match file.log.format.as_str() {
            "json" => true,
            "" | "text" => false,
            other => return Err(format!("unsupported log format {other:?}, use \"json\" or \"text\"")),
        };
        settings.log_level = level(&file.log.level, file.trace)?;
        settings.socket_owner = (file.grpc.uid, file.grpc.gid);
        Ok(Self { settings, root: file.root, addresses: file.grpc.address, debug: file.debug })
    }
}

/// The table of another kind of worker is for whoever has that worker too; only turning it on is refused.
fn containerd(table: &BTreeMap<String, toml::Value>) -> Result<(), String> {
    match table.iter().find(|(key, _)| key.eq_ignore_ascii_case("enabled")) {
        Some((_, toml::Value::Boolean(true))) => {
            Err("[worker.containerd] enabled = true: the containerd worker is not supported by this engine".to_owned())
        }
        _ => Ok(()),
    }
}

fn path(text: String) -> Option<PathBuf> {
    Some(text).filter(|t| !t.is_empty()).map(PathBuf::from)
}

/// Returns the engine's own name of a snapshotter.
///
/// # Errors
/// An unknown one.
pub fn snapshotter(name: &str) -> Result<Option<String>, String> {
    match name {
        "" | "auto" => Ok(None),
        "overlayfs" | "overlay" => Ok(Some("overlay".to_owned())),
        "native" | "copy" => Ok(Some("copy".to_owned())),
        other => Err(format!("snapshotter {other:?} is not supported by this engine, use \"overlayfs\" or \"native\"")),
    }
}

/// Checks the name of an entitlement.
///
/// # Errors
/// An unknown one.
pub fn known_entitlement(name: &str) -> Result<(), String> {
    match name {
        "network.host" | "security.insecure" | "device" => Ok(()),
        other => Err(format!("unknown entitlement {other}")),
    }
}

fn level(text: &str, trace: bool) -> Result<Option<String>, String> {
    match text {
        "" => Ok(trace.then(|| "trace".to_owned())),
        "panic" | "fatal" | "error" => Ok(Some("error".to_owned())),
        "warn" | "warning" => Ok(Some("warn".to_owned())),
        "info" | "debug" | "trace" => Ok(Some(text.to_owned())),
        other => Err(format!("unknown log level {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::network::NetworkKind;
    use crate::space::Space;

    #[test]
    fn a_file_of_that_daemon_is_understood() {
        let file = ConfigFile::parse(
            r#"
            debug = true
            root = "/srv/state"
            insecure-entitlements = ["security.insecure"]
            [grpc]
            address = ["unix:///run/x.sock"]
            gid = 12
            debugAddress = "127.0.0.1:6060"
            [grpc.tls]
            cert = "/c"
            key = "/k"
            [worker.oci]
            maxUsedSpace = "10GB"
            max-parallelism = 3
            binary = "crun"
            networkMode = "bridge"
            bridgeSubnet = "10.9.0.0/16"
            cniPoolSize = 4
            [worker.oci.labels]
            zone = "b"
            [[worker.oci.gcpolicy]]
            all = true
            keepDuration = "48h"
            minFreeSpace = "20%"
            [registry."docker.io"]
            mirrors = ["cache.example:5000/hub"]
            [registry."cache.example:5000"]
            http = true
            [dns]
            nameservers = ["10.0.0.1"]
            searchDomains = ["corp"]
            [history]
            maxAge = "1h30m"
            maxEntries = 7
            [frontend."gateway.v0"]
            allowedRepositories = ["example.com/fe"]
            [system]
            maxRegistryConcurrency = 9
            "#,
        )
        .unwrap();
        assert_eq!(file.root.as_deref(), Some(Path::new("/srv/state")));
        assert_eq!(file.addresses, ["unix:///run/x.sock"]);
        let s = file.settings;
        assert_eq!(s.entitlements, ["security.insecure"]);
        assert_eq!((s.max_parallelism, s.registry_concurrency), (Some(3), Some(9)));
        assert_eq!(s.labels.get("zone").map(String::as_str), Some("b"));
        assert_eq!(s.registries["docker.io"].mirrors, ["cache.example:5000/hub"]);
        assert_eq!(s.registries["cache.example:5000"].http, Some(true));
        assert_eq!(s.dns.unwrap().resolv_conf(), "nameserver 10.0.0.1\nsearch corp\n");
        assert_eq!(s.history.max_age, Some(Duration::from_secs(5400)));
        assert_eq!(s.history.max_entries, Some(7));
        assert_eq!(s.frontends.allowed_repositories, ["example.com/fe"]);
        assert_eq!(s.socket_owner, (None, Some(12)));
        assert_eq!((s.tls.cert.as_deref(), s.tls.ca), (Some(Path::new("/c")), None));
        assert_eq!(s.debug_address.as_deref(), Some("127.0.0.1:6060"));
        assert_eq!(s.runtime.as_deref(), Some(Path::new("crun")));
        assert_eq!(s.network.kind, NetworkKind::parse("bridge").unwrap());
        assert_eq!((s.network.pool, s.network.subnet.is_some()), (4, true));
        let gc = s.gc.unwrap();
        assert_eq!(gc.maximum, Space::Bytes(10 << 30));
        assert_eq!((gc.rules[0].keep, gc.rules[0].free), (Duration::from_secs(48 * 3600), Space::Percent(20)));
    }

    #[test]
    fn garbage_collection_can_be_turned_off() {
        assert!(ConfigFile::parse("[worker.oci]\ngc = false").unwrap().settings.gc.is_none());
        assert!(ConfigFile::parse("[worker.oci]\nsnapshotter = \"auto\"").unwrap().settings.gc.is_some());
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for (text, word) in [
            ("regsitry = 1", "unknown setting `regsitry`, did you mean `registry`?"),
            ("[registry", "unclosed table"),
            ("[worker.oci]\nfancy = true", "fancy"),
            ("insecure-entitlements = [\"fly\"]", "fly"),
            ("[frontend.\"other.v0\"]\nenabled = true", "other.v0"),
            ("[worker.oci]\nsnapshotter = \"tape\"", "tape"),
            ("[worker.oci]\nnetworkMode = \"cni\"", "cni"),
            ("[worker.oci]\nbridgeSubnet = \"10\"", "invalid subnet"),
            ("[worker.oci]\nreservedSpace = \"much\"", "invalid disk space"),
            ("[worker.oci]\nselinux = true", "selinux is not supported"),
            ("[worker.containerd]\nenabled = true", "containerd worker is not supported"),
            ("[history]\nmaxAge = \"1 week\"", "1 week"),
            ("[log]\nformat = \"xml\"", "xml"),
        ] {
            let error = ConfigFile::parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
        assert!(ConfigFile::parse("").unwrap().settings.entitlements.is_empty());
    }
}
