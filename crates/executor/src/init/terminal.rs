//! A terminal for the process, from the sandbox's own devpts.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::TtySize;
use crate::sys::{fds, process};
use crate::wire::Report;

/// Opens a terminal, makes it the process's controlling one and its standard streams, and sends the other end to the engine.
pub(super) fn open(socket: &OwnedFd, size: TtySize, owner: u32) -> io::Result<()> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::open(c"/dev/pts/ptmx", flags, Mode::empty())?;
    let locked: libc::c_int = 0;
    // SAFETY: the ioctl reads one integer.
    if unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK as _, &raw const locked) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the ioctl takes open flags and returns a new descriptor.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER as _, libc::O_RDWR | libc::O_NOCTTY) };
    if slave < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and owned by nobody else.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(owner)), None)?;
    let size = rustix::termios::Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&slave, size)?;
    for number in 0..3 {
        process::redirect(slave.as_fd(), number)?;
    }
    if slave.as_raw_fd() < 3 {
        // It took the number of a stream that was closed; it must stay open.
        std::mem::forget(slave);
    }
    // SAFETY: standard input is the terminal that was just put there.
    rustix::process::ioctl_tiocsctty(unsafe { std::os::fd::BorrowedFd::borrow_raw(0) })?;
    let json = serde_json::to_vec(&Report::Terminal)?;
    Ok(fds::send(socket, &json, &[master.as_fd()])?)
}
