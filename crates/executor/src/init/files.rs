//! The sandbox's own tmpfs: secrets and generated files live there and nowhere else. It is nodev, nosuid and noexec, and so
//! is every bind mount out of it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::mount::MountAttrFlags;

use crate::sys::mount::{self, Opt};
use crate::wire::{Failure, WireSource, WireSpec};

/// The directory the root is attached to until it becomes the root.
pub(super) const ROOT: &std::ffi::CStr = c"root";
/// An empty directory, shown in place of what is hidden from the step.
pub(super) const EMPTY: &std::ffi::CStr = c"empty";

/// The tmpfs as a detached mount. The file of mount number n is called `f<n>`, the place to attach it `m<n>`.
pub(super) struct Files {
    pub mount: OwnedFd,
}

impl Files {
    /// Makes the tmpfs and writes every file of `spec` into it.
    pub(super) fn new(spec: &WireSpec, contents: &[u8], mounts: usize) -> Result<Self, Failure> {
        Self::fill(spec, contents, mounts).map_err(|error| Failure::setup("make the sandbox's tmpfs", error))
    }

    fn fill(spec: &WireSpec, contents: &[u8], mounts: usize) -> io::Result<Self> {
        let attrs =
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = mount::new_fs("tmpfs", &[Opt::Value("mode", "0700"), Opt::Value("source", "kiln")], attrs)?;
        rustix::fs::mkdirat(&mount, ROOT, Mode::RWXU)?;
        rustix::fs::mkdirat(&mount, EMPTY, Mode::from_raw_mode(0o555))?;
        for (number, wanted) in spec.mounts.iter().enumerate().take(mounts) {
            match &wanted.source {
                WireSource::File { offset, len, mode, uid, gid } => {
                    let end = offset.checked_add(*len);
                    let content = end.and_then(|end| contents.get(*offset..end));
                    let content = content.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADMSG))?;
                    write(&mount, &file_name(number), content, *mode, (*uid, *gid))?;
                }
                WireSource::Mount(_) if !wanted.subpath.is_empty() => {
                    rustix::fs::mkdirat(&mount, place_name(number), Mode::RWXU)?;
                }
                WireSource::Mount(_) | WireSource::Path(_) => {}
            }
        }
        Ok(Self { mount })
    }
}

/// Returns the name of the file of mount `number`.
pub(super) fn file_name(number: usize) -> String {
    format!("f{number}")
}

/// Returns the name of the directory where mount `number` is attached for a part of it to be copied.
pub(super) fn place_name(number: usize) -> String {
    format!("m{number}")
}

fn write(dir: &OwnedFd, name: &str, content: &[u8], mode: u32, owner: (u32, u32)) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(content)?;
    rustix::fs::fchown(&file, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777))?;
    Ok(())
}
