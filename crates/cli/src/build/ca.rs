//! `--build-ca`: the CA certificates that steps shall trust beside their distribution's own.
//!
//! Many networks put a proxy with a certificate of its own before every registry. The client reads the bundle, since it is
//! the client's machine whose trust the user means, and serves it over the session under [`SESSION_ID`]; the engine binds
//! it into steps. It is in no key, layer or image config.

use std::path::PathBuf;

use crate::env::Env;
use crate::error::{CliError, io_text};

/// Identity under which the session serves the bundle.
pub const SESSION_ID: &str = "kiln.build-ca";

/// Bundles of the host, in the order in which they are looked for.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A bundle that exists and looks like one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildCa {
    /// The PEM file.
    pub path: PathBuf,
}

/// Parses the value of the flag. `auto` is the bundle of `SSL_CERT_FILE` or of the system, and none when there is no such
/// file; an empty value switches it off.
pub fn parse(value: &str, env: &Env) -> Result<Option<BuildCa>, CliError> {
    if value.is_empty() {
        return Ok(None);
    }
    if value == "auto" {
        let found =
            env.path("SSL_CERT_FILE").into_iter().chain(BUNDLES.iter().map(PathBuf::from)).find(|p| p.is_file());
        return found.map(|path| check(path, "auto")).transpose();
    }
    check(env.cwd().join(value), value).map(Some)
}

fn check(path: PathBuf, shown: &str) -> Result<BuildCa, CliError> {
    let bad = |why: String| CliError::user(format!("--build-ca {shown}: {why}"));
    let data = std::fs::read(&path).map_err(|e| bad(format!("cannot read {}: {}", path.display(), io_text(&e))))?;
    let marker = b"-----BEGIN CERTIFICATE-----";
    if !data.windows(marker.len()).any(|w| w == marker) {
        return Err(bad(format!("{} holds no PEM certificate", path.display())));
    }
    if data.len() > kiln_stdx::limits::SECRET {
        return Err(bad(format!("{} is larger than {}KB", path.display(), kiln_stdx::limits::SECRET / 1024)));
    }
    Ok(BuildCa { path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_auto() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let pem = dir.path().join("ca.pem");
        std::fs::write(&pem, "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n").expect("write");
        std::fs::write(dir.path().join("text"), "hello").expect("write");
        let env = Env::of(&[("SSL_CERT_FILE", pem.to_str().unwrap_or_default())], dir.path());
        let run = |v: &str| parse(v, &env).map_err(|e| e.message().to_owned());
        assert_eq!(run("ca.pem"), Ok(Some(BuildCa { path: pem.clone() })));
        assert_eq!(run("auto"), Ok(Some(BuildCa { path: pem })));
        assert_eq!(run(""), Ok(None));
        assert!(run("text").is_err_and(|e| e.ends_with("holds no PEM certificate")));
        assert!(run("none").is_err_and(|e| e.contains("cannot read")));
    }
}
