//! Layers on disk: made from archives, from directories, by hand; written as archives; compared and verified.

mod apply;
mod build;
mod diff;
mod flatten;
mod scan;
mod verify;
mod write;

pub use apply::{Applied, ExtractOptions, Extracted, apply, extract};
pub use build::{FileMeta, LayerBuilder, Overrides, Placed};
pub use diff::{diff, difference, touches};
pub use flatten::flatten;
pub use scan::{scan, upgrade_manifest};
pub use verify::{verify_digest, verify_stat};
pub use write::{TarOptions, Written, write_tar};

pub(crate) use build::{join_os, set_mtime};
pub(crate) use flatten::materialise;
pub(crate) use scan::{Scanned, digest_files, scan_with};
