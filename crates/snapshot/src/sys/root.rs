//! A layer's directory as the root of paths: no component of a path is ever followed through a symbolic link, and
//! paths may be longer than one system call takes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::path;

/// Longest piece of a path given to one call.
const PIECE: usize = 4000;

/// An open directory under which relative paths are looked up. The directory used last stays open, since most
/// work goes through a tree in order.
pub(crate) struct Root {
    fd: OwnedFd,
    last: Option<(Vec<u8>, OwnedFd)>,
}

impl Root {
    /// Opens the directory `path`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|e| Error::io("open", path)(e.into()))?;
        Ok(Self { fd, last: None })
    }

    /// Returns the root itself.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Returns the directory `path`, open for naming things in it.
    pub(crate) fn dir(&mut self, path: &[u8]) -> Result<BorrowedFd<'_>, Errno> {
        if path.is_empty() {
            return Ok(self.fd.as_fd());
        }
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            let fd = self.open_dir(path, OFlags::PATH)?;
            self.last = Some((path.to_vec(), fd));
        }
        Ok(self.last.as_ref().map_or(self.fd.as_fd(), |(_, fd)| fd.as_fd()))
    }

    /// Returns the directory that holds `path`, and its name there. The root directory is `.` in itself.
    pub(crate) fn place<'p>(&mut self, path: &'p [u8]) -> Result<(BorrowedFd<'_>, &'p [u8]), Errno> {
        match path::parent(path) {
            Some(parent) => Ok((self.dir(parent)?, path::name(path))),
            None => Ok((self.fd.as_fd(), b".")),
        }
    }

    /// Forgets the directory used last. Must be called when directories were removed.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }

    /// Opens the directory `path` with `flags`.
    pub(crate) fn open_dir(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut rest = path;
        let mut at: Option<OwnedFd> = None;
        loop {
            let here = at.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
            if rest.len() <= PIECE {
                let name = if rest.is_empty() { b"." } else { rest };
                return open_beneath(here, name, flags | OFlags::DIRECTORY);
            }
            let cut = rest[..PIECE].iter().rposition(|&b| b == b'/').ok_or(Errno::NAMETOOLONG)?;
            let next = open_beneath(here, &rest[..cut], OFlags::PATH | OFlags::DIRECTORY)?;
            at = Some(next);
            rest = &rest[cut + 1..];
        }
    }

    /// Opens the regular file `path` for reading.
    pub(crate) fn open_file(&mut self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let (dir, name) = self.place(path)?;
        // A pipe or device in its place must not block or be opened for real.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let noatime = rustix::fs::openat(dir, name, flags | OFlags::NOATIME, Mode::empty());
        match noatime {
            Err(Errno::PERM) => rustix::fs::openat(dir, name, flags, Mode::empty()),
            other => other,
        }
    }

    /// Returns the status of `path`, a link not followed.
    pub(crate) fn stat(&mut self, path: &[u8]) -> Result<Stat, Errno> {
        let (dir, name) = self.place(path)?;
        rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// Returns a directory and a path in it that name the host's `path`, however long that is: long ones are opened
/// piece by piece up to their last name.
pub(crate) fn reach(path: &Path) -> Result<(Option<OwnedFd>, &[u8]), Errno> {
    let mut rest = path.as_os_str().as_bytes();
    let mut at: Option<OwnedFd> = None;
    while rest.len() > PIECE {
        let cut = rest[..PIECE].iter().rposition(|&b| b == b'/').filter(|&i| i > 0).ok_or(Errno::NAMETOOLONG)?;
        let here = at.as_ref().map_or(CWD, AsFd::as_fd);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        at = Some(rustix::fs::openat(here, &rest[..cut], flags, Mode::empty())?);
        rest = &rest[cut + 1..];
    }
    Ok((at, rest))
}

fn open_beneath(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve) {
        // Some sandboxes refuse openat2 as a whole; walking name by name gives the same guarantee.
        Err(Errno::NOSYS | Errno::PERM) => open_by_steps(dir, path, flags),
        Err(Errno::AGAIN) => open_by_steps(dir, path, flags),
        other => other,
    }
}

fn open_by_steps(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let parts: Vec<&[u8]> = path.split(|&b| b == b'/').collect();
    let mut at: Option<OwnedFd> = None;
    for (i, part) in parts.iter().enumerate() {
        if *part == b".." {
            return Err(Errno::XDEV);
        }
        let here = at.as_ref().map_or(dir, AsFd::as_fd);
        let flags = if i + 1 == parts.len() { flags } else { step };
        let next = rustix::fs::openat(here, *part, flags, Mode::empty())?;
        at = Some(next);
    }
    at.ok_or(Errno::NOENT)
}
