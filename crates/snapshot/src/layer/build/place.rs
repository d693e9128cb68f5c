//! Bringing a file of another layer into this one: linked where nobody can tell, else copied.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use kiln_stdx::Fingerprint;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::{FileMeta, LayerBuilder};
use crate::entry::{Entry, Kind};
use crate::error::{Damage, DamageKind, Error, Result};
use crate::sys;
use crate::sys::root::reach;

/// What a copy has instead of what its source has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Owner and group.
    pub owner: Option<(u32, u32)>,
    /// Permission bits; not applied to symbolic links.
    pub mode: Option<u32>,
    /// Modification time.
    pub mtime: Option<(i64, u32)>,
    /// Extended attributes, all of them.
    pub xattrs: Option<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl Overrides {
    fn apply(&self, entry: &Entry) -> FileMeta {
        let (uid, gid) = self.owner.unwrap_or((entry.uid, entry.gid));
        FileMeta {
            mode: self.mode.unwrap_or(entry.mode),
            uid,
            gid,
            mtime: self.mtime.unwrap_or(entry.mtime),
            xattrs: self.xattrs.clone().unwrap_or_else(|| entry.xattrs.clone()),
        }
    }
}

/// How something came into a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// It shares the inode of its source.
    Linked,
    /// Its bytes were copied, or share extents.
    Copied,
    /// It has no bytes: a directory, link or node was made.
    Made,
}

impl LayerBuilder<'_> {
    /// Brings `entry`, which is the file `source` of an immutable layer, to `dest`.
    ///
    /// A file is hard linked when nothing can show it: owner, mode, time and attributes are those of the source,
    /// and neither this layer nor one below it holds the inode already. Otherwise, and where the file system
    /// refuses the link, it is copied. A directory gets the metadata, its content is the caller's matter; names
    /// that are hard links of each other in the source are one inode here only by [`hard_link`](Self::hard_link).
    ///
    /// # Errors
    /// [`Error::Damage`] when `source` is not what `entry` says; else as
    /// [`file_from_bytes`](Self::file_from_bytes).
    pub fn link_or_copy(&mut self, source: &Path, entry: &Entry, dest: &[u8], with: &Overrides) -> Result<Placed> {
        let meta = with.apply(entry);
        match entry.kind {
            Kind::Dir => self.mkdir(dest, &meta).map(|()| Placed::Made),
            Kind::Symlink => self.symlink(dest, &entry.target, &meta).map(|()| Placed::Made),
            Kind::Fifo | Kind::CharDevice | Kind::BlockDevice => {
                self.node(dest, entry.kind, entry.rdev, &meta).map(|()| Placed::Made)
            }
            Kind::Whiteout => self.remove(dest).map(|_| Placed::Made),
            Kind::File => {
                if self.may_link(entry, &meta) && self.link(source, entry, dest)? {
                    return Ok(Placed::Linked);
                }
                self.copy_to(source, entry, dest, &meta).map(|()| Placed::Copied)
            }
        }
    }

    /// Moves the file `source` (anything but a directory), described by `entry`, to the same path of this layer.
    pub(crate) fn adopt(&mut self, source: &Path, entry: &Entry) -> Result<()> {
        self.make_way(&entry.path)?;
        let (dir, name) = self.root.place(&entry.path).map_err(Error::sys("open", &entry.path))?;
        let (from, file) = reach(source).map_err(|e| Error::io("open", source)(e.into()))?;
        let from = from.as_ref().map_or(CWD, AsFd::as_fd);
        rustix::fs::renameat(from, file, dir, name).map_err(Error::sys("move", &entry.path))?;
        self.insert(Entry { nlink_group: None, ..entry.clone() });
        Ok(())
    }

    fn may_link(&self, entry: &Entry, meta: &FileMeta) -> bool {
        self.linking
            && entry.digest.is_some()
            && *meta == FileMeta::of(entry)
            && !self.inodes.contains(&entry.ino)
            && !self.lower.layers().iter().any(|layer| layer.holds_inode(entry.ino))
    }

    /// Tries to link; returns false where the file system does not let us.
    fn link(&mut self, source: &Path, entry: &Entry, dest: &[u8]) -> Result<bool> {
        self.make_way(dest)?;
        let (dir, name) = self.root.place(dest).map_err(Error::sys("open", dest))?;
        let (from, file) = reach(source).map_err(|e| Error::io("open", source)(e.into()))?;
        let from = from.as_ref().map_or(CWD, AsFd::as_fd);
        match rustix::fs::linkat(from, file, dir, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::MLINK | Errno::XDEV | Errno::PERM | Errno::OPNOTSUPP) => return Ok(false),
            Err(Errno::NOENT) => return Err(Damage::new(&entry.path, DamageKind::Missing).into()),
            Err(e) => return Err(Error::sys("link", dest)(e)),
        }
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(Error::sys("stat", dest))?;
        if let Err(damage) = check_source(&stat, entry) {
            rustix::fs::unlinkat(dir, name, AtFlags::empty()).map_err(Error::sys("remove", dest))?;
            return Err(damage.into());
        }
        self.insert(Entry { path: dest.to_vec(), nlink_group: None, ..entry.clone() });
        Ok(true)
    }

    /// Copies the file `source`, described by `entry`, to `dest`; also what is no regular file.
    pub(super) fn copy_to(&mut self, source: &Path, entry: &Entry, dest: &[u8], meta: &FileMeta) -> Result<()> {
        let Some(digest) = entry.digest else {
            return match entry.kind {
                Kind::Symlink => self.symlink(dest, &entry.target, meta),
                _ => self.node(dest, entry.kind, entry.rdev, meta),
            };
        };
        self.copy_bytes(source, entry, dest, meta, digest)
    }

    fn copy_bytes(
        &mut self,
        source: &Path,
        entry: &Entry,
        dest: &[u8],
        meta: &FileMeta,
        digest: Fingerprint,
    ) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let (at, file) = reach(source).map_err(|e| Error::io("open", source)(e.into()))?;
        let at = at.as_ref().map_or(CWD, AsFd::as_fd);
        let from = match rustix::fs::openat(at, file, flags, Mode::empty()) {
            Ok(from) => from,
            Err(Errno::NOENT) => return Err(Damage::new(&entry.path, DamageKind::Missing).into()),
            Err(Errno::LOOP | Errno::NXIO) => return Err(Damage::new(&entry.path, DamageKind::Kind).into()),
            Err(e) => return Err(Error::io("open", source)(e.into())),
        };
        let stat = rustix::fs::fstat(&from).map_err(|e| Error::io("stat", source)(e.into()))?;
        check_source(&stat, entry)?;
        let to = self.create(dest)?;
        sys::copy::copy(from.as_fd(), to.as_fd(), entry.size).map_err(Error::sys("copy to", dest))?;
        self.seal(dest, &to, meta, entry.size, digest)
    }
}

/// Compares what a manifest says of a regular file with what is there.
pub(crate) fn check_source(stat: &Stat, entry: &Entry) -> Result<(), Damage> {
    let differs = |what| Err(Damage::new(&entry.path, what));
    if sys::kind_of(stat) != Some(Kind::File) {
        return differs(DamageKind::Kind);
    }
    if stat.st_size.cast_unsigned() != entry.size {
        return differs(DamageKind::Size);
    }
    if stat.st_ino != entry.ino {
        return differs(DamageKind::Inode);
    }
    if sys::mtime_of(stat) != entry.mtime {
        return differs(DamageKind::Mtime);
    }
    if (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid) {
        return differs(DamageKind::Owner);
    }
    if stat.st_mode & 0o7777 != entry.mode {
        return differs(DamageKind::Mode);
    }
    Ok(())
}

/// Returns the path of the layer's `path` under its directory `dir`.
pub(crate) fn join_os(dir: &Path, path: &[u8]) -> PathBuf {
    dir.join(OsStr::from_bytes(path))
}
