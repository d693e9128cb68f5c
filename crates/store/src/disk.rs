//! Careful file operations: writing aside and renaming, sealing with a checksum, removing trees.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use kiln_stdx::{Digest, fault};

use crate::error::{IoContext, Result};

/// Appends a SHA-256 over the kind and the payload, so that damage and a file of another kind are both noticed.
pub(crate) fn seal(kind: &str, mut payload: Vec<u8>) -> Vec<u8> {
    let sum = seal_sum(kind, &payload);
    payload.extend_from_slice(sum.as_bytes());
    payload
}

/// Returns the payload of sealed bytes, or `None` if they are not what was sealed.
pub(crate) fn unseal<'a>(kind: &str, bytes: &'a [u8]) -> Option<&'a [u8]> {
    let (payload, sum) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    (seal_sum(kind, payload).as_bytes() == sum).then_some(payload)
}

fn seal_sum(kind: &str, payload: &[u8]) -> Digest {
    let mut hasher = kiln_stdx::DigestHasher::new();
    hasher.update(kind.as_bytes());
    hasher.update(&[0]);
    hasher.update(payload);
    hasher.finish()
}

/// Reads a whole file; `None` if it is missing or is not a file.
pub(crate) fn read(path: &Path) -> Option<Vec<u8>> {
    fs::read(path).ok()
}

/// Writes `bytes` to a new file at `path`.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path).at("create", path)?;
    file.write_all(bytes).at("write", path)
}

/// Replaces `path` by a file with `bytes`, through a rename from `tmp`; `point` names the fault hook before it.
/// With `sync` the content is on disk before the rename, and the rename before the return.
pub(crate) fn replace(path: &Path, tmp: PathBuf, bytes: &[u8], point: &str, sync: bool) -> Result<()> {
    let result = replace_inner(path, &tmp, bytes, point, sync);
    if result.is_err() {
        let _ = fs::remove_file(&tmp);
    }
    result
}

fn replace_inner(path: &Path, tmp: &Path, bytes: &[u8], point: &str, sync: bool) -> Result<()> {
    write_new(tmp, bytes)?;
    if sync {
        fs::File::open(tmp).and_then(|f| f.sync_all()).at("sync", tmp)?;
    }
    fault::point(point).at("rename", path)?;
    // A directory in the place of the file cannot be replaced by rename; it is damage and goes away.
    if fs::symlink_metadata(path).is_ok_and(|m| m.is_dir()) {
        remove_tree(path).at("remove", path)?;
    }
    fs::rename(tmp, path).at("rename", path)?;
    if sync && let Some(dir) = path.parent() {
        fs::File::open(dir).and_then(|f| f.sync_all()).at("sync", dir)?;
    }
    Ok(())
}

/// Makes sure that `path` is a directory; whatever else lies there is removed.
pub(crate) fn ensure_dir(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => {
            fs::remove_file(path).at("remove", path)?;
            fs::create_dir_all(path).at("create", path)
        }
        Err(_) => fs::create_dir_all(path).at("create", path),
    }
}

/// Asks ext4 to put each new directory in `dir` into a block group of its own, as it does below the root directory.
///
/// Without that, new files come to lie where files were deleted of late, and ext4 looks at each of those again and
/// again before it finds a free inode: a layer of 20,000 files took three times as long after as many were deleted.
/// Other file systems refuse, which changes nothing.
pub(crate) fn spread(dir: &Path) {
    let Ok(dir) = fs::File::open(dir) else { return };
    if let Ok(flags) = rustix::fs::ioctl_getflags(&dir) {
        let _ = rustix::fs::ioctl_setflags(&dir, flags | rustix::fs::IFlags::TOPDIR);
    }
}

/// Removes whatever is at `path`, if anything. Directories without permissions (an overlay's work directory) are opened up.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    if !meta.is_dir() {
        return fs::remove_file(path);
    }
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path);
            fs::remove_dir_all(path)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes whatever is at `path` as far as that goes; what stays is logged.
pub(crate) fn remove_or_warn(path: &Path) {
    if let Err(e) = remove_tree(path) {
        tracing::warn!(path = %path.display(), error = %e, "cannot remove");
    }
}

fn open_up(dir: &Path) {
    let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            open_up(&entry.path());
        }
    }
}

/// Size and modification time, what a blob or small file is checked by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub size: u64,
    pub mtime: i64,
}

impl Stamp {
    /// Returns the stamp of a regular file.
    pub fn of(path: &Path) -> Option<Self> {
        fs::symlink_metadata(path).ok().filter(|m| m.is_file()).map(|m| Self::from_meta(&m))
    }

    pub fn from_meta(meta: &fs::Metadata) -> Self {
        Self { size: meta.size(), mtime: meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec()) }
    }
}

/// Returns free and total bytes of the file system that holds `path`, as an unprivileged user sees them.
pub(crate) fn space(path: &Path) -> (u64, u64) {
    rustix::fs::statvfs(path)
        .map_or((u64::MAX, 0), |s| (s.f_bavail.saturating_mul(s.f_frsize), s.f_blocks.saturating_mul(s.f_frsize)))
}

/// Writes back everything of the file system that holds `path`.
pub(crate) fn sync_filesystem(path: &Path) -> Result<()> {
    let dir = fs::File::open(path).at("open", path)?;
    rustix::fs::syncfs(&dir).at("sync", path)
}

/// Returns the bytes of a tree's files, symbolic links and directories, each inode once.
pub(crate) fn tree_size(path: &Path) -> u64 {
    let mut seen = std::collections::HashSet::new();
    let mut total = 0;
    let mut work = vec![path.to_owned()];
    while let Some(dir) = work.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                work.push(entry.path());
            }
            if meta.nlink() < 2 || meta.is_dir() || seen.insert((meta.dev(), meta.ino())) {
                total += meta.blocks() * 512;
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seals_notice_every_flip_and_the_kind() {
        let sealed = seal("a", b"payload".to_vec());
        assert_eq!(unseal("a", &sealed), Some(&b"payload"[..]));
        assert_eq!(unseal("b", &sealed), None);
        for i in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[i] ^= 1;
            assert_eq!(unseal("a", &bad), None, "byte {i}");
            assert_eq!(unseal("a", &sealed[..i]), None, "cut at {i}");
        }
    }

    #[test]
    fn removing_opens_closed_directories() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("t");
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::set_permissions(top.join("a"), fs::Permissions::from_mode(0o0)).unwrap();
        remove_tree(&top).unwrap();
        assert!(!top.exists());
        remove_tree(&top).unwrap();
    }
}
