//! Extended attributes of files that are named by an open directory and a name, and which of them layers keep.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// Extended attributes by name.
pub(crate) type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// Access control list that new files inherit: set on a directory only when the layer's own files are in it.
pub(crate) const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// Largest value the kernel accepts, in bytes.
const VALUE_MAX: usize = 64 * 1024;

/// Tells whether layers keep the attribute: not those of overlay itself, nor those that the host's security
/// modules and integrity measurement give to files by their own rules.
pub(crate) fn is_kept(name: &[u8]) -> bool {
    const DROPPED: [&[u8]; 4] = [b"security.selinux", b"security.ima", b"security.evm", b"security.SMACK64"];
    !name.starts_with(b"trusted.overlay.")
        && !name.starts_with(b"user.overlay.")
        && !name.starts_with(b"system.nfs4")
        && !DROPPED.contains(&name)
}

/// Returns the name of overlay's attribute for opaque directories: `trusted.` needs privilege in the first user
/// namespace, so inside any other one overlay is mounted with `userxattr`.
pub(crate) fn opaque_name() -> &'static str {
    static NAME: OnceLock<&str> = OnceLock::new();
    NAME.get_or_init(|| {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let initial = map.split_whitespace().eq(["0", "0", "4294967295"]);
        if initial && rustix::process::geteuid().is_root() { "trusted.overlay.opaque" } else { "user.overlay.opaque" }
    })
}

/// Tells whether the process is inside a user namespace or unprivileged, where devices cannot be made.
pub(crate) fn is_confined() -> bool {
    opaque_name().starts_with("user.")
}

/// Returns the path of `name` in the directory `dir` for the calls that take only paths. It is short whatever the
/// depth of `dir`, and its last component is not followed by the `l` family.
pub(crate) fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> CString {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(if name.is_empty() { b"." } else { name });
    // Names come from the kernel or from checked paths and hold no NUL; a path that is empty cannot be opened.
    CString::new(path).unwrap_or_default()
}

/// Reads the attributes that layers keep, and whether overlay's opaque mark is there.
pub(crate) fn read(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(Xattrs, bool), Errno> {
    let path = proc_path(dir, name);
    let mut names = Vec::new();
    let mut buf = vec![0u8; 1024];
    loop {
        match rustix::fs::llistxattr(path.as_c_str(), &mut buf[..]) {
            Ok(n) => {
                names.extend_from_slice(&buf[..n]);
                break;
            }
            Err(Errno::RANGE) if buf.len() < VALUE_MAX => buf = vec![0u8; VALUE_MAX],
            Err(Errno::OPNOTSUPP) => break,
            Err(e) => return Err(e),
        }
    }
    let (mut xattrs, mut opaque) = (Xattrs::new(), false);
    for name in names.split(|&b| b == 0).filter(|n| !n.is_empty()) {
        if name == opaque_name().as_bytes() {
            opaque = value(&path, name)?.as_deref() == Some(b"y");
        } else if is_kept(name)
            && let Some(value) = value(&path, name)?
        {
            xattrs.insert(name.to_vec(), value);
        }
    }
    Ok((xattrs, opaque))
}

fn value(path: &CString, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    let mut small = [0u8; 256];
    match rustix::fs::lgetxattr(path.as_c_str(), name, &mut small[..]) {
        Ok(n) => return Ok(Some(small[..n].to_vec())),
        Err(Errno::RANGE) => {}
        // Listed but gone or unreadable by policy: as if it were not there.
        Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
        Err(e) => return Err(e),
    }
    let mut buf = vec![0u8; VALUE_MAX];
    let n = rustix::fs::lgetxattr(path.as_c_str(), name, &mut buf[..])?;
    buf.truncate(n);
    Ok(Some(buf))
}

/// Sets one attribute. Returns false where this file system or this user cannot have it.
pub(crate) fn set(dir: BorrowedFd<'_>, name: &[u8], attr: &[u8], value: &[u8]) -> Result<bool, Errno> {
    match rustix::fs::lsetxattr(proc_path(dir, name).as_c_str(), attr, value, XattrFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP) => Ok(false),
        // `user.` is not for links and devices, `trusted.` not for user namespaces.
        Err(Errno::PERM) if !attr.starts_with(b"security.") || is_confined() => Ok(false),
        Err(e) => Err(e),
    }
}

/// Removes one attribute if it is there.
pub(crate) fn remove(dir: BorrowedFd<'_>, name: &[u8], attr: &[u8]) -> Result<(), Errno> {
    match rustix::fs::lremovexattr(proc_path(dir, name).as_c_str(), attr) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(e) => Err(e),
    }
}
