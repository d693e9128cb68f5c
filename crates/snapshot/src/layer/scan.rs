//! Reading a directory into a manifest: what a step left in its upper directory, or what a stored layer holds.

use std::collections::HashMap;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use kiln_stdx::{Digest, DigestHasher};
use rustix::fs::{AtFlags, OFlags, RawDir, Stat};
use rustix::io::Errno;

use super::build::number_groups;
use crate::entry::{Entry, Kind};
use crate::error::{Error, Result};
use crate::manifest::LayerManifest;
use crate::path;
use crate::sys::{self, Root};

/// Reads the directory `dir`, in the form that layers have on disk, into a manifest. Files are hashed on all cores.
/// Sockets are left out: no image holds any.
///
/// # Errors
/// When something cannot be read, or a path is longer than layers take.
pub fn scan(dir: &Path) -> Result<LayerManifest> {
    let mut found = scan_with(dir, |_, _| {})?.entries;
    digest_files(dir, &mut found, |_| true)?;
    Ok(LayerManifest::new(found)?)
}

/// What a directory holds.
pub(crate) struct Scanned {
    /// In component order, every file with the digest of no bytes.
    pub(crate) entries: Vec<Entry>,
    /// Paths of sockets, which have no entries.
    pub(crate) sockets: Vec<Vec<u8>>,
}

/// Reads `dir` without hashing. `see` gets each entry with its status.
pub(crate) fn scan_with(dir: &Path, mut see: impl FnMut(&Entry, &Stat)) -> Result<Scanned> {
    let mut root = Root::open(dir)?;
    let stat = root.stat(b"").map_err(|e| Error::io("stat", dir)(e.into()))?;
    let (xattrs, opaque) = sys::xattr::read(root.fd(), b".").map_err(|e| Error::io("read", dir)(e.into()))?;
    let top = Entry { xattrs, opaque, ..plain(Vec::new(), Kind::Dir, &stat) };
    see(&top, &stat);
    let mut found = vec![top];
    let mut sockets = Vec::new();
    let mut todo = vec![Vec::new()];
    let mut names: HashMap<u64, u32> = HashMap::new();
    let mut buf = Vec::with_capacity(32 * 1024);
    while let Some(dir) = todo.pop() {
        let fd = root.open_dir(&dir, OFlags::RDONLY).map_err(Error::sys("open", &dir))?;
        let mut listing = RawDir::new(&fd, buf.spare_capacity_mut());
        while let Some(item) = listing.next() {
            let item = item.map_err(Error::sys("list", &dir))?;
            let name = item.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let at = path::join(&dir, name);
            path::check(&at)?;
            let (entry, stat) = match read_entry(fd.as_fd(), name, at)? {
                Ok(read) => read,
                Err(socket) => {
                    sockets.push(socket);
                    continue;
                }
            };
            if entry.is_dir() {
                todo.push(entry.path.clone());
            } else if stat.st_nlink > 1 && entry.kind != Kind::Whiteout {
                *names.entry(entry.ino).or_default() += 1;
            }
            see(&entry, &stat);
            found.push(entry);
        }
    }
    found.sort_by(|a, b| path::cmp(&a.path, &b.path));
    number_groups(&mut found, &names);
    Ok(Scanned { entries: found, sockets })
}

/// Reads what is at `name` in `dir`; gives the path back for a socket.
fn read_entry(dir: BorrowedFd<'_>, name: &[u8], at: Vec<u8>) -> Result<Result<(Entry, Stat), Vec<u8>>> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(Error::sys("stat", &at))?;
    let Some(kind) = sys::kind_of(&stat) else { return Ok(Err(at)) };
    if kind == Kind::Whiteout {
        return Ok(Ok((Entry::whiteout(at), stat)));
    }
    let mut entry = plain(at, kind, &stat);
    if kind == Kind::Symlink {
        let target = rustix::fs::readlinkat(dir, name, Vec::new()).map_err(Error::sys("read the link", &entry.path))?;
        entry.target = target.into_bytes();
    }
    let (xattrs, opaque) = sys::xattr::read(dir, name).map_err(Error::sys("read attributes of", &entry.path))?;
    entry.xattrs = xattrs;
    entry.opaque = opaque && kind == Kind::Dir;
    Ok(Ok((entry, stat)))
}

fn plain(path: Vec<u8>, kind: Kind, stat: &Stat) -> Entry {
    let device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
    Entry {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: sys::mtime_of(stat),
        size: if kind == Kind::File { stat.st_size.cast_unsigned() } else { 0 },
        ino: stat.st_ino,
        rdev: if device { sys::rdev_of(stat) } else { (0, 0) },
        digest: (kind == Kind::File).then(|| Digest::of(b"")),
        ..Entry::new(path, kind)
    }
}

/// Hashes the files of `entries` under `dir` for which `wanted` holds, each inode once, on all cores.
pub(crate) fn digest_files(dir: &Path, entries: &mut [Entry], wanted: impl Fn(&Entry) -> bool) -> Result<()> {
    let mut first: HashMap<u32, usize> = HashMap::new();
    let mut jobs: Vec<usize> = Vec::new();
    let mut copies: Vec<(usize, usize)> = Vec::new();
    for (i, entry) in entries.iter().enumerate() {
        if !entry.is_file() || !wanted(entry) {
            continue;
        }
        match entry.nlink_group.map(|group| *first.entry(group).or_insert(i)) {
            Some(from) if from != i => copies.push((i, from)),
            _ if entry.size > 0 => jobs.push(i),
            _ => {}
        }
    }
    for (i, digest) in digest_jobs(dir, entries, &jobs)? {
        entries[i].digest = Some(digest);
    }
    for (to, from) in copies {
        entries[to].digest = entries[from].digest;
    }
    Ok(())
}

fn digest_jobs(dir: &Path, entries: &[Entry], jobs: &[usize]) -> Result<Vec<(usize, Digest)>> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, Digest)>> {
        let mut root = Root::open(dir)?;
        let mut buf = vec![0u8; 256 * 1024];
        let mut done = Vec::new();
        while let Some(&job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let path = &entries[job].path;
            let digest = digest_file(&mut root, path, &mut buf).map_err(Error::sys("read", path))?;
            done.push((job, digest));
        }
        Ok(done)
    };
    // A thread costs more than hashing a few files.
    let threads = sys::workers().min(jobs.len().div_ceil(8)).max(1);
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut all = work()?;
        for other in others {
            let part = other.join().map_err(|_| Error::io("hash", dir)(std::io::Error::other("a thread died")))?;
            all.extend(part?);
        }
        Ok(all)
    })
}

fn digest_file(root: &mut Root, path: &[u8], buf: &mut [u8]) -> Result<Digest, Errno> {
    let mut file = std::fs::File::from(root.open_file(path)?);
    let mut hasher = DigestHasher::new();
    loop {
        match file.read(buf) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(n) => hasher.update(&buf[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Errno::from_io_error(&e).unwrap_or(Errno::IO)),
        }
    }
}
