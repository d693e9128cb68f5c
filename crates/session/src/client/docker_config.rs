//! Registry logins from docker's `config.json`: stored in it, or by credential helpers it names.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;

use crate::error::SessionError;

/// The key under which Docker Hub's login is kept.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// Names of Docker Hub's registry.
const HUB_HOSTS: [&str; 3] = ["registry-1.docker.io", "docker.io", "index.docker.io"];
/// The user name by which a helper says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";
/// How long a helper may take: it may ask the user.
const HELPER: Duration = Duration::from_secs(60);

/// A login; all empty when there is none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Login {
    pub username: String,
    pub password: String,
    pub identity_token: String,
    pub registry_token: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ConfigFile {
    auths: BTreeMap<String, AuthEntry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct AuthEntry {
    /// Base64 of `user:password`.
    auth: String,
    username: String,
    password: String,
    #[serde(alias = "identityToken")]
    identitytoken: String,
    #[serde(alias = "registryToken")]
    registrytoken: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// docker's configuration, as far as it concerns logins.
#[derive(Clone, Default)]
pub struct DockerConfig {
    file: ConfigFile,
}

impl std::fmt::Debug for DockerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DockerConfig").field("hosts", &self.file.auths.keys()).finish_non_exhaustive()
    }
}

impl DockerConfig {
    /// Returns the directory docker's configuration is in: `DOCKER_CONFIG`, else `~/.docker`.
    pub fn default_dir() -> Option<PathBuf> {
        match std::env::var_os("DOCKER_CONFIG").filter(|d| !d.is_empty()) {
            Some(dir) => Some(dir.into()),
            None => std::env::var_os("HOME").filter(|h| !h.is_empty()).map(|h| Path::new(&h).join(".docker")),
        }
    }

    /// Reads `config.json` of a directory; a missing one is an empty one.
    ///
    /// # Errors
    /// The file cannot be read or is no such configuration.
    pub fn load(dir: &Path) -> Result<Self, SessionError> {
        let path = dir.join("config.json");
        match std::fs::read(&path) {
            Ok(data) => Self::parse(&data).map_err(|e| SessionError::Input(format!("{}: {e}", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(SessionError::io(format!("reading {}", path.display()), error)),
        }
    }

    /// Reads a configuration.
    ///
    /// # Errors
    /// The text is no such configuration.
    pub fn parse(data: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(Self { file: serde_json::from_slice(data)? })
    }

    /// Returns the login for a registry host.
    ///
    /// # Errors
    /// A credential helper fails.
    pub async fn login(&self, host: &str) -> Result<Login, SessionError> {
        let key = if HUB_HOSTS.contains(&host) { HUB_KEY } else { host };
        let names = [key, host, bare_host(key)];
        let own = names.iter().find_map(|n| self.file.cred_helpers.get(*n));
        let helper = own.or(Some(&self.file.creds_store)).filter(|h| !h.is_empty());
        if let Some(helper) = helper
            && let Some(login) = ask_helper(helper, key).await?
        {
            return Ok(login);
        }
        let entry = names
            .iter()
            .find_map(|n| self.file.auths.get(*n))
            .or_else(|| self.file.auths.iter().find(|(k, _)| bare_host(k) == bare_host(key)).map(|(_, e)| e));
        Ok(entry.map(AuthEntry::login).unwrap_or_default())
    }
}

/// Strips scheme and path: keys of old files are URLs.
fn bare_host(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    rest.split('/').next().unwrap_or(rest)
}

impl AuthEntry {
    fn login(&self) -> Login {
        let mut login = Login {
            username: self.username.clone(),
            password: self.password.clone(),
            identity_token: self.identitytoken.clone(),
            registry_token: self.registrytoken.clone(),
        };
        if let Ok(pair) = BASE64.decode(self.auth.trim())
            && let Ok(pair) = String::from_utf8(pair)
            && let Some((user, password)) = pair.split_once(':')
        {
            login.username = user.to_owned();
            // Old clients padded the password.
            login.password = password.trim_end_matches('\0').to_owned();
        }
        login
    }
}

/// Runs `docker-credential-<helper> get`; none when it knows no login.
async fn ask_helper(helper: &str, key: &str) -> Result<Option<Login>, SessionError> {
    let program = format!("docker-credential-{helper}");
    let failed = |e: io::Error| SessionError::io(format!("running {program}"), e);
    let mut child = tokio::process::Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read its input says so by its exit.
        let _ = stdin.write_all(key.as_bytes()).await;
    }
    let output = tokio::time::timeout(HELPER, child.wait_with_output()).await;
    let output = output
        .map_err(|_| SessionError::Deadline { what: "waiting for a credential helper".into(), after: HELPER })?
        .map_err(failed)?;
    if !output.status.success() {
        let text = [output.stdout.as_slice(), &output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        if text.contains("credentials not found") || text.contains("no credentials") {
            return Ok(None);
        }
        return Err(SessionError::Input(format!("{program} failed for {key}: {}", text.trim())));
    }
    let answer: HelperAnswer = serde_json::from_slice(&output.stdout)
        .map_err(|e| SessionError::Input(format!("{program} gave no valid answer: {e}")))?;
    Ok(Some(if answer.username == TOKEN_USER {
        Login { identity_token: answer.secret, ..Login::default() }
    } else {
        Login { username: answer.username, password: answer.secret, ..Login::default() }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stored_logins_are_found_under_all_names() {
        let config = DockerConfig::parse(
            br#"{"auths":{
                "https://index.docker.io/v1/":{"auth":"aHVtOmJ1Zw=="},
                "reg.test:5000":{"username":"u","password":"p"},
                "https://old.test/v2/":{"identitytoken":"idt"}
            },"HttpHeaders":{"x":"y"}}"#,
        )
        .unwrap();
        let hub = config.login("registry-1.docker.io").await.unwrap();
        assert_eq!((hub.username.as_str(), hub.password.as_str()), ("hum", "bug"));
        assert_eq!(config.login("docker.io").await.unwrap(), hub);
        assert_eq!(config.login("reg.test:5000").await.unwrap().password, "p");
        assert_eq!(config.login("old.test").await.unwrap().identity_token, "idt");
        assert_eq!(config.login("nowhere.test").await.unwrap(), Login::default());
        assert!(!format!("{hub:?}").contains("bug"));
    }

    #[tokio::test]
    async fn a_helper_that_is_not_there_is_an_error() {
        let config = DockerConfig::parse(br#"{"credHelpers":{"h.test":"kiln-has-none"}}"#).unwrap();
        let error = config.login("h.test").await.unwrap_err();
        assert!(error.to_string().contains("docker-credential-kiln-has-none"), "{error}");
    }

    #[test]
    fn a_missing_file_is_empty_and_a_broken_one_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(DockerConfig::load(dir.path()).unwrap().file.auths.is_empty());
        std::fs::write(dir.path().join("config.json"), "{").unwrap();
        assert!(DockerConfig::load(dir.path()).is_err());
    }
}
