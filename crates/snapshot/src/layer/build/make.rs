//! Making files, links and nodes of a layer, each with owner, mode, attributes and time in the order that keeps
//! them: a change of owner clears setuid bits and capabilities, and any change moves the time.

use std::io::{Read, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use kiln_stdx::{Fingerprint, FingerprintHasher};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::{FileMeta, LayerBuilder};
use crate::entry::{Entry, Kind};
use crate::error::{Error, Result};
use crate::path;
use crate::sys::{self, xattr::Xattrs};

/// Bytes read at once.
const BUFFER: usize = 128 << 10;

impl LayerBuilder<'_> {
    /// Makes a file with these bytes.
    ///
    /// # Errors
    /// For bad paths, a parent that is no directory, and failing system calls.
    pub fn file_from_bytes(&mut self, path: &[u8], meta: &FileMeta, bytes: &[u8]) -> Result<()> {
        self.file_of(path, meta, bytes, Fingerprint::of(bytes))
    }

    /// Makes a file with these bytes, whose fingerprint is known.
    ///
    /// # Errors
    /// As [`file_from_bytes`](Self::file_from_bytes).
    pub fn file_of(&mut self, path: &[u8], meta: &FileMeta, bytes: &[u8], digest: Fingerprint) -> Result<()> {
        let mut file = std::fs::File::from(self.create(path)?);
        file.write_all(bytes).map_err(Error::io("write", path::lossy(path)))?;
        self.seal(path, &file.into(), meta, bytes.len() as u64, digest)
    }

    /// Makes a file of what `reader` gives, hashing it on the way, and returns fingerprint and size.
    ///
    /// # Errors
    /// [`Error::Input`] when `reader` fails; else as [`file_from_bytes`](Self::file_from_bytes).
    pub fn file_from_reader(
        &mut self,
        path: &[u8],
        meta: &FileMeta,
        mut reader: impl Read,
    ) -> Result<(Fingerprint, u64)> {
        let mut file = std::fs::File::from(self.create(path)?);
        let mut hasher = FingerprintHasher::new();
        let mut buf = std::mem::take(&mut self.buffer);
        buf.resize(BUFFER, 0);
        let mut size = 0u64;
        loop {
            let n = match reader.read(&mut buf) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::Input(e)),
            };
            hasher.update(&buf[..n]);
            file.write_all(&buf[..n]).map_err(Error::io("write", path::lossy(path)))?;
            size += n as u64;
        }
        self.buffer = buf;
        let digest = hasher.finish();
        self.seal(path, &file.into(), meta, size, digest)?;
        Ok((digest, size))
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// As [`file_from_bytes`](Self::file_from_bytes).
    pub fn symlink(&mut self, path: &[u8], target: &[u8], meta: &FileMeta) -> Result<()> {
        self.make_way(path)?;
        let (dir, name) = self.root.place(path).map_err(Error::sys("open", path))?;
        rustix::fs::symlinkat(target, dir, name).map_err(Error::sys("create the symbolic link", path))?;
        self.record(path, Kind::Symlink, meta, |entry| entry.target = target.to_vec())
    }

    /// Makes a named pipe or a device; `rdev` is its major and minor number.
    ///
    /// # Errors
    /// As [`file_from_bytes`](Self::file_from_bytes); for other kinds and for the character device 0/0, which
    /// means a deletion, [`Error::BadPath`].
    pub fn node(&mut self, path: &[u8], kind: Kind, rdev: (u32, u32), meta: &FileMeta) -> Result<()> {
        let bad = |what| Error::BadPath { path: path::lossy(path), what };
        let file_type = match kind {
            Kind::Fifo => FileType::Fifo,
            Kind::CharDevice if rdev == (0, 0) => return Err(bad("character device 0/0 means a deletion")),
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            _ => return Err(bad("only pipes and devices are nodes")),
        };
        self.make_way(path)?;
        let (dir, name) = self.root.place(path).map_err(Error::sys("open", path))?;
        let rdev = if kind == Kind::Fifo { (0, 0) } else { rdev };
        let device = rustix::fs::makedev(rdev.0, rdev.1);
        rustix::fs::mknodat(dir, name, file_type, Mode::RUSR, device).map_err(Error::sys("create the node", path))?;
        self.record(path, kind, meta, |entry| entry.rdev = rdev)
    }

    /// Makes `new` another name of what is at `existing`. Where only lower layers have that, it is copied into
    /// this layer first, as overlay does.
    ///
    /// # Errors
    /// [`Error::NotFound`] when nothing is at `existing`, [`Error::BadPath`] when it is a directory; else as
    /// [`file_from_bytes`](Self::file_from_bytes).
    pub fn hard_link(&mut self, existing: &[u8], new: &[u8]) -> Result<()> {
        path::check(existing)?;
        path::check(new)?;
        let entry = self.lookup(existing).ok_or_else(|| Error::NotFound(path::lossy(existing)))?;
        if entry.is_dir() {
            return Err(Error::BadPath { path: path::lossy(existing), what: "a directory cannot be hard linked" });
        }
        if existing == new {
            return Ok(());
        }
        if self.own(existing).is_none() {
            self.copy_up(existing)?;
        }
        self.make_way(new)?;
        let entry = self.own(existing).cloned().ok_or_else(|| Error::NotFound(path::lossy(existing)))?;
        let from = path::parent(existing).unwrap_or_default();
        let from = self.root.open_dir(from, OFlags::PATH).map_err(Error::sys("open", existing))?;
        let (dir, name) = self.root.place(new).map_err(Error::sys("open", new))?;
        rustix::fs::linkat(&from, path::name(existing), dir, name, AtFlags::empty())
            .map_err(Error::sys("create the hard link", new))?;
        self.insert(Entry { path: new.to_vec(), ..entry });
        Ok(())
    }

    /// Creates an empty file in place of whatever is at `path`. It is part of the layer after
    /// [`seal`](Self::seal).
    pub(crate) fn create(&mut self, path: &[u8]) -> Result<OwnedFd> {
        self.make_way(path)?;
        let (dir, name) = self.root.place(path).map_err(Error::sys("open", path))?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR).map_err(Error::sys("create", path))
    }

    /// Gives a file made by [`create`](Self::create) its metadata and enters it into the manifest.
    pub(crate) fn seal(
        &mut self,
        path: &[u8],
        file: &OwnedFd,
        meta: &FileMeta,
        size: u64,
        digest: Fingerprint,
    ) -> Result<()> {
        let set = || -> Result<(Xattrs, rustix::fs::Stat), Errno> {
            rustix::fs::fchown(file, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))?;
            rustix::fs::fchmod(file, Mode::from_raw_mode(meta.mode & 0o7777))?;
            let mut kept = Xattrs::new();
            for (name, value) in meta.xattrs.iter().filter(|(name, _)| sys::xattr::is_kept(name)) {
                match rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
                    Ok(()) => drop(kept.insert(name.clone(), value.clone())),
                    Err(Errno::OPNOTSUPP) => {}
                    Err(Errno::PERM) if !name.starts_with(b"security.") || sys::xattr::is_confined() => {}
                    Err(e) => return Err(e),
                }
            }
            rustix::fs::futimens(file, &times(meta.mtime))?;
            Ok((kept, rustix::fs::fstat(file)?))
        };
        let (xattrs, stat) = set().map_err(Error::sys("set attributes of", path))?;
        let (ino, mtime) = (stat.st_ino, sys::mtime_of(&stat));
        self.insert(Entry { size, ino, mtime, xattrs, digest: Some(digest), ..meta.entry(path, Kind::File) });
        Ok(())
    }

    /// Makes the parents of `path` and removes what this layer has there.
    pub(super) fn make_way(&mut self, path: &[u8]) -> Result<()> {
        path::check(path)?;
        if path.is_empty() {
            return Err(Error::BadPath { path: "/".into(), what: "the root is a directory" });
        }
        self.make_parents(path)?;
        if self.own(path).is_some() { self.clear(path) } else { Ok(()) }
    }

    /// Copies what lower layers have at `path` into this layer.
    fn copy_up(&mut self, path: &[u8]) -> Result<()> {
        let missing = || Error::NotFound(path::lossy(path));
        let node = self.lower.get(path).ok_or_else(missing)?;
        let dir = self.lower_dirs.get(node.layer).ok_or_else(missing)?;
        let source = super::place::join_os(dir, path);
        self.copy_to(&source, node.entry, path, &FileMeta::of(node.entry))
    }

    /// Sets the metadata of what was just made at `path` and enters it into the manifest.
    fn record(&mut self, path: &[u8], kind: Kind, meta: &FileMeta, fill: impl FnOnce(&mut Entry)) -> Result<()> {
        let (dir, name) = self.root.place(path).map_err(Error::sys("open", path))?;
        let set = || {
            let xattrs = set_meta(dir, name, kind, meta)?;
            set_mtime(dir, name, meta.mtime)?;
            Ok((xattrs, rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?))
        };
        let (xattrs, stat) = set().map_err(Error::sys("set attributes of", path))?;
        let mtime = sys::mtime_of(&stat);
        let mut entry = Entry { ino: stat.st_ino, mtime, xattrs, ..meta.entry(path, kind) };
        fill(&mut entry);
        self.insert(entry);
        Ok(())
    }
}

/// Sets owner, mode and attributes; returns the attributes that this file system took.
pub(super) fn set_meta(dir: BorrowedFd<'_>, name: &[u8], kind: Kind, meta: &FileMeta) -> Result<Xattrs, Errno> {
    let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
    rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if kind != Kind::Symlink {
        // What `name` is was made a moment ago by this process and is no link, so following is harmless.
        rustix::fs::chmodat(dir, name, Mode::from_raw_mode(meta.mode & 0o7777), AtFlags::empty())?;
    }
    let mut kept = Xattrs::new();
    for (attr, value) in meta.xattrs.iter().filter(|(attr, _)| sys::xattr::is_kept(attr)) {
        if sys::xattr::set(dir, name, attr, value)? {
            kept.insert(attr.clone(), value.clone());
        }
    }
    Ok(kept)
}

pub(crate) fn set_mtime(dir: BorrowedFd<'_>, name: &[u8], mtime: (i64, u32)) -> Result<(), Errno> {
    rustix::fs::utimensat(dir, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)
}

/// Makes a whiteout: the process's file creation mask and the mode do not matter, nobody can open it.
pub(super) fn whiteout(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    rustix::fs::mknodat(dir.as_fd(), name, FileType::CharacterDevice, Mode::empty(), 0)
}

fn times(mtime: (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: mtime.0, tv_nsec: i64::from(mtime.1) };
    Timestamps { last_access: time, last_modification: time }
}
