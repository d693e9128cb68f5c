//! A user namespace for the step's helper when the engine is not root: inside it the helper has the capabilities that making
//! a sandbox takes.

use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::UnshareFlags;

use crate::idmap::{IdMaps, Range};
use crate::sys::process;
use crate::wire::Failure;

/// Whether this process is in a user namespace that is not the machine's own. The helper finds out when it starts; its
/// forks inherit the answer.
static INSIDE: AtomicBool = AtomicBool::new(false);

/// Looks whether the whole helper was started inside one.
pub(super) fn look() {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let whole = ["0", "0", "4294967295"];
    INSIDE.store(!map.split_whitespace().eq(whole), Ordering::Relaxed);
}

/// Tells whether this process is in one.
pub(super) fn inside() -> bool {
    INSIDE.load(Ordering::Relaxed)
}

/// Enters a new user namespace, with a mount namespace that belongs to it.
pub(super) fn enter(maps: &IdMaps) -> Result<(), Failure> {
    let unshare = || {
        // SAFETY: this process has a single thread; descriptors stay shared with nobody.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }.map_err(io::Error::from)
    };
    let entered = match &maps.programs {
        None => unshare().and_then(|()| write_own(maps)),
        Some(programs) => mapped_by(programs, maps, unshare),
    };
    entered.map_err(|error| Failure::setup("enter a user namespace", error))?;
    INSIDE.store(true, Ordering::Relaxed);
    Ok(())
}

/// Maps the one id a process may map by itself.
fn write_own(maps: &IdMaps) -> io::Result<()> {
    let text = |ranges: &[Range]| -> String {
        ranges.iter().map(|range| format!("{} {} {}\n", range.inside, range.outside, range.count)).collect()
    };
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", text(&maps.users))?;
    std::fs::write("/proc/self/gid_map", text(&maps.groups))
}

/// Has the maps written by programs that are allowed to, from a fork that stays outside of the namespace.
fn mapped_by(programs: &(String, String), maps: &IdMaps, unshare: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let (ready, ready_out) = pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: this process has a single thread.
    let writer = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            drop(ready_out);
            let mut byte = [0u8; 1];
            let told = std::fs::File::from(ready).read_exact(&mut byte).is_ok();
            let written = told && run(&programs.0, own, &maps.users) && run(&programs.1, own, &maps.groups);
            process::exit_now(i32::from(!written))
        }
        writer => writer,
    };
    drop(ready);
    let entered = unshare();
    if entered.is_ok() {
        std::fs::File::from(ready_out).write_all(b"r")?;
    } else {
        drop(ready_out);
    }
    let (status, _) = process::wait(writer)?;
    entered?;
    if status == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
}

fn run(program: &str, pid: i32, ranges: &[Range]) -> bool {
    let numbers = ranges.iter().flat_map(|range| [range.inside, range.outside, range.count]);
    let status = Command::new(program)
        .arg(pid.to_string())
        .args(numbers.map(|number| number.to_string()))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}
