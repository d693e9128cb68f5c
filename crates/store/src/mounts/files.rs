//! Looking into cache mounts. What steps left there is not trusted: no path and no link leads out of the directory.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::error::{IoContext, Result, StoreError};
use crate::store::Store;

/// A file of a cache mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountFile {
    /// Its name in the directory.
    pub name: Vec<u8>,
    /// Kind and permission bits, as `stat` has them.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime: i64,
    /// Where a symbolic link leads; empty for other files.
    pub target: Vec<u8>,
}

impl Store {
    /// Lists the directory `path` of the cache mount in `directory` by name, or tells of the one file it names. Links that
    /// stay inside are followed.
    ///
    /// # Errors
    /// There is no such mount or path, or the path leads out.
    pub fn cache_mount_files(&self, directory: &str, path: &str) -> Result<Vec<MountFile>> {
        let place = self.place(directory, path)?;
        if place.kind() != FileType::Directory {
            let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
            return Ok(vec![file(name.as_bytes(), &place.stat, &place.fd)]);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&place.fd, c".", flags, Mode::empty()).at("open", &place.shown)?;
        let mut files = Vec::new();
        for entry in Dir::read_from(&fd).at("read", &place.shown)? {
            let entry = entry.at("read", &place.shown)?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            match rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => files.push(file(name.to_bytes(), &stat, &fd)),
                // A step may be at work there.
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e).at("read", &place.shown),
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }

    /// Opens the regular file `path` of the cache mount in `directory`. Links that stay inside are followed.
    ///
    /// # Errors
    /// As [`Store::cache_mount_files`]; or it is no regular file.
    pub fn open_cache_file(&self, directory: &str, path: &str) -> Result<File> {
        let place = self.place(directory, path)?;
        match place.kind() {
            FileType::RegularFile => {}
            FileType::Directory => return Err(StoreError::Invalid(format!("{path} is a directory"))),
            _ => return Err(StoreError::Invalid(format!("{path} is not a regular file"))),
        }
        // Only now for reading: opening a pipe or a device would have done something.
        let own = PathBuf::from(format!("/proc/self/fd/{}", place.fd.as_raw_fd()));
        File::open(own).at("open", &place.shown)
    }

    fn place(&self, directory: &str, path: &str) -> Result<Place> {
        let missing = || StoreError::Invalid(format!("there is no cache mount {directory}"));
        if self.0.mounts.mounts.lock().get(directory).is_none_or(|state| state.retired) {
            return Err(missing());
        }
        let shown = self.0.mount_dir(directory);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, &shown, flags, Mode::empty()).map_err(|_| missing())?;
        let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        if parts.contains(&"..") {
            return Err(StoreError::Invalid(format!("{path}: `..` has no meaning in a cache mount")));
        }
        let fd = beneath(root, &parts).map_err(|e| refused(e, path))?;
        let stat = rustix::fs::fstat(&fd).at("read", &shown)?;
        Ok(Place { fd, stat, shown })
    }
}

/// What a path leads to.
struct Place {
    fd: OwnedFd,
    stat: Stat,
    /// The mount's directory, for errors.
    shown: PathBuf,
}

impl Place {
    fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }
}

/// Opens what the names lead to, without a look outside of `root`.
fn beneath(root: OwnedFd, parts: &[&str]) -> Result<OwnedFd, Errno> {
    if parts.is_empty() {
        return Ok(root);
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match rustix::fs::openat2(&root, parts.join("/"), flags, Mode::empty(), resolve) {
        // Where the call is refused as a whole, or another process moves directories about: name by name, no link followed.
        Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN) => by_steps(root, parts),
        other => other,
    }
}

fn by_steps(root: OwnedFd, parts: &[&str]) -> Result<OwnedFd, Errno> {
    let mut at = root;
    for part in parts {
        at = rustix::fs::openat(&at, *part, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    }
    let stat = rustix::fs::fstat(&at)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink { Err(Errno::XDEV) } else { Ok(at) }
}

fn refused(error: Errno, path: &str) -> StoreError {
    match error {
        Errno::NOENT => StoreError::NotFound(path.to_owned()),
        Errno::XDEV => StoreError::Invalid(format!("{path} leads out of the cache mount")),
        Errno::NOTDIR => StoreError::Invalid(format!("{path}: not a directory")),
        other => StoreError::Invalid(format!("{path}: {other}")),
    }
}

fn file(name: &[u8], stat: &Stat, dir: impl AsFd) -> MountFile {
    let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    let target = is_link.then(|| rustix::fs::readlinkat(dir, OsStr::from_bytes(name), Vec::new()).ok()).flatten();
    let nanos = i64::try_from(stat.st_mtime_nsec).unwrap_or_default();
    MountFile {
        name: name.to_vec(),
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mtime: stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(nanos),
        target: target.map(|t| t.to_bytes().to_vec()).unwrap_or_default(),
    }
}
