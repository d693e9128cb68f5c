//! The file descriptor based mount calls (Linux 5.2 and later): everything is built detached and attached by descriptor,
//! so that no path is looked up twice and a mount nobody holds vanishes by itself.

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};
use rustix::path::Arg;

/// An option of a new file system.
pub(crate) enum Opt<'a> {
    /// A bare word.
    Flag(&'a str),
    /// `key=value`.
    Value(&'a str, &'a str),
}

/// Makes a file system and returns it as a detached mount.
pub(crate) fn new_fs(kind: &str, options: &[Opt<'_>], attrs: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for option in options {
        match option {
            Opt::Flag(key) => rustix::mount::fsconfig_set_flag(&context, *key)?,
            Opt::Value(key, value) => rustix::mount::fsconfig_set_string(&context, *key, *value)?,
        }
    }
    rustix::mount::fsconfig_create(&context)?;
    Ok(rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attrs)?)
}

/// Returns a detached copy of the mount tree at `path` below `dir`; it does not propagate to where it came from.
pub(crate) fn clone_tree(dir: impl AsFd, path: &CStr, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if path.is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = rustix::mount::open_tree(dir, path, flags)?;
    change(&tree, recursive, MountAttrFlags::empty(), true)?;
    Ok(tree)
}

/// Adds attributes to a mount, and to those below it when `recursive`; `private` ends propagation.
pub(crate) fn change(mount: impl AsFd, recursive: bool, set: MountAttrFlags, private: bool) -> io::Result<()> {
    // `struct mount_attr` of linux/mount.h, version 0.
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns: u64,
    }
    let attr = MountAttr {
        set: u64::from(set.bits()),
        clear: 0,
        propagation: if private { libc::MS_PRIVATE } else { 0 },
        userns: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated constant and `attr` lives through the call with the size that is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Attaches a detached mount on `target`.
pub(crate) fn attach(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, c"", target, c"", flags)?)
}

/// Opens `path` inside `root` without ever leaving it: absolute links and `..` start again at `root`.
pub(crate) fn open_in_root(root: impl AsFd, path: impl Arg, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // EAGAIN means something was renamed meanwhile; nothing else runs in this tree, so a few tries are plenty.
    let path = path.into_c_str()?;
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(&root, &*path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(rustix::io::Errno::AGAIN) if tries < 16 => tries += 1,
            result => return result,
        }
    }
}

/// Opens `path` inside `root` as a place to mount on or to look at.
pub(crate) fn locate(root: impl AsFd, path: impl Arg) -> rustix::io::Result<OwnedFd> {
    open_in_root(root, path, OFlags::PATH)
}
