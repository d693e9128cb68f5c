//! Gives up what the process shall not have: capabilities, identity, system calls.

use std::os::fd::AsFd;

use rustix::fs::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::identity::Identity;
use super::step::Kit;
use crate::idmap::IdMaps;
use crate::sys::process;
use crate::wire::{Failure, WireSpec};

/// The capabilities Docker gives by default.
pub(super) const DEFAULT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

/// The highest number the kernel could ever use: the sets are 64 bits wide.
const CAPABILITIES: u32 = 64;

/// Installs the filter and becomes the user. The filter comes first: without `no_new_privs`, which would break `sudo` and
/// `ping`, it needs CAP_SYS_ADMIN. Everything done afterwards is allowed by it.
pub(super) fn drop_all(spec: &WireSpec, kit: &Kit<'_>, user: &Identity) -> Result<(), Failure> {
    own_streams(kit, user.uid);
    // A namespace with a single id was made under the condition that nobody changes groups in it.
    let groups_allowed = spec.idmaps.as_ref().is_none_or(IdMaps::is_full);
    for &(resource, soft, hard) in &spec.rlimits {
        process::set_limit(resource, soft, hard).map_err(|error| Failure::setup("set a resource limit", error))?;
    }
    let held =
        rustix::thread::capabilities(None).map_err(|errno| Failure::setup("read capabilities", errno))?.permitted;
    if spec.insecure {
        return become_user(user, held, true, groups_allowed);
    }
    let Some(filter) = kit.filter else {
        return Err(Failure::setup(
            "no system call filter for this architecture",
            std::io::Error::from_raw_os_error(libc::ENOSYS),
        ));
    };
    process::install_filter(filter).map_err(|error| Failure::setup("install the system call filter", error))?;
    let mut keep = DEFAULT;
    if !spec.devices_guarded {
        keep.remove(CapabilitySet::MKNOD);
    }
    become_user(user, keep.intersection(held), false, groups_allowed)
}

/// Pipes belong to whoever made them; a process that opens `/dev/stdout` anew must be their owner.
fn own_streams(kit: &Kit<'_>, uid: u32) {
    for stream in &kit.stdio {
        let owned = rustix::fs::fstat(stream)
            .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Fifo);
        if owned {
            let _ = rustix::fs::fchown(stream.as_fd(), Some(Uid::from_raw(uid)), None);
        }
    }
}

fn become_user(user: &Identity, keep: CapabilitySet, ambient: bool, groups_allowed: bool) -> Result<(), Failure> {
    let fail = |errno| Failure::setup(format!("become user {}:{}", user.uid, user.gid), errno);
    bound(keep)?;
    rustix::thread::set_keep_capabilities(true).map_err(fail)?;
    let groups: Vec<Gid> = user.groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    if groups_allowed {
        rustix::thread::set_thread_groups(&groups).map_err(fail)?;
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(fail)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(fail)?;
    rustix::thread::set_keep_capabilities(false).map_err(fail)?;
    let inheritable = if ambient { keep } else { CapabilitySet::empty() };
    let sets = CapabilitySets { effective: keep, permitted: keep, inheritable };
    rustix::thread::set_capabilities(None, sets).map_err(|errno| Failure::setup("set capabilities", errno))?;
    if ambient {
        for number in numbers().filter(|number| keep.bits() & (1 << number) != 0) {
            // SAFETY: prctl with plain numbers.
            unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, number, 0, 0) };
        }
    }
    Ok(())
}

/// Takes every capability out of the bounding set but those in `keep`, so that no program can gain it.
fn bound(keep: CapabilitySet) -> Result<(), Failure> {
    for number in numbers().filter(|number| keep.bits() & (1 << number) == 0) {
        // SAFETY: prctl with plain numbers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) } != 0 {
            let error = std::io::Error::last_os_error();
            // The first number that the kernel does not know ends the list.
            if error.raw_os_error() == Some(libc::EINVAL) {
                return Ok(());
            }
            return Err(Failure::setup("limit capabilities", error));
        }
    }
    Ok(())
}

fn numbers() -> impl Iterator<Item = u32> {
    0..CAPABILITIES
}
