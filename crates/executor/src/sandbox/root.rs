//! The file system of a running sandbox, as its processes see it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};

use crate::ExecError;
use crate::sys::mount::locate;

/// Opens the directory `dest` in the root of the process behind `pidfd`; links in it lead nowhere outside.
pub(super) fn open(pidfd: &OwnedFd, dest: &str) -> Result<OwnedFd, ExecError> {
    enter(pidfd, dest).map_err(|error| ExecError::setup(format!("open {dest} of the sandbox"), error))
}

fn enter(pidfd: &OwnedFd, dest: &str) -> io::Result<OwnedFd> {
    let pid = pid_of(pidfd)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, format!("/proc/{pid}/root"), flags, Mode::empty())?;
    // The number may have gone to somebody else meanwhile, but not while the process is still there.
    pid_of(pidfd)?;
    Ok(locate(&root, dest)?)
}

/// Returns the number of the process behind a descriptor.
fn pid_of(pidfd: &OwnedFd) -> io::Result<u32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    pid.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the process has ended"))
}
