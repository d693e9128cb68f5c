//! Drivers: how a step gets a writable view of a chain of layers, and how its changes become a layer.

mod copy;
mod overlay;

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::manifest::LayerManifest;
use crate::mount::Mount;
use crate::tree::Tree;

pub use copy::CopySnapshotter;
pub use overlay::OverlaySnapshotter;

/// A way to give steps writable views. The layers it makes have the form described in the crate's documentation,
/// so drivers can be exchanged over one store.
pub trait Snapshotter: Send + Sync + std::fmt::Debug {
    /// Returns the driver's name, `overlay` or `copy`.
    fn name(&self) -> &'static str;

    /// Prepares a writable view of the layer directories `lowers`, given bottom to top, with its files under the
    /// empty directory `scratch`, which is on the file system of the layers.
    ///
    /// # Errors
    /// When a directory cannot be read or `scratch` not be written.
    fn prepare(&self, lowers: &[PathBuf], scratch: &Path) -> Result<Active>;

    /// Prepares a read-only view of `lowers`, given bottom to top; `scratch` is as in [`prepare`](Self::prepare).
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare).
    fn view(&self, lowers: &[PathBuf], scratch: &Path) -> Result<Mount>;

    /// Makes the changes of a view, which must be unmounted everywhere, into a layer in the directory `dest`
    /// (missing or empty, on the file system of `scratch`) and returns its manifest.
    ///
    /// `lower` is the merged view of the layers given to [`prepare`](Self::prepare). Files that were opened for
    /// writing but are what they were are not part of the layer.
    ///
    /// # Errors
    /// When something cannot be read or moved.
    fn collect(&self, active: Active, lower: &Tree, dest: &Path) -> Result<LayerManifest>;
}

/// A writable view that is in use.
#[derive(Debug)]
pub struct Active {
    mount: Mount,
    dir: PathBuf,
    stamps: copy::Stamps,
}

impl Active {
    /// Returns what to mount for the step.
    pub fn mount(&self) -> &Mount {
        &self.mount
    }

    /// Returns the directory on the host that receives the changes.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}
