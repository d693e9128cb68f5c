//! Debian's `docker-registry` on loopback: the protocol as somebody else understands it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A running registry; it ends when it is dropped.
pub struct DebianRegistry {
    /// `127.0.0.1:PORT`.
    pub host: String,
    child: Child,
}

impl DebianRegistry {
    /// Starts a registry that keeps its content below `dir`; none where the program is not installed or does not start.
    ///
    /// # Panics
    /// The configuration cannot be written.
    pub fn start(dir: &Path) -> Option<Self> {
        let program = crate::program("docker-registry")?;
        let config = dir.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
             rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n",
            dir.join("registry").display()
        );
        std::fs::write(&config, text).unwrap_or_else(|e| panic!("{}: {e}", config.display()));
        let mut command = Command::new(program);
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().ok()?;
        let mut log = BufReader::new(child.stderr.take()?);
        let mut line = String::new();
        // It says where it listens; its log ends if it does not start.
        while log.read_line(&mut line).is_ok_and(|n| n > 0) {
            if let Some((_, rest)) = line.split_once("listening on ") {
                let host = rest.split(['"', ' ', '\n', ',']).next().unwrap_or_default().to_owned();
                std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
                return Some(Self { host, child });
            }
            line.clear();
        }
        let _ = child.wait();
        None
    }
}

impl Drop for DebianRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
