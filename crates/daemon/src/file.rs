//! The engine's configuration file, in the form of BuildKit's `buildkitd.toml`.
//!
//! The tables `[registry."host"]` and `[system]` are read. Tables that only a BuildKit daemon has a use for are let pass
//! with a line in the log, so that one file serves both; what neither knows is an error.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_registry::{HostConfig, KeyPair, RegistryConfig};
use kiln_stdx::suggest::nearest;
use serde::Deserialize;

use crate::DaemonError;

/// Names at the top of the file that BuildKit has and this engine does not act on.
const PASSED_OVER: [&str; 14] = [
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
    "dns",
    "history",
    "worker",
    "frontend",
];
/// Names that are acted on.
const READ: [&str; 2] = ["registry", "system"];

/// What the file says.
#[derive(Debug, Default)]
pub(crate) struct ConfigFile {
    registry: BTreeMap<String, RegistryTable>,
    system: SystemTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RegistryTable {
    mirrors: Vec<String>,
    http: Option<bool>,
    insecure: bool,
    ca: Vec<PathBuf>,
    keypair: Vec<KeyPairTable>,
    tlsconfigdir: Vec<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyPairTable {
    key: PathBuf,
    cert: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SystemTable {
    max_registry_concurrency: Option<usize>,
}

impl ConfigFile {
    /// Reads the file at `path`.
    pub(crate) fn read(path: &Path) -> Result<Self, DaemonError> {
        let config = |why: String| DaemonError::Config { path: path.display().to_string(), why };
        let text = std::fs::read_to_string(path).map_err(|e| config(e.to_string()))?;
        Self::parse(&text).map_err(config)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| e.to_string().trim().to_owned())?;
        let mut file = Self::default();
        for (name, value) in table {
            let bad = |e: toml::de::Error| format!("[{name}]: {}", e.to_string().trim());
            match name.as_str() {
                "registry" => file.registry = value.try_into().map_err(bad)?,
                "system" => file.system = value.try_into().map_err(bad)?,
                other if PASSED_OVER.contains(&other) => {
                    tracing::info!(name = other, "the configuration has a setting that this engine does not use");
                }
                other => {
                    let near = nearest(other, READ.into_iter().chain(PASSED_OVER));
                    let near = near.map(|n| format!(", did you mean `{n}`?")).unwrap_or_default();
                    return Err(format!("unknown setting `{other}`{near}"));
                }
            }
        }
        Ok(file)
    }

    /// Returns what the registry client is told.
    pub(crate) fn registry(self) -> Result<RegistryConfig, String> {
        let mut config = RegistryConfig::default();
        if let Some(most) = self.system.max_registry_concurrency.filter(|n| *n > 0) {
            config.max_concurrency = most;
        }
        for (host, table) in self.registry {
            let settings = table.settings().map_err(|why| format!("[registry.\"{host}\"]: {why}"))?;
            config.hosts.insert(host, settings);
        }
        Ok(config)
    }
}

impl RegistryTable {
    fn settings(mut self) -> Result<HostConfig, String> {
        for dir in std::mem::take(&mut self.tlsconfigdir) {
            self.add_directory(&dir)?;
        }
        if self.keypair.len() > 1 {
            return Err(format!("one client certificate can be used, and {} are given", self.keypair.len()));
        }
        for file in self.ca.iter().chain(self.keypair.iter().flat_map(|p| [&p.key, &p.cert])) {
            std::fs::File::open(file).map_err(|e| format!("cannot read `{}`: {e}", file.display()))?;
        }
        let keypair = self.keypair.pop().map(|p| KeyPair { key: p.key, cert: p.cert });
        let RegistryTable { mirrors, http, insecure, ca, .. } = self;
        Ok(HostConfig { mirrors, http, insecure, ca, keypair })
    }

    /// Adds the authorities (`*.crt`) and the client certificate (`*.cert` with its `*.key`) of a directory.
    fn add_directory(&mut self, dir: &Path) -> Result<(), String> {
        let listed = std::fs::read_dir(dir).map_err(|e| format!("cannot read `{}`: {e}", dir.display()))?;
        let mut files: Vec<PathBuf> = listed.flatten().map(|entry| entry.path()).collect();
        files.sort();
        for file in files {
            match file.extension().and_then(|e| e.to_str()) {
                Some("crt") => self.ca.push(file),
                Some("cert") => self.keypair.push(KeyPairTable { key: file.with_extension("key"), cert: file }),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(text: &str) -> Result<BTreeMap<String, HostConfig>, String> {
        Ok(ConfigFile::parse(text)?.registry()?.hosts)
    }

    #[test]
    fn registries_are_read() {
        let text = r#"
            debug = true
            [worker.oci]
            gc = true
            [registry."docker.io"]
            mirrors = ["mirror.test", "other.test:5000/hub"]
            [registry."plain.test"]
            http = true
            insecure = true
            [system]
            maxRegistryConcurrency = 9
        "#;
        let config = ConfigFile::parse(text).unwrap().registry().unwrap();
        assert_eq!(config.max_concurrency, 9);
        assert_eq!(config.hosts["docker.io"].mirrors, ["mirror.test", "other.test:5000/hub"]);
        let plain = &config.hosts["plain.test"];
        assert_eq!((plain.http, plain.insecure), (Some(true), true));
    }

    #[test]
    fn a_directory_gives_authorities_and_a_pair() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["own.crt", "client.cert", "client.key", "notes.txt"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let text = format!("[registry.\"r.test\"]\ntlsconfigdir = [\"{}\"]\n", dir.path().display());
        let found = &hosts(&text).unwrap()["r.test"];
        assert_eq!(found.ca, [dir.path().join("own.crt")]);
        let pair = KeyPair { key: dir.path().join("client.key"), cert: dir.path().join("client.cert") };
        assert_eq!(found.keypair, Some(pair));
        std::fs::remove_file(dir.path().join("client.key")).unwrap();
        assert!(hosts(&text).unwrap_err().contains("client.key"));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, want) in [
            ("regsitry = 1", "unknown setting `regsitry`, did you mean `registry`?"),
            ("[registry.\"a\"]\nmirors = []", "unknown field `mirors`"),
            ("[registry.\"a\"]\nca = [\"/nonexistent/ca.pem\"]", "[registry.\"a\"]: cannot read `/nonexistent/ca.pem`"),
            ("[registry", "unclosed table"),
        ] {
            let got = hosts(text).unwrap_err();
            assert!(got.contains(want), "{text}: {got}");
        }
    }
}
