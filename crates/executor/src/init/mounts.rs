//! Turns mount descriptions into detached mounts, before the sandbox has namespaces of its own.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::FileType;
use rustix::mount::MountAttrFlags;

use super::overlay::Overlay;
use crate::sys::mount::{self, Opt};
use crate::wire::{Failure, WireMount, WireSandboxMount, WireSource, WireSpec};

/// A mount that waits to be attached.
pub(super) struct Prepared {
    /// The detached mount; `None` for files, which the sandbox binds out of its own tmpfs.
    pub mount: Option<OwnedFd>,
    /// A path inside `mount` that is to be shown in place of its top. Only overlays keep one here: a copy of part of a
    /// detached mount cannot be made before it is attached.
    pub subpath: Option<String>,
    /// Whether the target is a directory.
    pub is_dir: bool,
}

/// Makes the root.
pub(super) fn open_root(spec: &WireSpec) -> Result<OwnedFd, Failure> {
    let root = make(&spec.root, "/")?;
    if !spec.insecure && !spec.devices_guarded {
        // Without a control group that refuses devices, the nodes a step makes must not work.
        mount::change(&root, false, MountAttrFlags::MOUNT_ATTR_NODEV, false)
            .map_err(|error| Failure::mount("root", "/", error))?;
    }
    Ok(root)
}

/// Makes one of the other mounts.
pub(super) fn prepare(wanted: &WireSandboxMount) -> Result<Prepared, Failure> {
    let subpath = wanted.subpath.trim_matches('/');
    match &wanted.source {
        WireSource::File { .. } => Ok(Prepared { mount: None, subpath: None, is_dir: false }),
        WireSource::Path(path) => {
            let fail = |error| Failure::mount(path.display().to_string(), &wanted.dest, error);
            let tree = bind(path, wanted.readonly).map_err(fail)?;
            let is_dir = is_dir(&tree).map_err(fail)?;
            Ok(Prepared { mount: Some(tree), subpath: None, is_dir })
        }
        WireSource::Mount(WireMount::Bind { source, readonly }) => {
            let fail = |error| Failure::mount(source.join(subpath).display().to_string(), &wanted.dest, error);
            let tree = bind_below(source, subpath, *readonly || wanted.readonly).map_err(fail)?;
            let is_dir = is_dir(&tree).map_err(fail)?;
            Ok(Prepared { mount: Some(tree), subpath: None, is_dir })
        }
        WireSource::Mount(description) => {
            let tree = make(description, &wanted.dest)?;
            if subpath.is_empty() {
                return Ok(Prepared { mount: Some(tree), subpath: None, is_dir: true });
            }
            let inside = mount::locate(&tree, subpath)
                .map_err(io::Error::from)
                .and_then(|found| is_dir(&found))
                .map_err(|error| Failure::mount(format!("path /{subpath} of the source"), &wanted.dest, error))?;
            Ok(Prepared { mount: Some(tree), subpath: Some(subpath.to_owned()), is_dir: inside })
        }
    }
}

fn make(description: &WireMount, dest: &str) -> Result<OwnedFd, Failure> {
    match description {
        WireMount::Overlay { lowers, upper, work } => {
            Overlay { lowers, upper: upper.as_deref(), work: work.as_deref() }.mount(dest)
        }
        WireMount::Bind { source, readonly } => {
            bind(source, *readonly).map_err(|error| Failure::mount(source.display().to_string(), dest, error))
        }
        WireMount::Tmpfs { size, mode } => {
            let mode = format!("{:o}", mode & 0o7777);
            let size = size.map(|size| size.to_string());
            let mut options = vec![Opt::Value("mode", &mode)];
            if let Some(size) = &size {
                options.push(Opt::Value("size", size));
            }
            let attrs = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
            mount::new_fs("tmpfs", &options, attrs).map_err(|error| Failure::mount("tmpfs", dest, error))
        }
    }
}

/// Returns a detached copy of what is at `source`, with everything mounted below it.
pub(super) fn bind(source: &Path, readonly: bool) -> io::Result<OwnedFd> {
    let path = CString::new(source.as_os_str().as_bytes())?;
    let tree = mount::clone_tree(rustix::fs::CWD, &path, true)?;
    limit(tree, readonly)
}

/// As [`bind`], of `subpath` inside `source`, which no symbolic link can lead out of.
fn bind_below(source: &Path, subpath: &str, readonly: bool) -> io::Result<OwnedFd> {
    if subpath.is_empty() {
        return bind(source, readonly);
    }
    let top =
        rustix::fs::open(source, rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
    let found = mount::locate(&top, subpath)?;
    limit(mount::clone_tree(&found, c"", true)?, readonly)
}

fn limit(tree: OwnedFd, readonly: bool) -> io::Result<OwnedFd> {
    if readonly {
        mount::change(&tree, true, MountAttrFlags::MOUNT_ATTR_RDONLY, false)?;
    }
    Ok(tree)
}

fn is_dir(found: &OwnedFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(found)?.st_mode).is_dir())
}
