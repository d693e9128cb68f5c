//! Debian's `docker-registry` on loopback: the protocol as somebody else understands it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A running registry; it ends when it is dropped.
pub struct DebianRegistry {
    /// `127.0.0.1:PORT`.
    pub host: String,
    child: Child,
}

/// Certificates that a registry with TLS needs, PEM files in one directory: `ca.pem` signs `server.pem` (key
/// `server.key`) and `client.pem` (key `client.key`).
pub struct Certificates {
    /// The directory.
    pub dir: PathBuf,
}

impl Certificates {
    /// Makes certificates with `openssl`; none where it is not installed.
    ///
    /// # Panics
    /// `openssl` fails.
    pub fn make(dir: &Path) -> Option<Self> {
        let openssl = crate::program("openssl")?;
        let run = |args: &str| {
            let done = crate::Run::new(&openssl).args(args.split_whitespace()).dir(dir).finish();
            assert!(done.code == Some(0), "{}", done.report());
        };
        std::fs::write(dir.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n")
            .unwrap_or_else(|e| panic!("{e}"));
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        // Authorities are told apart by their names.
        let name = dir.file_name().unwrap_or_default().display();
        run(&format!("req -x509 {key} -days 2 -subj /CN=ca-{name} -keyout ca.key -out ca.pem"));
        for name in ["server", "client"] {
            run(&format!("req -new {key} -subj /CN={name} -keyout {name}.key -out {name}.csr"));
            run(&format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out {name}.pem"
            ));
        }
        Some(Self { dir: dir.to_owned() })
    }
}

impl DebianRegistry {
    /// Starts a registry that keeps its content below `dir`; none where the program is not installed or does not start.
    ///
    /// # Panics
    /// The configuration cannot be written.
    pub fn start(dir: &Path) -> Option<Self> {
        Self::serve(dir, "")
    }

    /// As [`Self::start`], with TLS, and for clients that have a certificate only.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_tls(dir: &Path, certificates: &Certificates) -> Option<Self> {
        let file = |name: &str| certificates.dir.join(name).display().to_string();
        let (server, key, ca) = (file("server.pem"), file("server.key"), file("ca.pem"));
        Self::serve(dir, &format!("  tls:\n    certificate: {server}\n    key: {key}\n    clientcas: [{ca}]\n"))
    }

    fn serve(dir: &Path, tls: &str) -> Option<Self> {
        let program = crate::program("docker-registry")?;
        let config = dir.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
             rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n{tls}",
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
