//! Kernel files that a step may not see or not write, as OCI runtimes are told by default.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::FileType;

use super::child::Plan;
use super::files::EMPTY;
use super::tree::RDONLY;
use crate::sys::mount;
use crate::wire::Failure;

/// Shown empty.
pub(crate) const HIDDEN: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Shown read-only.
pub(crate) const FROZEN: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Covers [`HIDDEN`] and freezes [`FROZEN`]; what this kernel does not have needs neither.
pub(super) fn hide(plan: &Plan<'_>) -> Result<(), Failure> {
    for path in HIDDEN {
        if let Some(found) = find(&plan.root, path)? {
            cover(plan, &found).map_err(|error| Failure::mount("mask", *path, error))?;
        }
    }
    for path in FROZEN {
        if let Some(found) = find(&plan.root, path)? {
            freeze(&found).map_err(|error| Failure::mount("read-only bind", *path, error))?;
        }
    }
    Ok(())
}

fn find(root: &OwnedFd, path: &str) -> Result<Option<OwnedFd>, Failure> {
    match mount::locate(root, path) {
        Ok(found) => Ok(Some(found)),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(Failure::mount("mask", path, errno)),
    }
}

fn cover(plan: &Plan<'_>, found: &OwnedFd) -> io::Result<()> {
    let nothing = if FileType::from_raw_mode(rustix::fs::fstat(found)?.st_mode).is_dir() {
        mount::clone_tree(&plan.files.mount, EMPTY, false)?
    } else {
        mount::clone_tree(mount::locate(&plan.root, "dev/null")?, c"", false)?
    };
    mount::change(&nothing, false, RDONLY, false)?;
    mount::attach(nothing, found)
}

fn freeze(found: &OwnedFd) -> io::Result<()> {
    let same = mount::clone_tree(found, c"", true)?;
    mount::change(&same, true, RDONLY, false)?;
    mount::attach(same, found)
}
