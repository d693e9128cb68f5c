//! The directory for what an engine needs only while it runs: sockets, keys and request bodies of running steps.
//!
//! It lies on a tmpfs where the host has one, so that nothing in it reaches a disk. An engine that is killed cannot
//! remove it, and its root may never be opened again, so every engine clears away what no living engine holds.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

/// What the names of these directories begin with.
const PREFIX: &str = "kiln-engine-";
/// How often a name is tried that another engine's clearing took away in the moment between making and locking it.
const TRIES: usize = 10;

/// A private directory, removed when dropped. It is locked for as long as it is in use.
#[derive(Debug)]
pub struct RuntimeDir {
    path: PathBuf,
    _lock: OwnedFd,
}

impl RuntimeDir {
    /// Makes the directory in the first of `parents` that can be written, after clearing what dead engines left in it.
    ///
    /// # Errors
    /// None of them can be written; the error is that of the last one.
    pub fn make(parents: &[&Path]) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for parent in parents {
            clear(parent);
            for _ in 0..TRIES {
                match Self::attempt(parent) {
                    Ok(Some(made)) => return Ok(made),
                    Ok(None) => last = io::ErrorKind::ResourceBusy.into(),
                    Err(error) => {
                        last = error;
                        break;
                    }
                }
            }
        }
        Err(last)
    }

    /// Returns where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// None when another engine took the directory for a left one before it was locked.
    fn attempt(parent: &Path) -> io::Result<Option<Self>> {
        let path = parent.join(format!("{PREFIX}{}-{}", std::process::id(), kiln_stdx::rand_id()));
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(locked(&path).map(|lock| Self { path, _lock: lock }))
    }
}

impl Drop for RuntimeDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes the directories in `parent` that nobody holds.
fn clear(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            // Held while it goes, so that whoever has just made it notices.
            if let Some(_lock) = locked(&entry.path()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// Locks a directory; none when another holds it or it is gone.
fn locked(path: &Path) -> Option<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).ok()?;
    let (opened, named) = (rustix::fs::fstat(&dir).ok()?, fs::symlink_metadata(path).ok()?);
    ((opened.st_dev, opened.st_ino) == (named.dev(), named.ino())).then_some(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_stays_and_what_is_left_goes() {
        let parent = tempfile::tempdir().unwrap();
        let other = parent.path().join("other");
        fs::create_dir(&other).unwrap();
        let left = parent.path().join("kiln-engine-left");
        fs::create_dir_all(left.join("deep")).unwrap();
        let first = RuntimeDir::make(&[parent.path()]).unwrap();
        assert!(!left.exists());
        fs::write(first.path().join("key"), "k").unwrap();
        let second = RuntimeDir::make(&[parent.path()]).unwrap();
        assert!(first.path().join("key").exists() && other.exists());
        assert_ne!(first.path(), second.path());
        let path = first.path().to_owned();
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn a_link_is_not_followed() {
        let (parent, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(target.path().join("file"), "f").unwrap();
        std::os::unix::fs::symlink(target.path(), parent.path().join("kiln-engine-link")).unwrap();
        let _made = RuntimeDir::make(&[parent.path()]).unwrap();
        assert!(target.path().join("file").exists());
    }

    #[test]
    fn the_next_parent_is_taken_when_one_cannot_be_written() {
        let parent = tempfile::tempdir().unwrap();
        let missing = parent.path().join("missing");
        let made = RuntimeDir::make(&[&missing, parent.path()]).unwrap();
        assert_eq!(made.path().parent(), Some(parent.path()));
        assert!(RuntimeDir::make(&[&missing]).is_err());
    }
}
