//! The lock of an open store: one engine at a time has a state root.

use std::fs;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::FlockOperation;

use crate::disk;
use crate::error::{IoContext, Result, StoreError};
use crate::layout::Layout;

/// Holds the lock; dropping it lets go at once. Closing the files would not do: a child that is just being spawned has
/// copies of them for a moment.
pub(crate) struct StoreLock([fs::File; 2]);

impl Drop for StoreLock {
    fn drop(&mut self) {
        for file in &self.0 {
            let _ = rustix::fs::flock(file, FlockOperation::Unlock);
        }
    }
}

impl StoreLock {
    /// Locks the root directory, which cannot be deleted under a running engine as a lock file can; the file `lock` names
    /// the holder, and is locked too for whoever looks there.
    pub fn take(layout: &Layout) -> Result<Self> {
        let path = layout.lock();
        let dir = fs::File::open(&layout.root).at("open", &layout.root)?;
        match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let _ = fs::File::open(&path).and_then(|file| file.take(32).read_to_string(&mut holder));
                let holder = holder.trim();
                let plain = !holder.is_empty() && holder.bytes().all(|b| b.is_ascii_digit());
                let holder = if plain { holder.to_owned() } else { "unknown".to_owned() };
                return Err(StoreError::Locked { root: layout.root.clone(), holder });
            }
            Err(e) => return Err(e).at("lock", &layout.root),
        }
        if fs::symlink_metadata(&path).is_ok_and(|m| !m.is_file()) {
            disk::remove_tree(&path).at("remove", &path)?;
        }
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(&path).at("open", &path)?;
        let _ = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        // Only for the message above; that it cannot be written (disk full) is no reason not to run.
        let _ = file.set_len(0);
        let _ = file.rewind();
        let _ = writeln!(file, "{}", std::process::id());
        Ok(Self([dir, file]))
    }
}
