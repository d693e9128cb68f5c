//! A directory as a tree to send: walked beneath a descriptor, filtered, in the order the protocol wants.
//!
//! The client offers its contexts through this, and an engine that was handed a descriptor reads it through the same
//! code, so that both give the same entries.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use kiln_stdx::pattern::{LinkSource, PathFilter, Verdict, Walk, follow_paths};
use rustix::fs::{AtFlags, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;

use crate::error::SessionError;
use crate::proto::fs::Stat;
use crate::stat::{go, to_go_mode};
use crate::transfer::TreeSource;

/// Attributes that mean nothing off the machine they were set on.
const XATTR_SKIPPED: &str = "com.apple.";
/// Largest value of an extended attribute that Linux knows, in bytes.
const XATTR_MAX: usize = 64 * 1024;

/// A directory with what of it is wanted.
#[derive(Debug)]
pub struct DirTree {
    root: OwnedFd,
    filter: PathFilter,
    /// Files belong to user and group 0, whoever owns them here.
    reset_owner: bool,
}

/// A part of a directory, as patterns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TreeFilter {
    pub include_patterns: Vec<String>,
    pub exclude_patterns: Vec<String>,
    /// Paths, with the symbolic links on the way to them, to include besides.
    pub follow_paths: Vec<String>,
}

impl DirTree {
    /// Opens a directory.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self::from_fd(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// Takes an open directory.
    pub fn from_fd(root: OwnedFd) -> Self {
        Self { root, filter: PathFilter::default(), reset_owner: false }
    }

    /// Sets whether files are said to belong to user and group 0.
    #[must_use]
    pub fn reset_owner(mut self, reset: bool) -> Self {
        self.reset_owner = reset;
        self
    }

    /// Narrows the tree.
    ///
    /// # Errors
    /// A malformed pattern, or a link that cannot be read.
    pub fn filtered(mut self, filter: &TreeFilter) -> Result<Self, SessionError> {
        let mut include: Vec<Vec<u8>> = filter.include_patterns.iter().map(|p| p.as_bytes().to_vec()).collect();
        if !filter.follow_paths.is_empty() {
            let paths: Vec<Vec<u8>> = filter.follow_paths.iter().map(|p| p.as_bytes().to_vec()).collect();
            let found = follow_paths(&self, &paths).map_err(|e| SessionError::io("following links of a context", e))?;
            // Without a limit the follow paths add nothing to the include patterns.
            include.extend(found.unwrap_or_default());
        }
        self.filter = PathFilter::new(include, &filter.exclude_patterns)
            .map_err(|e| SessionError::Input(format!("invalid pattern: {e}")))?;
        Ok(self)
    }

    /// Opens `path` beneath the root, following no link.
    fn beneath(&self, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        Ok(rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve)?)
    }
}

impl LinkSource for DirTree {
    fn read_link(&self, path: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let (dir, name) = match path.iter().rposition(|&b| b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b"."[..], path),
        };
        let dir = match self.beneath(dir, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(dir) => dir,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        match rustix::fs::readlinkat(&dir, name, Vec::new()) {
            Ok(target) => Ok(Some(target.into_bytes())),
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn names(&self, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        match self.beneath(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(dir) => Ok(list(&dir)?.into_iter().map(|(name, _)| name.into_bytes()).collect()),
            Err(error) if is_missing(&error) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// Tells "not there, or something else by now" from real failures.
fn is_missing(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV))
}

/// Lists a directory in byte order; the flag is true for what may be a directory.
fn list(dir: &OwnedFd) -> io::Result<Vec<(CString, bool)>> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 32 * 1024];
    let mut raw = RawDir::new(dir, &mut buffer);
    let mut out = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            let kind = entry.file_type();
            let maybe_dir = matches!(kind, rustix::fs::FileType::Directory | rustix::fs::FileType::Unknown);
            out.push((name.to_owned(), maybe_dir));
        }
    }
    out.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(out)
}

/// One directory on the way down.
struct Frame {
    dir: OwnedFd,
    path: Vec<u8>,
    /// What is left of it, last first.
    names: Vec<(CString, bool)>,
    /// Its own entry, until it is handed out.
    stat: Option<Stat>,
}

struct Walker<'a> {
    tree: &'a DirTree,
    walk: Walk<'a>,
    stack: Vec<Frame>,
    /// First path of each inode with several names.
    links: HashMap<(u64, u64), Vec<u8>>,
}

type Emit<'a> = &'a mut dyn FnMut(Stat) -> io::Result<()>;

impl TreeSource for DirTree {
    fn walk(&self, emit: Emit<'_>) -> io::Result<()> {
        let mut walker = Walker { tree: self, walk: self.filter.walk(), stack: Vec::new(), links: HashMap::new() };
        // A descriptor of its own: reading a directory moves its position.
        let root = self.beneath(b".", OFlags::RDONLY | OFlags::DIRECTORY)?;
        walker.enter(root, Vec::new(), None)?;
        while let Some(frame) = walker.stack.last_mut() {
            match frame.names.pop() {
                Some((name, maybe_dir)) => walker.visit(&name, maybe_dir, emit)?,
                None => {
                    walker.stack.pop();
                }
            }
        }
        Ok(())
    }

    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        // Not blocking: the file may have become a pipe that nobody writes to.
        let fd = self.beneath(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let file = File::from(fd);
        if file.metadata()?.is_file() { Ok(Box::new(file)) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

impl Walker<'_> {
    fn enter(&mut self, dir: OwnedFd, path: Vec<u8>, stat: Option<Stat>) -> io::Result<()> {
        let mut names = list(&dir)?;
        names.reverse();
        self.stack.push(Frame { dir, path, names, stat });
        Ok(())
    }

    fn visit(&mut self, name: &CStr, maybe_dir: bool, emit: Emit<'_>) -> io::Result<()> {
        let Some(frame) = self.stack.last() else { return Ok(()) };
        let mut path = frame.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        // Whether an entry is a directory decides about pruning; only then the file system must be asked first.
        let mut meta = None;
        let mut is_dir = false;
        if maybe_dir {
            meta = stat_at(&frame.dir, name)?;
            match &meta {
                Some(m) => is_dir = rustix::fs::FileType::from_raw_mode(m.st_mode).is_dir(),
                None => return Ok(()),
            }
        }
        let verdict = self.walk.visit(&path, is_dir);
        if verdict == Verdict::Prune || (verdict == Verdict::Pass && !is_dir) {
            return Ok(());
        }
        let meta = match meta {
            Some(meta) => meta,
            None => match stat_at(&frame.dir, name)? {
                Some(meta) => meta,
                None => return Ok(()),
            },
        };
        let Some(stat) = self.entry(name, &path, &meta)? else { return Ok(()) };
        let taken = matches!(verdict, Verdict::Take { .. });
        if let Verdict::Take { parents } = verdict {
            for parent in &parents {
                if let Some(held) = self.stack.iter_mut().find(|f| f.path == *parent).and_then(|f| f.stat.take()) {
                    emit(held)?;
                }
            }
        }
        if !is_dir {
            return emit(stat);
        }
        self.descend(name, path, stat, taken, emit)
    }

    fn descend(&mut self, name: &CStr, path: Vec<u8>, stat: Stat, taken: bool, emit: Emit<'_>) -> io::Result<()> {
        let Some(frame) = self.stack.last() else { return Ok(()) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&frame.dir, name, flags, Mode::empty());
        let held = if taken {
            emit(stat)?;
            None
        } else {
            Some(stat)
        };
        match opened {
            Ok(dir) => self.enter(dir, path, held),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            // Nothing of a directory that is only passed through was asked for.
            Err(Errno::ACCESS | Errno::PERM) if !taken => Ok(()),
            Err(error) => Err(io::Error::new(io::Error::from(error).kind(), format!("open {}: {error}", lossy(&path)))),
        }
    }

    /// Makes an entry; none when the file vanished meanwhile.
    fn entry(&mut self, name: &CStr, path: &[u8], meta: &rustix::fs::Stat) -> io::Result<Option<Stat>> {
        let Some(frame) = self.stack.last() else { return Ok(None) };
        // Sockets are sent as what is left of them without the kind: an empty file.
        let mode = to_go_mode(meta.st_mode) & !go::SOCKET;
        let is_dir = mode & go::DIR != 0;
        let mut stat = Stat {
            path: path.to_vec(),
            mode,
            mod_time: meta.st_mtime.saturating_mul(1_000_000_000).saturating_add(meta.st_mtime_nsec.cast_signed()),
            xattrs: xattrs(&frame.dir, name),
            ..Stat::default()
        };
        if !self.tree.reset_owner {
            (stat.uid, stat.gid) = (meta.st_uid, meta.st_gid);
        }
        if is_dir {
            return Ok(Some(stat));
        }
        stat.size = meta.st_size;
        if mode & go::DEVICE != 0 {
            stat.devmajor = i64::from(rustix::fs::major(meta.st_rdev));
            stat.devminor = i64::from(rustix::fs::minor(meta.st_rdev));
        }
        if mode & go::SYMLINK != 0 {
            match rustix::fs::readlinkat(&frame.dir, name, Vec::new()) {
                Ok(target) => stat.linkname = target.into_bytes(),
                Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        } else if meta.st_nlink > 1 {
            match self.links.entry((meta.st_dev, meta.st_ino)) {
                std::collections::hash_map::Entry::Occupied(first) => stat.linkname.clone_from(first.get()),
                std::collections::hash_map::Entry::Vacant(slot) => {
                    slot.insert(path.to_vec());
                }
            }
        }
        Ok(Some(stat))
    }
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// Returns metadata; none when the entry vanished.
fn stat_at(dir: &OwnedFd, name: &CStr) -> io::Result<Option<rustix::fs::Stat>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(meta) => Ok(Some(meta)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns extended attributes. Those that cannot be read are left out, as on file systems that have none.
fn xattrs(dir: &OwnedFd, name: &CStr) -> std::collections::BTreeMap<String, Vec<u8>> {
    let mut out = std::collections::BTreeMap::new();
    // There is no call that takes a directory and a name; the descriptor's link in /proc stands for the directory.
    let path = [b"/proc/self/fd/", dir.as_fd().as_raw_fd().to_string().as_bytes(), b"/", name.to_bytes()].concat();
    let mut small = [0u8; 512];
    let names = match rustix::fs::llistxattr(path.as_slice(), &mut small[..]) {
        Ok(n) => small[..n].to_vec(),
        Err(Errno::RANGE) => {
            let mut large = vec![0u8; XATTR_MAX];
            let n = rustix::fs::llistxattr(path.as_slice(), &mut large[..]).unwrap_or(0);
            large.truncate(n);
            large
        }
        Err(_) => return out,
    };
    for key in names.split(|&b| b == 0).filter(|k| !k.is_empty()) {
        let Ok(text) = std::str::from_utf8(key) else { continue };
        if text.starts_with(XATTR_SKIPPED) {
            continue;
        }
        let mut value = vec![0; XATTR_MAX];
        if let Ok(n) = rustix::fs::lgetxattr(path.as_slice(), key, &mut value[..]) {
            value.truncate(n);
            out.insert(text.to_owned(), value);
        }
    }
    out
}
