//! Which network steps get that ask for none in particular.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use kiln_executor::{IsolatedConfig, Isolation, Networks, Subnet};

use crate::DaemonError;

/// Asks for isolated networks where the mode is `auto`.
const BRIDGE_AUTO: &str = "BUILDKIT_NETWORK_BRIDGE_AUTO";

/// A kind of network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NetworkKind {
    /// The host's, unless the environment asks for isolated ones.
    #[default]
    Auto,
    /// The host's own.
    Host,
    /// Loopback alone.
    None,
    /// One of its own for each step.
    Isolated(Isolation),
}

impl NetworkKind {
    /// Reads a mode as flags and files have it.
    ///
    /// # Errors
    /// One that is not known, or that this engine has not.
    pub fn parse(mode: &str) -> Result<Self, String> {
        match mode {
            "" | "auto" => Ok(Self::Auto),
            "host" => Ok(Self::Host),
            "none" => Ok(Self::None),
            "bridge" => Ok(Self::Isolated(Isolation::Bridge)),
            "slirp" | "slirp4netns" => Ok(Self::Isolated(Isolation::Slirp)),
            "isolated" => Ok(Self::Isolated(Isolation::Either)),
            other => Err(format!(
                "network mode {other:?} is not supported by this engine, use auto, host, none, bridge, slirp or isolated"
            )),
        }
    }
}

/// What an administrator says of networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkSettings {
    pub kind: NetworkKind,
    /// Name of the bridge; by default one of the engine's own.
    pub bridge: Option<String>,
    /// Addresses of the bridge.
    pub subnet: Option<Subnet>,
    /// How many networks are kept ready.
    pub pool: usize,
}

impl NetworkSettings {
    /// Prepares the networks of the engine at `root`; also returns the word by which clients know them.
    ///
    /// # Errors
    /// This host cannot have them.
    pub fn networks(&self, root: &Path) -> Result<(Networks, String), DaemonError> {
        let usual = Networks::default();
        let kind = match self.kind {
            NetworkKind::Auto if asked_for_bridge() => NetworkKind::Isolated(Isolation::Either),
            kind => kind,
        };
        let auto = match kind {
            NetworkKind::Auto | NetworkKind::Host => usual.host.clone(),
            NetworkKind::None => usual.none.clone(),
            NetworkKind::Isolated(isolation) => {
                let name = self.bridge.clone().unwrap_or_else(|| own_name(root));
                let mut config = IsolatedConfig::new(isolation, name).with_pool(self.pool);
                config.subnet = self.subnet;
                let failed = |e| DaemonError::Start { what: "preparing networks", source: std::io::Error::other(e) };
                config.provider().map_err(failed)?
            }
        };
        let word = auto.name().to_owned();
        Ok((Networks { auto, ..usual }, word))
    }
}

fn asked_for_bridge() -> bool {
    std::env::var(BRIDGE_AUTO).is_ok_and(|v| matches!(v.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"))
}

/// Returns a name that no engine of another root has: links have 15 letters at most.
fn own_name(root: &Path) -> String {
    let mut hasher = DefaultHasher::new();
    root.hash(&mut hasher);
    format!("kiln{:010x}", hasher.finish() & 0xff_ffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read() {
        assert_eq!(NetworkKind::parse(""), Ok(NetworkKind::Auto));
        assert_eq!(NetworkKind::parse("bridge"), Ok(NetworkKind::Isolated(Isolation::Bridge)));
        assert_eq!(NetworkKind::parse("slirp4netns"), NetworkKind::parse("slirp"));
        assert!(NetworkKind::parse("cni").unwrap_err().contains("not supported"));
    }

    #[test]
    fn names_differ_and_fit() {
        let (a, b) = (own_name(Path::new("/a")), own_name(Path::new("/b")));
        assert!(a != b && a.len() <= 15, "{a} {b}");
    }
}
