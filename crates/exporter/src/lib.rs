//! Finished refs become outputs: images in an archive, a directory, the image store or a registry; plain files.
//!
//! An export has three steps, so that the engine can run and report each where it belongs: [`Exporter::parse`] checks
//! the attributes before the build starts; [`Exporter::build`] (blocking) makes layers, manifests and file lists;
//! [`Built::deliver`] hands the output over, [`Built::push`] uploads it.
//!
//! Invariant: nothing is scheduled here and no cache key is known. Every byte that leaves is compared with its digest.

mod annotation;
mod archive;
mod attest;
mod cache_export;
mod commit;
mod content;
mod context;
mod error;
mod exporter;
mod files;
mod image;
mod image_config;
mod layer_files;
mod layer_media;
mod options;
mod parallel;
mod progress;
mod push;
mod send;
mod source;
mod tar_stream;
#[cfg(test)]
mod testing;

pub mod cacheconfig;

pub use annotation::{AnnotationSet, AnnotationTarget};
pub use archive::Archive;
pub use attest::{Attestation, AttestedSubject, package_url, qualified};
pub use cache_export::{BuiltCache, CacheCompression, CacheLayers, ObjectCache};
pub use commit::BuiltImage;
pub use content::Content;
pub use context::ExportContext;
pub use error::ExportError;
pub use exporter::{Built, Exporter, Output};
pub use files::{FileEntry, FileSet, VerifiedFile};
pub use options::{CommitOptions, ExporterKind, FileOptions, ImageOptions, LocalMode, Options, names};
pub use progress::{ExportProgress, NoProgress};
pub use push::push_image;
pub use source::{EPOCH_KEY, ExportSource, IMAGE_NAME_KEY, NoRemoteLayers, PlatformResult, RemoteLayers, parse_epoch};
