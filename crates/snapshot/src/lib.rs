//! Directories as values: layers on disk, their manifests, merged views, tar archives, snapshot drivers.
//!
//! A layer, whatever made it, is a directory `fs/` in the form of an overlay upper directory plus a
//! [`LayerManifest`] that says what must be in it. In that form a deletion is a character device 0/0 (a whiteout)
//! and a directory that hides what lower layers hold carries the attribute `trusted.overlay.opaque` = `y`
//! (`user.overlay.opaque` inside a user namespace).
//!
//! Nothing here mounts: drivers return [`Mount`] descriptions, and whoever runs a process performs them.
//!
//! Invariant: whiteouts and opaque directories, on disk and in archives, are known to this crate alone.
//! Invariant: no path taken from an archive is ever resolved by the kernel through a symbolic link.

pub mod compress;
pub mod dump;
pub mod layer;
pub mod path;
pub mod tar;

mod entry;
mod error;
mod manifest;
mod mount;
mod snapshotter;
mod sys;
mod tree;

pub use entry::{Entry, Kind};
pub use error::{ArchiveProblem, Damage, DamageKind, Error, Result};
pub use layer::{Applied, LayerBuilder};
pub use manifest::{DecodeError, LayerManifest};
pub use mount::Mount;
pub use snapshotter::{Active, CopySnapshotter, OverlaySnapshotter, Snapshotter};
pub use tree::{Node, ResolveError, ResolvedPath, Tree};
