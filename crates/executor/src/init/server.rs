//! The helper's main loop: one packet in, one fork out.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::step::{self, Kit};
use super::userns;
use crate::seccomp::{self, Insn};
use crate::sys::{fds, process};

/// Descriptors of a packet, in this order; the seventh, a network namespace, is optional.
const REQUIRED: usize = 5;

/// Serves packets from standard input, which is a socket to the engine, until it closes.
pub(super) fn serve() -> ! {
    // SAFETY: the engine started this process with a socket as standard input, and nothing else here uses it.
    let socket = unsafe { BorrowedFd::borrow_raw(0) };
    detach();
    let filter = seccomp::default_program();
    userns::look();
    loop {
        match fds::receive(socket) {
            Ok(message) if message.fds.is_empty() => process::exit_now(0),
            Ok(message) => start(message.fds, filter.as_deref()),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::MSGSIZE) => {}
            Err(_) => process::exit_now(1),
        }
    }
}

/// Leaves the engine's terminal, directory and whatever descriptors it let through behind, and lets the kernel reap the forks.
fn detach() {
    // SAFETY: this process has opened nothing yet; what is there was inherited by accident and has no owner here.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    let _ = rustix::process::setsid();
    let _ = rustix::process::chdir("/");
    let _ = rustix::thread::set_name(c"kiln-sandbox");
    // SAFETY: ignoring SIGCHLD needs no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

fn start(descriptors: Vec<OwnedFd>, filter: Option<&[Insn]>) {
    if descriptors.len() < REQUIRED {
        return;
    }
    // SAFETY: this process has a single thread.
    match unsafe { libc::fork() } {
        0 => {}
        // When the fork fails the descriptors close, and the engine sees its socket end without a report.
        _ => return,
    }
    // This fork waits for its own child.
    // SAFETY: the default action needs no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next();
    let (Some(socket), Some(spec), Some(stdin), Some(stdout), Some(stderr)) = (next(), next(), next(), next(), next())
    else {
        process::exit_now(1)
    };
    let kit = Kit { socket, stdio: [stdin, stdout, stderr], netns: next(), filter };
    step::run(spec, kit)
}

/// Keeps the standard streams open on something, so that no other descriptor takes their numbers.
pub(super) fn hold_standard_streams(null: &OwnedFd) -> std::io::Result<()> {
    for number in 0..3 {
        process::redirect(null.as_fd(), number)?;
    }
    Ok(())
}
