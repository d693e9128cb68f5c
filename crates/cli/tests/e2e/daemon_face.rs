//! The binary under the name of BuildKit's daemon: its flags, its file, sockets that are handed over.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kiln_testkit::TestEnv;

/// Returns the program under the name `buildkitd`.
fn buildkitd(env: &TestEnv) -> PathBuf {
    let path = env.path().join("buildkitd");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kiln"), &path).expect("link");
    path
}

/// A daemon that is ended, and waited for, when the test is over.
struct Daemon(Child);

impl Daemon {
    /// Starts it with one socket, which takes connections at once: they wait in it until the daemon is there.
    fn start(env: &TestEnv, socket: &Path, args: &[&str]) -> Self {
        let listener = UnixListener::bind(socket).expect("bind");
        let fd = listener.as_raw_fd();
        let mut command = Command::new(buildkitd(env));
        command.args(args).env("LISTEN_FDS", "1").env_remove("LISTEN_PID").stdin(Stdio::null());
        // SAFETY: dup2 and fcntl on plain numbers may be called between fork and exec.
        unsafe {
            command.pre_exec(move || {
                let done = if fd == 3 { libc::fcntl(3, libc::F_SETFD, 0) } else { libc::dup2(fd, 3) };
                if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        Self(command.spawn().expect("spawn"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.0.id()) {
            // SAFETY: a signal to a child that was not waited for yet.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        let _ = self.0.wait();
    }
}

#[test]
fn the_daemon_serves_with_flags_and_file() {
    let env = crate::env();
    let (socket, config) = (env.path().join("d.sock"), env.path().join("d.toml"));
    std::fs::write(&config, "[worker.oci]\ngc = false\n[history]\nmaxEntries = 3\n").expect("write");
    let root = env.path().join("state");
    let args = ["--config", &config.display().to_string(), "--root", &root.display().to_string(), "--addr", "fd://"];
    let _daemon = Daemon::start(&env, &socket, &args);
    env.context(&[("Dockerfile", "FROM scratch\nCOPY a /\n"), ("a", "x")]);
    let address = format!("unix://{}", socket.display());
    let context = env.ctx().display().to_string();
    let done = env.kiln(["build", "--addr", &address, "-o", "type=local,dest=out", &context]).finish().ok();
    assert_eq!(std::fs::read_to_string(env.path().join("out/a")).expect("file"), "x", "{}", done.report());
    // Its root is the one of the flag, and entitlements are given by nobody but the administrator.
    assert!(root.join("meta.db").exists());
    let done = env.kiln(["build", "--addr", &address, "--allow", "network.host", &context]).finish();
    done.fails_with("entitlement network.host is not allowed");
}

#[test]
fn a_file_that_is_wrong_is_refused() {
    let env = crate::env();
    let config = env.path().join("d.toml");
    std::fs::write(&config, "[worker.oci]\nfancy = 1\n").expect("write");
    let done = kiln_testkit::Run::new(buildkitd(&env)).args(["--config".as_ref(), config.as_os_str()]).finish();
    assert_eq!(done.code, Some(1), "{}", done.report());
    assert!(done.err().contains("unknown key \"fancy\" in [worker.oci]"), "{}", done.err());
}
