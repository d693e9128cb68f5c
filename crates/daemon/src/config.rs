//! What an engine is told when it starts.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use crate::settings::Settings;

/// Settings of one engine process.
#[derive(Debug)]
pub struct DaemonConfig {
    /// State root; absolute, exists, owned by the engine's user.
    pub root: PathBuf,
    /// Addresses to listen on: `unix://PATH`, `tcp://HOST:PORT`, or `fd://` for sockets that the starter hands over. A
    /// path may lead through `/proc/self/fd` when the real one is too long for a socket address; it stays valid while
    /// the engine runs.
    pub addresses: Vec<String>,
    /// How long to go on without connections and work; forever when absent.
    pub idle_timeout: Option<Duration>,
    /// Pipe to the starter: the line `ready` is written to it when the engine serves, any other line before that says that
    /// it is alive and asks for more time. Closed after `ready`.
    pub ready_fd: Option<OwnedFd>,
    /// Identity of this build of kiln, told to clients as the revision in the answer to `Control.Info`. That answer carries
    /// the header `kiln-running-builds` as well, by which a client knows an idle engine of another build.
    pub build_id: String,
    /// Group that may use the socket; by default only the engine's user may.
    pub group: Option<String>,
    /// Whether to log more.
    pub debug: bool,
    /// What an administrator decided.
    pub settings: Settings,
}
