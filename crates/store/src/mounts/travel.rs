//! Cache mounts that are read to be sent elsewhere, and those that begin with what came from there.

use std::fs;
use std::path::Path;

use super::{CacheMount, MountKey, Sharing};
use crate::error::{IoContext, Result};
use crate::store::Store;

/// Whether a cache mount can be read now.
#[derive(Debug)]
pub enum MountReading {
    /// It can: no step writes to it, and none that wants it alone gets it until this is dropped.
    Free(CacheMount),
    /// A step writes to it, or has it alone.
    Busy,
    /// There is no such mount any more.
    Gone,
}

impl Store {
    /// Takes the cache mount in `directory` to read it as it is, which does not count as a use.
    pub fn read_cache_mount(&self, directory: &str) -> MountReading {
        let mut mounts = self.0.mounts.mounts.lock();
        let Some(state) = mounts.get_mut(directory).filter(|state| !state.retired && state.record.ready) else {
            return MountReading::Gone;
        };
        if state.exclusive || state.writers > 0 {
            return MountReading::Busy;
        }
        state.shared += 1;
        MountReading::Free(self.taken(&state.record, Sharing::Shared, false))
    }

    /// Lets go of the cache mounts of `key` that hold nothing and are not in use, so that the next user begins with a new one.
    pub fn drop_empty_cache_mounts(&self, key: &MountKey) {
        for state in self.0.mounts.mounts.lock().values_mut().filter(|m| m.record.is_of(key) && !m.retired) {
            let empty = || fs::read_dir(self.0.mount_dir(&state.record.id)).is_ok_and(|mut dir| dir.next().is_none());
            state.retired = !state.in_use() && empty();
        }
        self.0.sweep_mounts();
    }
}

impl CacheMount {
    /// Makes the directory `filled`, of the same file system, the content of a new mount. It has to be marked ready then.
    ///
    /// # Errors
    /// The mount is not new, or the directory cannot be moved: then the mount is as it was.
    pub fn begin_with(&mut self, filled: &Path) -> Result<()> {
        kiln_stdx::fault::point("store.mount.begin").at("rename", &self.path)?;
        // An empty directory gives way to another; one that holds something does not.
        fs::rename(filled, &self.path).at("rename", &self.path)
    }
}
