//! `/dev` of a sandbox: a tmpfs with the few devices every program expects, pseudo-terminals, shared memory and message
//! queues.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags, makedev};

use super::child::Plan;
use super::tree::{self, NODEV, NOEXEC, NOSUID};
use crate::idmap::IdMaps;
use crate::sys::mount::{self, Opt};
use crate::wire::Failure;

/// Name, major and minor number.
const NODES: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// What an unconfined step gets besides, where the host has it.
const HOST_NODES: &[&str] = &["kmsg", "cuse", "fuse", "kvm", "net/tun", "loop-control"];
/// How many loop devices an unconfined step gets.
const LOOPS: u32 = 16;

const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
];

/// Mounts `/dev` and what is below it.
pub(super) fn mount(plan: &Plan<'_>) -> Result<(), Failure> {
    let options = [Opt::Value("mode", "755"), Opt::Value("size", "65536k")];
    let attrs = NOSUID | rustix::mount::MountAttrFlags::MOUNT_ATTR_STRICTATIME;
    let dev = tree::mount_new(plan, "/dev", "tmpfs", &options, attrs)?;
    fill(plan, &dev).map_err(|error| Failure::setup("fill /dev", error))?;
    let mut pts = vec![Opt::Flag("newinstance"), Opt::Value("ptmxmode", "0666"), Opt::Value("mode", "0620")];
    // With a single id there is no group 5.
    if plan.spec.idmaps.as_ref().is_none_or(IdMaps::is_full) {
        pts.push(Opt::Value("gid", "5"));
    }
    tree::mount_new(plan, "/dev/pts", "devpts", &pts, NOSUID | NOEXEC)?;
    let size = plan.spec.shm_size.to_string();
    let shm = [Opt::Value("mode", "1777"), Opt::Value("size", &size)];
    tree::mount_new(plan, "/dev/shm", "tmpfs", &shm, NOSUID | NODEV | NOEXEC)?;
    tree::mount_new(plan, "/dev/mqueue", "mqueue", &[], NOSUID | NODEV | NOEXEC).map(drop)
}

fn fill(plan: &Plan<'_>, dev: &OwnedFd) -> io::Result<()> {
    for dir in ["pts", "shm", "mqueue"] {
        rustix::fs::mkdirat(dev, dir, Mode::from_raw_mode(0o755))?;
    }
    for &(name, major, minor) in NODES {
        node(dev, name, FileType::CharacterDevice, 0o666, (major, minor))?;
    }
    for &(name, target) in LINKS {
        rustix::fs::symlinkat(target, dev, name)?;
    }
    if plan.spec.insecure {
        host_nodes(dev)?;
    }
    Ok(())
}

/// Makes a device node; where the kernel forbids that (user namespaces), binds the host's.
fn node(dev: &OwnedFd, name: &str, kind: FileType, mode: u32, number: (u32, u32)) -> io::Result<()> {
    match rustix::fs::mknodat(dev, name, kind, Mode::from_raw_mode(mode), makedev(number.0, number.1)) {
        Err(rustix::io::Errno::PERM) => {
            let path = CString::new(format!("/dev/{name}"))?;
            let host = mount::clone_tree(rustix::fs::CWD, &path, false)?;
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(dev, name, flags, Mode::from_raw_mode(0o600))?;
            mount::attach(host, mount::locate(dev, name)?)
        }
        result => Ok(result?),
    }
}

fn host_nodes(dev: &OwnedFd) -> io::Result<()> {
    rustix::fs::mkdirat(dev, "net", Mode::from_raw_mode(0o755))?;
    let loops = (0..LOOPS).map(|number| format!("loop{number}"));
    for name in HOST_NODES.iter().map(|name| (*name).to_owned()).chain(loops) {
        let Ok(stat) = rustix::fs::stat(format!("/dev/{name}")) else { continue };
        let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        node(dev, &name, FileType::from_raw_mode(stat.st_mode), stat.st_mode & 0o777, number)?;
    }
    Ok(())
}
