//! Making a layer's directory name by name, without mounts: the one writer behind unpacking, copying, diffing and
//! flattening.

mod make;
mod place;
mod view;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use crate::entry::{Entry, Kind};
use crate::error::{Error, Result};
use crate::manifest::LayerManifest;
use crate::path;
use crate::sys::{self, Root, xattr::Xattrs};
use crate::tree::{ResolvedPath, Tree};

pub(crate) use make::set_mtime;
pub(crate) use place::join_os;
pub use place::{Overrides, Placed};

/// Mode, owner, time and attributes of a new file, directory, link or node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileMeta {
    /// Permission bits with setuid, setgid and sticky; ignored for symbolic links.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Modification time: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes; those that this file system cannot have are left out, silently.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl FileMeta {
    /// Returns `mode`, owner 0:0 and time `mtime` without attributes.
    pub fn new(mode: u32, mtime: (i64, u32)) -> Self {
        Self { mode, uid: 0, gid: 0, mtime, xattrs: BTreeMap::new() }
    }

    /// Returns what `entry` has.
    pub fn of(entry: &Entry) -> Self {
        Self { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, xattrs: entry.xattrs.clone() }
    }

    fn entry(&self, path: &[u8], kind: Kind) -> Entry {
        Entry {
            mode: if kind == Kind::Symlink { 0o777 } else { self.mode & 0o7777 },
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            ..Entry::new(path, kind)
        }
    }
}

/// Writes a new layer on top of a chain.
///
/// Paths are relative to the root and are not resolved: a symbolic link as a parent is an error, so callers that
/// take paths from users call [`resolve`](Self::resolve) first. Missing parents are made: with the metadata that
/// the lower layers have there, else with the implicit metadata. Making something replaces what is there, except
/// that a directory made where a directory is only changes its metadata. After an error the layer is good for
/// nothing but deletion.
pub struct LayerBuilder<'a> {
    root: Root,
    lower: &'a Tree,
    lower_dirs: &'a [PathBuf],
    /// By path with `/` as NUL, which makes byte order the component order.
    entries: BTreeMap<Vec<u8>, Entry>,
    /// Inodes of files that this layer holds or once held.
    inodes: HashSet<u64>,
    implicit: FileMeta,
    linking: bool,
    /// What files are read through, kept from one to the next.
    buffer: Vec<u8>,
}

impl<'a> LayerBuilder<'a> {
    /// Starts a layer in `dest`, which must be missing or empty, on top of `lower`, whose layers' directories are
    /// `lower_dirs` (bottom to top, as in the tree).
    ///
    /// # Errors
    /// When the directory cannot be made or is not empty.
    pub fn new(dest: &Path, lower: &'a Tree, lower_dirs: &'a [PathBuf]) -> Result<Self> {
        match std::fs::create_dir(dest) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                let mut there = std::fs::read_dir(dest).map_err(Error::io("read", dest))?;
                if there.next().is_some() {
                    let not_empty = std::io::Error::from(std::io::ErrorKind::DirectoryNotEmpty);
                    return Err(Error::io("make a layer in", dest)(not_empty));
                }
            }
            made => made.map_err(Error::io("create", dest))?,
        }
        let mut builder = Self {
            root: Root::open(dest)?,
            lower,
            lower_dirs,
            entries: BTreeMap::new(),
            inodes: HashSet::new(),
            implicit: FileMeta::new(0o755, (0, 0)),
            linking: true,
            buffer: Vec::new(),
        };
        let meta = lower.get(b"").map_or_else(|| FileMeta::new(0o755, (0, 0)), |node| FileMeta::of(node.entry));
        builder.set_dir(b"", &meta)?;
        Ok(builder)
    }

    /// Sets the metadata of parents that are made because they exist nowhere (0755, 0:0 and time 0 without this).
    pub fn set_implicit(&mut self, meta: FileMeta) {
        self.implicit = meta;
    }

    /// Makes [`link_or_copy`](Self::link_or_copy) always copy.
    pub(crate) fn never_link(&mut self) {
        self.linking = false;
    }

    /// Makes the directory `path`, or gives the one that is there this metadata. What lower layers hold in it
    /// stays visible, unless it was removed before.
    ///
    /// # Errors
    /// For bad paths, a parent that is no directory, and failing system calls.
    pub fn mkdir(&mut self, path: &[u8], meta: &FileMeta) -> Result<()> {
        path::check(path)?;
        match self.own(path).map(|e| e.kind) {
            Some(Kind::Dir) => self.set_dir(path, meta),
            Some(_) => {
                let hides = self.lower_visible(path).is_some_and(|e| e.is_dir());
                self.clear(path)?;
                self.make_dir(path, meta, hides)
            }
            None => {
                self.make_parents(path)?;
                self.make_dir(path, meta, false)
            }
        }
    }

    /// Makes the directory `path` and its missing parents with `meta`; directories that exist keep theirs.
    ///
    /// # Errors
    /// As [`mkdir`](Self::mkdir).
    pub fn mkdir_all(&mut self, path: &[u8], meta: &FileMeta) -> Result<()> {
        path::check(path)?;
        let implicit = std::mem::replace(&mut self.implicit, meta.clone());
        let made = self.make_dirs(path);
        self.implicit = implicit;
        made
    }

    /// Hides everything that lower layers hold in the directory `path`, which is made if it is missing.
    ///
    /// # Errors
    /// As [`mkdir`](Self::mkdir).
    pub fn set_opaque(&mut self, path: &[u8]) -> Result<()> {
        path::check(path)?;
        self.make_dirs(path)?;
        if self.lower.is_empty() {
            return Ok(());
        }
        let (dir, name) = self.root.place(path).map_err(Error::sys("open", path))?;
        mark_opaque(dir, name, path)?;
        if let Some(entry) = self.entries.get_mut(&key(path)) {
            entry.opaque = true;
        }
        Ok(())
    }

    /// Removes `path` and everything below it, leaving a whiteout where lower layers have it. Returns whether it
    /// was there.
    ///
    /// # Errors
    /// For bad paths, the root directory, and failing system calls.
    pub fn remove(&mut self, path: &[u8]) -> Result<bool> {
        path::check(path)?;
        if path.is_empty() {
            return Err(Error::BadPath { path: "/".into(), what: "the root cannot be removed" });
        }
        let own = self.own(path).map(|e| e.kind);
        if own == Some(Kind::Whiteout) {
            return Ok(false);
        }
        let below = self.lower_visible(path).is_some();
        if own.is_some() {
            self.clear(path)?;
        }
        if below {
            self.make_parents(path)?;
            self.make_whiteout(path)?;
        }
        Ok(own.is_some() || below)
    }

    /// Hides what lower layers have at `path` without touching what this layer has there. A whiteout of an
    /// archive means this. Does nothing where lower layers have nothing.
    ///
    /// # Errors
    /// As [`remove`](Self::remove).
    pub fn hide(&mut self, path: &[u8]) -> Result<()> {
        path::check(path)?;
        match self.own(path).map(|e| e.kind) {
            Some(Kind::Dir) if self.lower_visible(path).is_some() => self.set_opaque(path),
            Some(_) => Ok(()),
            None => self.remove(path).map(|_| ()),
        }
    }

    /// Tells what is at `path` in the layers below and this one together.
    pub fn lookup(&self, path: &[u8]) -> Option<&Entry> {
        match self.own(path) {
            Some(entry) => Some(entry).filter(|e| e.kind != Kind::Whiteout),
            None => self.lower_visible(path),
        }
    }

    /// Follows the symbolic links of `path`, over the layers below and this one together; see [`Tree::resolve`].
    ///
    /// # Errors
    /// As [`Tree::resolve`].
    pub fn resolve(&self, path: &[u8], follow_last: bool) -> Result<ResolvedPath> {
        Ok(self.resolve_in(b"", path, follow_last)?)
    }

    /// Sets the times of directories, which every change in them moved, and returns the layer's manifest.
    ///
    /// # Errors
    /// For failing system calls.
    pub fn finish(mut self) -> Result<LayerManifest> {
        let mut names: HashMap<u64, u32> = HashMap::new();
        let entries = std::mem::take(&mut self.entries);
        let mut entries: Vec<Entry> = entries.into_values().collect();
        for entry in &mut entries {
            match entry.kind {
                Kind::Dir => self.finish_dir(entry)?,
                Kind::Whiteout => {}
                _ => *names.entry(entry.ino).or_default() += 1,
            }
        }
        number_groups(&mut entries, &names);
        Ok(LayerManifest::new(entries)?)
    }

    fn finish_dir(&mut self, entry: &mut Entry) -> Result<()> {
        let fail = |e| Error::sys("finish the directory", &entry.path)(e);
        let (dir, name) = self.root.place(&entry.path).map_err(fail)?;
        if let Some(acl) = entry.xattrs.get(sys::xattr::DEFAULT_ACL)
            && !sys::xattr::set(dir, name, sys::xattr::DEFAULT_ACL, acl).map_err(fail)?
        {
            entry.xattrs.remove(sys::xattr::DEFAULT_ACL);
        }
        set_mtime(dir, name, entry.mtime).map_err(fail)?;
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
        entry.ino = stat.st_ino;
        // A file system with coarser times keeps less than was asked for; the manifest says what is there.
        entry.mtime = sys::mtime_of(&stat);
        Ok(())
    }

    fn own(&self, path: &[u8]) -> Option<&Entry> {
        self.entries.get(&key(path))
    }

    fn insert(&mut self, entry: Entry) {
        if !matches!(entry.kind, Kind::Dir | Kind::Whiteout) {
            self.inodes.insert(entry.ino);
        }
        self.entries.insert(key(&entry.path), entry);
    }

    /// Makes the directories above `path` that this layer lacks.
    fn make_parents(&mut self, path: &[u8]) -> Result<()> {
        match path::parent(path) {
            Some(parent) if !self.own(parent).is_some_and(Entry::is_dir) => self.make_dirs(parent),
            _ => Ok(()),
        }
    }

    /// Makes `path` and the directories above it as far as this layer lacks them.
    fn make_dirs(&mut self, path: &[u8]) -> Result<()> {
        let ends = path.iter().enumerate().filter(|&(_, &b)| b == b'/').map(|(i, _)| i).chain([path.len()]);
        for end in ends {
            let dir = &path[..end];
            match self.own(dir).map(|e| e.kind) {
                Some(Kind::Dir) => {}
                Some(Kind::Whiteout) => {
                    let meta = self.implicit.clone();
                    self.mkdir(dir, &meta)?;
                }
                Some(_) => return Err(Error::NotADirectory(path::lossy(dir))),
                None => {
                    let meta = match self.lower_visible(dir) {
                        Some(entry) if entry.is_dir() => FileMeta::of(entry),
                        Some(_) => return Err(Error::NotADirectory(path::lossy(dir))),
                        None => self.implicit.clone(),
                    };
                    self.make_dir(dir, &meta, false)?;
                }
            }
        }
        Ok(())
    }

    /// Deletes what this layer has at `path`, from disk and from the manifest to be.
    fn clear(&mut self, path: &[u8]) -> Result<()> {
        if path.is_empty() {
            return Err(Error::BadPath { path: "/".into(), what: "the root cannot be replaced" });
        }
        let start = key(path);
        let below: Vec<Vec<u8>> = self
            .entries
            .range(start.clone()..)
            .take_while(|(k, _)| k.starts_with(&start) && matches!(k.get(start.len()), None | Some(0)))
            .map(|(k, _)| k.clone())
            .collect();
        for key in below.iter().rev() {
            let Some(entry) = self.entries.remove(key) else { continue };
            let (dir, name) = self.root.place(&entry.path).map_err(Error::sys("open", &entry.path))?;
            let flags = if entry.is_dir() { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            match rustix::fs::unlinkat(dir, name, flags) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(Error::sys("remove", &entry.path)(e)),
            }
            if entry.is_dir() {
                self.root.forget();
            }
        }
        Ok(())
    }

    fn make_dir(&mut self, path: &[u8], meta: &FileMeta, opaque: bool) -> Result<()> {
        let (dir, name) = self.root.place(path).map_err(Error::sys("open", path))?;
        rustix::fs::mkdirat(dir, name, Mode::RWXU).map_err(Error::sys("create the directory", path))?;
        if opaque {
            mark_opaque(dir, name, path)?;
        }
        self.insert(Entry { opaque, ..Entry::new(path, Kind::Dir) });
        self.set_dir(path, meta)
    }

    /// Gives a directory of this layer its metadata, but for the time and the inherited access list.
    fn set_dir(&mut self, path: &[u8], meta: &FileMeta) -> Result<()> {
        let opaque = self.own(path).is_some_and(|e| e.opaque);
        let (dir, name) = self.root.place(path).map_err(Error::sys("open", path))?;
        let mut plain = meta.clone();
        let acl = plain.xattrs.remove(sys::xattr::DEFAULT_ACL);
        let fail = |e| Error::sys("set attributes of", path)(e);
        if let Some(entry) = self.entries.get(&key(path)) {
            for old in entry.xattrs.keys().filter(|k| !plain.xattrs.contains_key(*k)) {
                sys::xattr::remove(dir, name, old).map_err(fail)?;
            }
        }
        let mut xattrs: Xattrs = make::set_meta(dir, name, Kind::Dir, &plain).map_err(fail)?;
        xattrs.extend(acl.map(|acl| (sys::xattr::DEFAULT_ACL.to_vec(), acl)));
        let entry = Entry { xattrs, opaque, ..meta.entry(path, Kind::Dir) };
        self.insert(entry);
        Ok(())
    }

    fn make_whiteout(&mut self, path: &[u8]) -> Result<()> {
        let (dir, name) = self.root.place(path).map_err(Error::sys("open", path))?;
        make::whiteout(dir, name).map_err(Error::sys("create a whiteout at", path))?;
        self.insert(Entry::whiteout(path));
        Ok(())
    }
}

/// Gives names that share an inode a common number, counted in order of the first of them.
pub(crate) fn number_groups(entries: &mut [Entry], names: &HashMap<u64, u32>) {
    let mut groups: HashMap<u64, u32> = HashMap::new();
    for entry in entries {
        if !matches!(entry.kind, Kind::Dir | Kind::Whiteout) {
            let next = groups.len() as u32;
            let shared = names.get(&entry.ino).is_some_and(|&n| n > 1);
            entry.nlink_group = shared.then(|| *groups.entry(entry.ino).or_insert(next));
        }
    }
}

fn mark_opaque(dir: std::os::fd::BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<()> {
    let marked = sys::xattr::set(dir, name, sys::xattr::opaque_name().as_bytes(), b"y");
    match marked.map_err(Error::sys("mark as opaque", path))? {
        true => Ok(()),
        false => Err(Error::sys("mark as opaque", path)(Errno::OPNOTSUPP)),
    }
}

/// Returns `path` as a key whose byte order is the component order.
fn key(path: &[u8]) -> Vec<u8> {
    path.iter().map(|&b| if b == b'/' { 0 } else { b }).collect()
}
