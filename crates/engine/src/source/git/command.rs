//! Running `git`: nothing of the host's configuration reaches it, nothing asks on a terminal, credentials are passed
//! by its environment and never by its arguments.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use base64::Engine as _;
use kiln_llb::op::SessionFile;
use kiln_session::Session;
use kiln_stdx::{Digest, ErrorClass, Secret};
use tempfile::TempPath;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::sync::CancellationToken;

use super::identifier::GitSource;
use crate::error::EngineError;
use crate::parts::Parts;
use crate::session::{self, SshSocket};

/// Most bytes of output that are kept of one command; listings of references are the longest.
const MAX_OUTPUT: usize = 64 << 20;
/// Seconds without a byte after which a transfer is given up.
const STALL: &str = "60";

/// Shows what git prints: stream number and bytes.
pub type GitLog = Arc<dyn Fn(i32, &[u8]) + Send + Sync>;

/// How to run git for one source: credentials, log, who may call it off.
#[derive(Clone)]
pub struct Git {
    access: Arc<Access>,
    git_dir: Option<PathBuf>,
    work_tree: Option<PathBuf>,
    log: GitLog,
    cancel: CancellationToken,
    offline: bool,
}

/// What a remote has to be asked with; lives as long as commands may run.
struct Access {
    /// `git -c` settings, by the environment.
    config: Vec<(String, String)>,
    ssh_command: String,
    agent: Option<SshSocket>,
    known_hosts: Option<TempPath>,
    identity: Option<Digest>,
}

impl Git {
    /// Prepares access to the remote of `source` with what the sessions have; offline no remote is spoken to.
    ///
    /// # Errors
    /// A session that fails, or an agent that is wanted and not forwarded.
    pub async fn open(
        parts: &Parts,
        sessions: &[Arc<Session>],
        source: &GitSource,
        (log, offline): (GitLog, bool),
        cancel: CancellationToken,
    ) -> Result<Self, EngineError> {
        let mut access =
            Access { config: Vec::new(), ssh_command: String::new(), agent: None, known_hosts: None, identity: None };
        if let Some(header) = authorization(sessions, source).await? {
            access.identity = Some(Digest::of(header.expose()));
            let header = String::from_utf8_lossy(header.expose()).trim().to_owned();
            let key = format!("http.{}.extraheader", scope(&source.remote));
            access.config.push((key, format!("Authorization: {header}")));
        }
        if let Some(id) = &source.ssh {
            let file = SessionFile { id: id.clone(), uid: 0, gid: 0, mode: 0o600, optional: true };
            access.agent = session::ssh_socket_of(parts, sessions, &file).await?;
        }
        let mut ssh = "ssh -F /dev/null -o BatchMode=yes -o ConnectTimeout=60 -o ServerAliveInterval=15".to_owned();
        match &source.known_hosts {
            Some(keys) => {
                let file = tempfile::NamedTempFile::new_in(parts.runtime_dir.path())?;
                std::fs::write(file.path(), keys)?;
                ssh.push_str(&format!(" -o UserKnownHostsFile={}", file.path().display()));
                access.known_hosts = Some(file.into_temp_path());
            }
            None => ssh.push_str(" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"),
        }
        access.ssh_command = ssh;
        Ok(Self { access: Arc::new(access), git_dir: None, work_tree: None, log, cancel, offline })
    }

    /// Names the credentials, so that what was fetched with them is kept apart.
    pub fn identity(&self) -> Option<Digest> {
        self.access.identity
    }

    /// Tells whether no remote is spoken to.
    pub fn is_offline(&self) -> bool {
        self.offline
    }

    /// Returns the same for a repository.
    #[must_use]
    pub fn at(&self, git_dir: &Path, work_tree: Option<&Path>) -> Self {
        Self { git_dir: Some(git_dir.to_owned()), work_tree: work_tree.map(Path::to_owned), ..self.clone() }
    }

    fn command(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new("git");
        command.args(["-c", "protocol.file.allow=user", "-c", "gc.auto=0", "-c", "maintenance.auto=false"]);
        if let Some(tree) = &self.work_tree {
            command.arg("--work-tree").arg(tree).current_dir(tree);
        } else {
            command.current_dir("/");
        }
        if let Some(dir) = &self.git_dir {
            command.arg("--git-dir").arg(dir);
        }
        command.args(args).env_clear();
        for name in ["PATH", "http_proxy", "https_proxy", "no_proxy", "all_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR"] {
            for name in [name.to_owned(), name.to_uppercase()] {
                if let Some(value) = std::env::var_os(&name) {
                    command.env(&name, value);
                }
            }
        }
        command
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_HTTP_LOW_SPEED_LIMIT", "1")
            .env("GIT_HTTP_LOW_SPEED_TIME", STALL)
            .env("HOME", "/dev/null")
            .env("LC_ALL", "C")
            .env("GIT_SSH_COMMAND", &self.access.ssh_command);
        if self.offline {
            command.env("GIT_ALLOW_PROTOCOL", "file");
        }
        if let Some(agent) = &self.access.agent {
            command.env("SSH_AUTH_SOCK", OsString::from(agent.path()));
        }
        command.env("GIT_CONFIG_COUNT", self.access.config.len().to_string());
        for (number, (key, value)) in self.access.config.iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{number}"), key).env(format!("GIT_CONFIG_VALUE_{number}"), value);
        }
        // A group of its own: git starts transports that must end with it.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        command
    }

    /// Runs a command and returns what it wrote to standard output.
    ///
    /// # Errors
    /// The command failed or was called off; git's own words are in the message.
    pub async fn run(&self, args: &[&str]) -> Result<Vec<u8>, EngineError> {
        self.output(args, false).await
    }

    /// As [`Git::run`], showing what it prints.
    ///
    /// # Errors
    /// As [`Git::run`].
    pub async fn run_shown(&self, args: &[&str]) -> Result<Vec<u8>, EngineError> {
        self.output(args, true).await
    }

    /// Tells whether a command succeeds.
    ///
    /// # Errors
    /// Git could not be run, or the command was called off.
    pub async fn succeeds(&self, args: &[&str]) -> Result<bool, EngineError> {
        match self.run(args).await {
            Ok(_) => Ok(true),
            Err(e) if e.class() == ErrorClass::Remote => Ok(false),
            Err(e) => Err(e),
        }
    }

    async fn output(&self, args: &[&str], show: bool) -> Result<Vec<u8>, EngineError> {
        let mut child = self.command(args).spawn().map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                EngineError::new(ErrorClass::Environment, "git sources need the program git")
                    .with_hint("install git on the engine's host")
            }
            _ => EngineError::new(ErrorClass::Environment, format!("cannot run git: {e}")),
        })?;
        let _group = Group(child.id());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let quiet: GitLog = Arc::new(|_, _| {});
        let log = if show { &self.log } else { &quiet };
        let streams = async {
            let (out, err) = tokio::join!(read(stdout, 1, log), read(stderr, 2, log));
            (out, err, child.wait().await)
        };
        let (out, err, status) = tokio::select! {
            ended = streams => ended,
            () = self.cancel.cancelled() => return Err(EngineError::canceled()),
        };
        let status = status?;
        if status.success() {
            return Ok(out);
        }
        let text = String::from_utf8_lossy(&err);
        Err(EngineError::new(ErrorClass::Remote, format!("git error: {status}\ngit stderr:\n{}", text.trim_end())))
    }
}

/// Ends whatever git left behind.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // No such group: everything ended, as it should.
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

async fn read(stream: Option<impl AsyncRead + Unpin>, number: i32, log: &GitLog) -> Vec<u8> {
    let mut all = Vec::new();
    let Some(mut stream) = stream else { return all };
    let mut buffer = vec![0; 32 << 10];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        log(number, &buffer[..length]);
        if all.len() < MAX_OUTPUT {
            all.extend_from_slice(&buffer[..length]);
        }
    }
    all
}

/// Returns the value of the `Authorization` header: of the secrets, those named for the host come first.
async fn authorization(sessions: &[Arc<Session>], source: &GitSource) -> Result<Option<Secret>, EngineError> {
    if !source.remote.starts_with("http://") && !source.remote.starts_with("https://") {
        return Ok(None);
    }
    let host = host(&source.remote);
    let names = [(&source.header_secret, false), (&source.token_secret, true)];
    for suffix in [format!(".{host}"), String::new()] {
        for (name, token) in names {
            let Some(name) = name else { continue };
            let Some(value) = session::secret_of(sessions, &format!("{name}{suffix}")).await? else { continue };
            if !token {
                return Ok(Some(value));
            }
            let mut login = b"x-access-token:".to_vec();
            login.extend_from_slice(value.expose());
            let login = base64::engine::general_purpose::STANDARD.encode(login);
            return Ok(Some(Secret::new(format!("basic {login}"))));
        }
    }
    Ok(None)
}

fn host(remote: &str) -> &str {
    let rest = remote.split_once("://").map_or(remote, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or(rest);
    authority.rsplit('@').next().unwrap_or(authority)
}

/// Returns the addresses that credentials are for: the remote itself, or all of GitHub, whose submodules share them.
fn scope(remote: &str) -> &str {
    for prefix in ["https://github.com/", "https://www.github.com/"] {
        if remote.starts_with(prefix) {
            return prefix;
        }
    }
    remote
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_go_to_their_host_alone() {
        assert_eq!(host("https://u:p@forge.test:8443/a/b"), "forge.test:8443");
        assert_eq!(scope("https://forge.test/a/b"), "https://forge.test/a/b");
        assert_eq!(scope("https://github.com/a/b"), "https://github.com/");
    }
}
