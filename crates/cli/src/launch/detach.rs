//! What an on-demand engine does first: it leaves everything of the client that started it behind.
//!
//! Together with the starter (which gives it `/dev/null` as input, a pipe as output, the log file as error output, and an
//! environment from an allow-list) this leaves nothing of the first client: not its session, directory, umask or descriptors.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Leaves the starter's session. Returns the pipe on which readiness is reported; standard output becomes the log.
///
/// Must be called before the process has threads or descriptors of its own: all from 3 on are closed.
pub fn detach() -> io::Result<OwnedFd> {
    close_from(3)?;
    let ready = rustix::io::fcntl_dupfd_cloexec(io::stdout().as_fd(), 3)?;
    rustix::stdio::dup2_stdout(io::stderr().as_fd())?;
    // Fails only for a process group leader, which a spawned child is not; a shell's job control may have made it one.
    match rustix::process::setsid() {
        Ok(_) | Err(rustix::io::Errno::PERM) => {}
        Err(e) => return Err(e.into()),
    }
    rustix::process::chdir("/")?;
    rustix::process::umask(rustix::fs::Mode::WGRP | rustix::fs::Mode::WOTH);
    Ok(ready)
}

fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: a plain system call on descriptors that nothing in this process owns: it has only just started, and std keeps
    // no descriptor above 2 open at that point.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
