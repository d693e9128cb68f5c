//! Assembles the file system tree of a sandbox inside its new mount namespace, and makes its root the root.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::mount::{MountAttrFlags, UnmountFlags};

use super::child::Plan;
use super::files::{self, ROOT};
use super::{devices, masks, stubs, userns};
use crate::sys::mount::{self, Opt};
use crate::wire::{Failure, WireSandboxMount, WireSpec};

pub(super) const NOSUID: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID;
pub(super) const NODEV: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
pub(super) const NOEXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOEXEC;
pub(super) const RDONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;

/// Builds the whole tree and moves into it. Afterwards no path leads to the host any more.
pub(super) fn enter(plan: &Plan<'_>) -> Result<(), Failure> {
    let host = isolate()?;
    attach_root(plan, &host)?;
    system_mounts(plan)?;
    for (number, wanted) in plan.spec.mounts.iter().enumerate() {
        attach(plan, number, wanted)?;
    }
    if !plan.spec.insecure {
        masks::hide(plan)?;
    }
    if plan.spec.root_readonly {
        mount::change(&plan.root, false, RDONLY, false).map_err(|error| Failure::mount("root", "/", error))?;
    }
    make_root(plan, &host).map_err(|error| Failure::setup("change the root", error))
}

/// Ends all propagation between this mount namespace and the host's, and returns the host's root.
pub(super) fn isolate() -> Result<OwnedFd, Failure> {
    let host = rustix::fs::open(c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Failure::setup("open the host's root", errno))?;
    mount::change(&host, true, MountAttrFlags::empty(), true)
        .map_err(|error| Failure::setup("end mount propagation", error))?;
    Ok(host)
}

/// Attaches the sandbox's tmpfs over the host's root, where no process looks, and the new root inside it.
fn attach_root(plan: &Plan<'_>, host: &OwnedFd) -> Result<(), Failure> {
    let attach = || -> io::Result<()> {
        mount::attach(&plan.files.mount, host)?;
        let place = rustix::fs::openat(&plan.files.mount, ROOT, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        mount::attach(&plan.root, place)
    };
    attach().map_err(|error| Failure::mount("root", "/", error))
}

fn system_mounts(plan: &Plan<'_>) -> Result<(), Failure> {
    let spec = plan.spec;
    let system = NOSUID | NODEV | NOEXEC;
    let sys = if spec.insecure { system } else { system | RDONLY };
    mount_new(plan, "/proc", "proc", &[], system)?;
    devices::mount(plan)?;
    match mount_new(plan, "/sys", "sysfs", &[], sys) {
        // In a user namespace that does not own the network, only what is mounted already can be shown.
        Err(Failure::Mount { errno: libc::EPERM, .. }) if userns::inside() => return host_sys(plan),
        mounted => mounted?,
    };
    control_groups(plan, sys)
}

/// Shows the host's `/sys` with all below it, read-only.
fn host_sys(plan: &Plan<'_>) -> Result<(), Failure> {
    let bind = || -> io::Result<()> {
        let tree = super::mounts::bind(Path::new("/sys"), true)?;
        mount::attach(tree, target(&plan.root, "/sys", true)?)
    };
    bind().map_err(|error| Failure::mount("the host's /sys", "/sys", error))
}

/// Makes a file system and attaches it.
pub(super) fn mount_new(
    plan: &Plan<'_>,
    dest: &str,
    kind: &str,
    options: &[Opt<'_>],
    attrs: MountAttrFlags,
) -> Result<OwnedFd, Failure> {
    let fail = |error| Failure::mount(kind, dest, error);
    let tree = mount::new_fs(kind, options, attrs).map_err(fail)?;
    let place = target(&plan.root, dest, true).map_err(fail)?;
    mount::attach(&tree, place).map_err(fail)?;
    Ok(tree)
}

/// Shows the process its control groups: all of them in a namespace of its own on a v2 host; else those that limit it.
fn control_groups(plan: &Plan<'_>, attrs: MountAttrFlags) -> Result<(), Failure> {
    const DEST: &str = "/sys/fs/cgroup";
    // A kernel without control groups has no such directory, and sysfs takes no new ones.
    if mount::locate(&plan.root, DEST).is_err() {
        return Ok(());
    }
    if plan.spec.cgroup.unified {
        // SAFETY: a new control group namespace changes nothing about memory or descriptors.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWCGROUP) }
            .map_err(|errno| Failure::setup("make a control group namespace", errno))?;
        return mount_new(plan, DEST, "cgroup2", &[], attrs).map(drop);
    }
    let plain = attrs.difference(RDONLY);
    let top = mount_new(plan, DEST, "tmpfs", &[Opt::Value("mode", "755")], plain)?;
    for (controller, dir) in &plan.spec.cgroup.v1 {
        let dest = format!("{DEST}/{controller}");
        let bind = || -> io::Result<()> {
            let tree = super::mounts::bind(dir, attrs.contains(RDONLY))?;
            mount::attach(tree, target(&plan.root, &dest, true)?)
        };
        bind().map_err(|error| Failure::mount(dir.display().to_string(), &dest, error))?;
    }
    mount::change(top, false, attrs, false).map_err(|error| Failure::mount("tmpfs", DEST, error))
}

fn attach(plan: &Plan<'_>, number: usize, wanted: &WireSandboxMount) -> Result<(), Failure> {
    let prepared = &plan.mounts[number];
    let attach = || -> io::Result<()> {
        let part;
        let tree = match (&prepared.mount, &prepared.subpath) {
            (None, _) => {
                let name = CString::new(files::file_name(number))?;
                part = mount::clone_tree(&plan.files.mount, &name, false)?;
                &part
            }
            (Some(whole), None) => whole,
            (Some(whole), Some(subpath)) => {
                let place = mount::locate(&plan.files.mount, files::place_name(number).as_str())?;
                mount::attach(whole, place)?;
                part = mount::clone_tree(mount::locate(whole, subpath.as_str())?, c"", false)?;
                &part
            }
        };
        if wanted.readonly {
            mount::change(tree, true, RDONLY, false)?;
        }
        mount::attach(tree, target(&plan.root, &wanted.dest, prepared.is_dir)?)
    };
    attach().map_err(|error| Failure::mount(describe(plan.spec, number), &wanted.dest, error))
}

fn describe(spec: &WireSpec, number: usize) -> String {
    use crate::wire::{WireMount, WireSource};
    match &spec.mounts[number].source {
        WireSource::File { .. } => "file".to_owned(),
        WireSource::Path(path) | WireSource::Mount(WireMount::Bind { source: path, .. }) => path.display().to_string(),
        WireSource::Mount(WireMount::Overlay { lowers, .. }) => format!("overlay of {} layers", lowers.len()),
        WireSource::Mount(WireMount::Tmpfs { .. }) => "tmpfs".to_owned(),
    }
}

/// Opens a mount target, made when it is missing (which it then is inside another mount).
pub(super) fn target(root: &OwnedFd, dest: &str, is_dir: bool) -> io::Result<OwnedFd> {
    match mount::locate(root, dest) {
        Err(rustix::io::Errno::NOENT) => {
            let resolved = stubs::resolve(root, dest)?;
            stubs::make_all(root, &resolved, is_dir)?;
            Ok(mount::locate(root, dest)?)
        }
        found => Ok(found?),
    }
}

/// Makes the sandbox's root the root of the namespace, and lets go of the host's with all below it.
fn make_root(plan: &Plan<'_>, host: &OwnedFd) -> io::Result<()> {
    rustix::process::fchdir(&plan.root)?;
    rustix::process::pivot_root(c".", c".")?;
    // The host's root now lies on top of the new one, and the tmpfs on top of it: the kernel takes away what is uppermost.
    for top in [&plan.files.mount, host] {
        rustix::process::fchdir(top)?;
        rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    }
    rustix::process::chdir(c"/")?;
    // `/..` leads onto whatever lies on the root, so a way back to the host would show here.
    if mount_id(c"/..")? != mount_id(c"/")? {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    Ok(())
}

fn mount_id(path: &CStr) -> io::Result<u64> {
    let flags = AtFlags::NO_AUTOMOUNT;
    Ok(rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::MNT_ID)?.stx_mnt_id)
}
