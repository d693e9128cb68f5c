//! Starts the engine of a root when none answers.
//!
//! Starters take turns by a file lock, so that of many clients one starts an engine and the others find it. The engine
//! reports on a pipe: each line it writes shows that it is alive (recovery after a crash may take a while), the line `ready`
//! ends the wait, and its end without that line is a failure, told with the last lines of its log.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;

use super::root::Root;
use crate::env::Env;
use crate::error::{CliError, io_text};

/// How long an engine may be silent while it starts.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// The log is set aside when it has grown beyond this many bytes.
const LOG_LIMIT: u64 = 8 << 20;
/// Lines of the log shown when an engine does not start.
const LOG_LINES: usize = 10;
/// What an engine without work waits before it ends, unless `KILN_IDLE_TIMEOUT` says otherwise.
const IDLE_TIMEOUT: &str = "5m";

/// Variables an engine is given when they are set. Nothing here carries a credential or the address of an agent; proxies are
/// passed only without a user in them.
const PASSED: [&str; 15] = [
    "PATH",
    "HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_RUNTIME_DIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "RUST_BACKTRACE",
    "TMPDIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// Prefixes of variables that steer the engine itself.
const PREFIXES: [&str; 2] = ["KILN_", "BUILDKIT_STEP_LOG_"];

/// Takes the start lock of a root; it is released when the file is dropped.
///
/// Waits for as long as another starter holds it, which its own deadline bounds.
pub fn lock(root: &Root) -> Result<File, CliError> {
    root.create()?;
    let path = root.start_lock();
    let failed = |e: io::Error| root.cannot("lock", &e);
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path).map_err(failed)?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
    Ok(file)
}

/// Starts an engine and waits until it is ready. The start lock must be held.
pub fn start(root: &Root, env: &Env, debug: bool) -> Result<(), CliError> {
    let log = open_log(root).map_err(|e| root.cannot("write to", &e))?;
    let begin = log.metadata().map(|m| m.len()).unwrap_or(0);
    // The link leads to this very build, also when the file has been replaced since.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("kiln").args(["daemon", "run", "--on-demand", "--idle-timeout"]);
    command.arg(env.var("KILN_IDLE_TIMEOUT").unwrap_or(IDLE_TIMEOUT)).arg("--root").arg(root.path());
    if debug {
        command.arg("--debug");
    }
    command.env_clear().envs(environment(env)).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut child =
        command.spawn().map_err(|e| CliError::environment(format!("cannot start the engine: {}", io_text(&e))))?;
    let Some(pipe) = child.stdout.take() else {
        return Err(CliError::environment("cannot start the engine: no pipe"));
    };
    let why = match wait_ready(pipe, START_DEADLINE) {
        Ok(true) => return Ok(()),
        Ok(false) => "it ended before it was ready".to_owned(),
        Err(e) => io_text(&e),
    };
    // The engine is of no use to anyone now; errors only mean that it is gone already.
    let _ = child.kill();
    let _ = child.wait();
    Err(failure(root, begin, &why))
}

/// Returns the environment of an engine.
fn environment(env: &Env) -> Vec<(String, std::ffi::OsString)> {
    env.all()
        .filter(|(name, value)| {
            let listed = PASSED.contains(name) || PREFIXES.iter().any(|p| name.starts_with(p));
            let proxy = name.to_ascii_uppercase().ends_with("_PROXY");
            listed && *name != "KILN_ROOT" && !(proxy && value.to_string_lossy().contains('@'))
        })
        .map(|(name, value)| (name.to_owned(), value.clone()))
        .collect()
}

fn open_log(root: &Root) -> io::Result<File> {
    let path = root.log();
    if std::fs::metadata(&path).is_ok_and(|m| m.len() > LOG_LIMIT) {
        std::fs::rename(&path, path.with_extension("log.old"))?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Reads until the line `ready`; false when the pipe ends before.
fn wait_ready(mut pipe: impl Read + AsFd, silence: Duration) -> io::Result<bool> {
    let mut text = Vec::new();
    let mut deadline = Instant::now() + silence;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut fds = [PollFd::new(&pipe, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => {
                let text = format!("it is not ready after {} seconds", silence.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
        let mut buffer = [0u8; 512];
        let n = pipe.read(&mut buffer)?;
        if n == 0 {
            return Ok(false);
        }
        text.extend_from_slice(&buffer[..n]);
        if text.split(|&b| b == b'\n').any(|line| line == b"ready") {
            return Ok(true);
        }
        deadline = Instant::now() + silence;
    }
}

fn failure(root: &Root, begin: u64, why: &str) -> CliError {
    let log = root.log();
    let mut lines = Vec::new();
    if let Ok(data) = std::fs::read(&log) {
        let fresh = data.get(usize::try_from(begin).unwrap_or(usize::MAX)..).unwrap_or_default();
        lines = String::from_utf8_lossy(fresh).lines().map(str::to_owned).collect();
    }
    let mut error = CliError::environment(format!("cannot start the engine: {why}"));
    if !lines.is_empty() {
        let from = lines.len().saturating_sub(LOG_LINES);
        error = error.excerpt(format!("------\n > engine log:\n{}\n------\n", lines[from..].join("\n")));
    }
    error.hint(format!("the engine's messages are in {}", log.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_environment_is_an_allow_list() {
        let env = Env::of(
            &[
                ("PATH", "/bin"),
                ("SSH_AUTH_SOCK", "/run/agent"),
                ("AWS_SECRET_ACCESS_KEY", "x"),
                ("KILN_FAULT", "a:kill"),
                ("KILN_ROOT", "/r"),
                ("http_proxy", "http://proxy:3128"),
                ("HTTPS_PROXY", "http://user:word@proxy:3128"),
                ("LANG", "de"),
            ],
            std::path::Path::new("/"),
        );
        let names: Vec<String> = environment(&env).into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["KILN_FAULT", "PATH", "http_proxy"]);
    }

    #[test]
    fn readiness() {
        for (text, want) in [("ready\n", true), ("recovering\nready\n", true), ("read", false), ("", false)] {
            let (reader, mut writer) = io::pipe().expect("pipe");
            writer.write_all(text.as_bytes()).expect("write");
            drop(writer);
            assert_eq!(wait_ready(reader, Duration::from_secs(5)).ok(), Some(want), "{text:?}");
        }
        let (reader, _writer) = io::pipe().expect("pipe");
        let error = wait_ready(reader, Duration::ZERO).expect_err("silent");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn the_lock_is_exclusive() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let env = Env::of(&[], dir.path());
        let root = Root::choose(Some(dir.path()), &env).expect("root");
        let held = lock(&root).expect("lock");
        let other = File::open(root.start_lock()).expect("open");
        assert!(rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive).is_err());
        drop(held);
        assert!(rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive).is_ok());
    }
}
