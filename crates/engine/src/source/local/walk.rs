//! Walks a client's directory beneath a descriptor that the client handed over, never by path.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use kiln_snapshot::{Entry, Kind};
use kiln_stdx::pattern::{LinkSource, PathFilter, Verdict, Walk as Judge, follow_paths};
use kiln_store::{ContextIndex, StatKey};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, openat2, readlinkat, statat};

use super::Wanted;

/// One name of the directory.
#[derive(Debug)]
pub struct Found {
    /// Without inode and link group; with the digest of its bytes where the index knows it.
    pub entry: Entry,
    /// What identifies the state of a regular file; none for everything else, and for sockets, of which an empty file
    /// is what is left.
    pub key: Option<StatKey>,
    /// Device and inode, when the file has several names.
    pub linked: Option<(u64, u64)>,
}

/// Lists the wanted part of `root` in component order, each directory before its content; `index` is of its user and
/// file system.
///
/// # Errors
/// A directory or file that cannot be read, with its path; a malformed pattern.
pub fn walk(root: BorrowedFd<'_>, wanted: &Wanted, index: Option<&ContextIndex>) -> io::Result<Vec<Found>> {
    let mut include: Vec<Vec<u8>> = wanted.include.iter().map(|p| p.clone().into_bytes()).collect();
    if !wanted.follow.is_empty() {
        let paths: Vec<Vec<u8>> = wanted.follow.iter().map(|p| p.clone().into_bytes()).collect();
        if let Some(followed) = follow_paths(&Beneath(root), &paths)? {
            include.extend(followed);
        }
    }
    let bad = |e: kiln_stdx::pattern::PatternError| io::Error::new(io::ErrorKind::InvalidInput, e.to_string());
    let filter = PathFilter::new(&include, &wanted.exclude).map_err(bad)?;
    let mut walker = Walker { judge: filter.walk(), index, found: Vec::new(), dirs: BTreeMap::new() };
    walker.dir(root, b"")?;
    Ok(walker.found)
}

/// Opens a regular file beneath `root` for reading.
///
/// # Errors
/// It is gone, is no longer a file, or cannot be read.
pub fn open_file(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<std::fs::File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(root, OsStr::from_bytes(path), flags, Mode::empty(), resolve)
        .map(Into::into)
        .map_err(|e| at(path, e.into()))
}

/// Returns the names in a directory beneath `root`; none when it cannot be read.
pub fn names_in(root: BorrowedFd<'_>, dir: &[u8]) -> Vec<String> {
    let names = Beneath(root).names(dir).unwrap_or_default();
    names.into_iter().filter_map(|name| String::from_utf8(name).ok()).collect()
}

fn at(path: &[u8], error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", String::from_utf8_lossy(path)))
}

struct Walker<'a> {
    judge: Judge<'a>,
    index: Option<&'a ContextIndex>,
    found: Vec<Found>,
    /// Directories that were passed over and may be taken later for what is in them.
    dirs: BTreeMap<Vec<u8>, Found>,
}

impl Walker<'_> {
    fn dir(&mut self, dir: BorrowedFd<'_>, path: &[u8]) -> io::Result<()> {
        for name in names(dir).map_err(|e| at(path, e))? {
            let full = if path.is_empty() { name.to_bytes().to_vec() } else { [path, b"/", name.to_bytes()].concat() };
            let Some(found) = look(dir, &name, &full, self.index).map_err(|e| at(&full, e))? else { continue };
            let is_dir = found.entry.kind == Kind::Dir;
            let descend = match self.judge.visit(&full, is_dir) {
                Verdict::Prune => false,
                Verdict::Pass => {
                    if is_dir {
                        self.dirs.insert(full.clone(), found);
                    }
                    is_dir
                }
                Verdict::Take { parents } => {
                    let passed = parents.iter().filter_map(|parent| self.dirs.remove(parent));
                    self.found.extend(passed);
                    self.found.push(found);
                    is_dir
                }
            };
            if descend {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let child = rustix::fs::openat(dir, &name, flags, Mode::empty()).map_err(|e| at(&full, e.into()))?;
                self.dir(child.as_fd(), &full)?;
                self.dirs.remove(&full);
            }
        }
        Ok(())
    }
}

/// Returns the names in a directory, sorted.
fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let own = rustix::fs::openat(dir, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut names = Vec::new();
    let mut entries = RawDir::new(own, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Returns what a name is; none for what went away meanwhile.
fn look(dir: BorrowedFd<'_>, name: &CStr, path: &[u8], index: Option<&ContextIndex>) -> io::Result<Option<Found>> {
    let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let raw_kind = FileType::from_raw_mode(stat.st_mode);
    let kind = match raw_kind {
        // Clients of the file sync protocol send sockets as empty files, so they are that here too.
        FileType::RegularFile | FileType::Socket => Kind::File,
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::CharacterDevice => Kind::CharDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        _ => return Ok(None),
    };
    let mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or_default());
    let mut entry = Entry::new(path, kind);
    entry.mode = if kind == Kind::Symlink { 0o777 } else { stat.st_mode & 0o7777 };
    entry.mtime = mtime;
    if kind == Kind::Symlink {
        entry.target = readlinkat(dir, name, Vec::new())?.into_bytes();
    }
    if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
        entry.rdev = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    }
    let mut key = None;
    let mut linked = None;
    let mut plain = kind == Kind::Symlink;
    if raw_kind == FileType::RegularFile {
        let state = stat_key(&stat);
        entry.size = state.size;
        if let Some(known) = index.and_then(|index| index.get(&state)) {
            entry.digest = Some(known.digest);
            plain = known.plain;
        }
        key = Some(state);
        linked = (stat.st_nlink > 1).then_some((stat.st_dev, stat.st_ino));
    }
    if !plain {
        entry.xattrs = xattrs(dir, name);
    }
    Ok(Some(Found { entry, key, linked }))
}

/// Returns what identifies the state of a file.
pub fn stat_key(stat: &rustix::fs::Stat) -> StatKey {
    StatKey {
        ino: stat.st_ino,
        size: u64::try_from(stat.st_size).unwrap_or_default(),
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or_default()),
        ctime: (stat.st_ctime, u32::try_from(stat.st_ctime_nsec).unwrap_or_default()),
    }
}

/// Returns the extended attributes of a name, without those that belong to the host; an unreadable list is empty.
fn xattrs(dir: BorrowedFd<'_>, name: &CStr) -> BTreeMap<Vec<u8>, Vec<u8>> {
    use std::os::fd::AsRawFd;
    let mut attributes = BTreeMap::new();
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    let path = OsStr::from_bytes(&path);
    let mut list = [0u8; 4096];
    let Ok(length) = rustix::fs::llistxattr(path, &mut list) else { return attributes };
    for attribute in list[..length].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let host = attribute.starts_with(b"system.")
            || attribute.starts_with(b"trusted.")
            || (attribute.starts_with(b"security.") && attribute != b"security.capability")
            || attribute.starts_with(b"com.apple.");
        if host {
            continue;
        }
        let mut value = vec![0u8; 64 << 10];
        if let Ok(length) = rustix::fs::lgetxattr(path, OsStr::from_bytes(attribute), &mut value) {
            value.truncate(length);
            attributes.insert(attribute.to_vec(), value);
        }
    }
    attributes
}

/// Reads links and names beneath a directory, for following paths.
struct Beneath<'a>(BorrowedFd<'a>);

impl Beneath<'_> {
    fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, rustix::io::Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let path = if path.is_empty() { b".".as_slice() } else { path };
        openat2(self.0, OsStr::from_bytes(path), flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }
}

impl LinkSource for Beneath<'_> {
    fn read_link(&self, path: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let Ok(link) = self.open(path, OFlags::PATH | OFlags::NOFOLLOW) else { return Ok(None) };
        match readlinkat(&link, c"", Vec::new()) {
            Ok(target) => Ok(Some(target.into_bytes())),
            Err(_) => Ok(None),
        }
    }

    fn names(&self, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        match self.open(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(dir) => Ok(names(dir.as_fd())?.into_iter().map(CString::into_bytes).collect()),
            Err(_) => Ok(Vec::new()),
        }
    }
}
