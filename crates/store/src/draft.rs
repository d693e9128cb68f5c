//! Layers being made.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{IoContext, Result};
use crate::layout::{LayerDir, LayerId};
use crate::room::Room;
use crate::store::Store;

/// A layer being made. Fill [`LayerDraft::fs`], then [`Store::commit`]. Dropping it deletes it.
pub struct LayerDraft {
    pub(crate) store: Store,
    pub(crate) id: LayerId,
    pub(crate) dir: LayerDir,
    pub(crate) scratch: PathBuf,
    pub(crate) room: Room,
    /// Nanoseconds of the clock.
    pub(crate) begun: u64,
    pub(crate) done: bool,
}

impl LayerDraft {
    /// The id that the layer will have.
    pub fn id(&self) -> LayerId {
        self.id
    }

    /// The directory of its files, in overlay upper form; exists, empty, but for a draft from
    /// [`Store::draft_of_view`].
    pub fn fs(&self) -> PathBuf {
        self.dir.fs()
    }

    /// The room for what is written to it.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// A directory beside it on the same file system, for an overlay's work directory; made by the first call, and
    /// goes away with the draft.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn scratch(&self) -> Result<&Path> {
        match fs::create_dir(&self.scratch) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(e).at("create", &self.scratch),
            _ => Ok(&self.scratch),
        }
    }
}

impl Drop for LayerDraft {
    fn drop(&mut self) {
        let inner = &self.store.0;
        if fs::symlink_metadata(&self.scratch).is_ok() {
            inner.discard_later(&self.scratch);
        }
        if !self.done && fs::symlink_metadata(&self.dir.0).is_ok() {
            inner.discard(&self.dir.0);
        }
    }
}
