//! Reading a directory into a manifest: what a step left in its upper directory, or what a stored layer holds.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use kiln_stdx::{DigestHasher, Fingerprint, FingerprintHasher};
use rustix::fs::{AtFlags, OFlags, RawDir, Stat};

use super::build::number_groups;
use super::verify::damage_of;
use crate::entry::{Entry, Kind};
use crate::error::{Damage, DamageKind, Error, Result};
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
        digest: (kind == Kind::File).then(|| Fingerprint::of(b"")),
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
    for (i, print) in each_file(dir, entries, &jobs, |file, _, buf| Ok(Fingerprint::of_reader(file, buf)?.0))? {
        entries[i].digest = Some(print);
    }
    for (to, from) in copies {
        entries[to].digest = entries[from].digest;
    }
    Ok(())
}

/// Returns the current form of a manifest of an older version, of the layer in `dir`: all files are read, and compared with
/// the digests that it has.
///
/// # Errors
/// [`Error::Damage`] when a file is not what the manifest says; a manifest that cannot be read.
pub fn upgrade_manifest(old: &[u8], dir: &Path) -> Result<LayerManifest> {
    let mut entries = LayerManifest::decode_old(old)?;
    let jobs: Vec<usize> = (0..entries.len()).filter(|&i| entries[i].is_file()).collect();
    let both = |mut file: File, entry: &Entry, buf: &mut [u8]| {
        let (mut digest, mut print) = (DigestHasher::new(), FingerprintHasher::new());
        loop {
            match file.read(buf) {
                Ok(0) => break,
                Ok(n) => {
                    digest.update(&buf[..n]);
                    print.update(&buf[..n]);
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        let right = entry.digest.map(|d| *d.as_bytes()) == Some(*digest.finish().as_bytes());
        Ok(right.then(|| print.finish()))
    };
    for (i, print) in each_file(dir, &entries, &jobs, both).map_err(damage_of)? {
        if print.is_none() {
            return Err(Damage::new(&entries[i].path, DamageKind::Content).into());
        }
        entries[i].digest = print;
    }
    Ok(LayerManifest::new(entries)?)
}

/// Does `work` on the files of the entries at `jobs`, on all cores.
fn each_file<T: Send>(
    dir: &Path,
    entries: &[Entry],
    jobs: &[usize],
    work: impl Fn(File, &Entry, &mut [u8]) -> std::io::Result<T> + Sync,
) -> Result<Vec<(usize, T)>> {
    let next = AtomicUsize::new(0);
    let run = || -> Result<Vec<(usize, T)>> {
        let mut root = Root::open(dir)?;
        let mut buf = vec![0u8; 256 * 1024];
        let mut done = Vec::new();
        while let Some(&job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let entry = &entries[job];
            let file = File::from(root.open_file(&entry.path).map_err(Error::sys("read", &entry.path))?);
            let result = work(file, entry, &mut buf).map_err(Error::io("read", path::lossy(&entry.path)))?;
            done.push((job, result));
        }
        Ok(done)
    };
    // A thread costs more than hashing a few files.
    let threads = sys::workers().min(jobs.len().div_ceil(8)).max(1);
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
        let mut all = run()?;
        for other in others {
            let part = other.join().map_err(|_| Error::io("hash", dir)(std::io::Error::other("a thread died")))?;
            all.extend(part?);
        }
        Ok(all)
    })
}

#[cfg(test)]
mod tests {
    use kiln_stdx::Digest;

    use super::*;

    /// Rewrites a manifest as version 1 had it.
    fn aged(manifest: &LayerManifest, dir: &Path) -> Vec<u8> {
        let mut entries = manifest.entries().to_vec();
        for entry in entries.iter_mut().filter(|e| e.is_file()) {
            let bytes = std::fs::read(super::super::build::join_os(dir, &entry.path)).unwrap();
            entry.digest = Some(Fingerprint::from_bytes(*Digest::of(bytes).as_bytes()));
        }
        LayerManifest::new(entries).unwrap().encode_old()
    }

    #[test]
    fn old_manifests_are_read_with_their_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/a"), "some bytes").unwrap();
        std::fs::write(dir.path().join("empty"), "").unwrap();
        std::fs::hard_link(dir.path().join("d/a"), dir.path().join("link")).unwrap();
        let manifest = scan(dir.path()).unwrap();
        let old = aged(&manifest, dir.path());
        assert!(LayerManifest::is_old(&old) && !LayerManifest::is_old(&manifest.encode()));
        assert!(LayerManifest::decode(&old).is_err());
        assert_eq!(upgrade_manifest(&old, dir.path()).unwrap(), manifest);

        std::fs::write(dir.path().join("d/a"), "other byte").unwrap();
        assert!(matches!(upgrade_manifest(&old, dir.path()), Err(Error::Damage(_))));
    }
}
