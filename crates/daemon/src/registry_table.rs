//! The tables `[registry."host"]` of the configuration file.

use std::path::{Path, PathBuf};

use kiln_registry::{HostConfig, KeyPair};
use serde::Deserialize;

/// What the file says of one registry.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryTable {
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

impl RegistryTable {
    /// Returns what the registry client is told.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn settings(mut self) -> Result<HostConfig, String> {
        for dir in std::mem::take(&mut self.tlsconfigdir) {
            self.add_directory(&dir)?;
        }
        for file in self.ca.iter().chain(self.keypair.iter().flat_map(|p| [&p.key, &p.cert])) {
            std::fs::File::open(file).map_err(|e| format!("cannot read `{}`: {e}", file.display()))?;
        }
        let RegistryTable { mirrors, http, insecure, ca, keypair, .. } = self;
        let keypairs = keypair.into_iter().map(|p| KeyPair { key: p.key, cert: p.cert }).collect();
        Ok(HostConfig { mirrors, http, insecure, ca, keypairs })
    }

    /// Adds the authorities (`*.crt`) and the client certificates (`*.cert`, each with its `*.key`) of a directory.
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
    use std::collections::BTreeMap;

    use super::*;
    use crate::ConfigFile;

    fn hosts(text: &str) -> Result<BTreeMap<String, HostConfig>, String> {
        Ok(ConfigFile::parse(text)?.settings.registries)
    }

    #[test]
    fn a_directory_gives_authorities_and_pairs() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["own.crt", "client.cert", "client.key", "other.cert", "other.key", "notes.txt"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let text = format!("[registry.\"r.test\"]\ntlsconfigdir = [\"{}\"]\n", dir.path().display());
        let found = &hosts(&text).unwrap()["r.test"];
        assert_eq!(found.ca, [dir.path().join("own.crt")]);
        let pair = |name: &str| KeyPair {
            key: dir.path().join(format!("{name}.key")),
            cert: dir.path().join(format!("{name}.cert")),
        };
        assert_eq!(found.keypairs, [pair("client"), pair("other")]);
        std::fs::remove_file(dir.path().join("client.key")).unwrap();
        assert!(hosts(&text).unwrap_err().contains("client.key"));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, want) in [
            ("[registry.\"a\"]\nmirors = []", "unknown field `mirors`"),
            ("[registry.\"a\"]\nca = [\"/nonexistent/ca.pem\"]", "[registry.\"a\"]: cannot read `/nonexistent/ca.pem`"),
        ] {
            let got = hosts(text).unwrap_err();
            assert!(got.contains(want), "{text}: {got}");
        }
    }
}
