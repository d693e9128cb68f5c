//! Blobs by digest, and named manifests that list them, in stores that speak HTTP: where remote caches are kept that
//! are in no registry. The names of objects are those that BuildKit gives them, so that caches can be shared.
//!
//! Invariant: what a blob's name says is compared with its bytes on the way out and on the way in; no key, token or
//! signed address reaches an error. Every request has a deadline.

pub mod attrs;
mod aws;
mod azure;
mod blocks;
mod client;
mod error;
mod fetch;
mod gha;
mod http;
mod keys;
mod limits;
mod s3;
mod sigv4;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use kiln_registry::{BlobSource, ErrorKind};
use kiln_stdx::Digest;

pub use attrs::{Attrs, Environment};
pub use aws::{AwsKey, aws_key};
pub use client::Opened;
pub use error::ObjectError;
pub use fetch::{ObjectStream, fetch};
pub use limits::Limits;

/// Largest manifest that is read, in bytes.
pub const MANIFEST_MAX: u64 = 16 << 20;

/// One place where blobs lie by their digest, and manifests by name.
#[async_trait]
pub trait ObjectStore: Send + Sync {
    /// Returns what messages call it: an address without anything secret.
    fn name(&self) -> &str;

    /// Returns what its requests keep to.
    fn limits(&self) -> &Limits;

    /// Returns how many blobs may be on their way to it at once.
    fn uploads(&self) -> usize {
        4
    }

    /// Tells whether it has a blob, and sees to it that the blob does not expire soon.
    ///
    /// # Errors
    /// Refusals, and what is left after the retries.
    async fn has(&self, digest: &Digest) -> Result<bool, ErrorKind>;

    /// Sends a blob; one that came there meanwhile is as good. Tells whether it can be read now.
    ///
    /// # Errors
    /// As [`Self::has`]; a source that cannot be read or is not what its digest says.
    async fn put(&self, digest: &Digest, size: u64, source: Arc<dyn BlobSource>) -> Result<Stored, ErrorKind>;

    /// Opens a blob at an offset. Its bytes are not checked here, see [`fetch`].
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; as [`Self::has`].
    async fn open(&self, digest: &Digest, offset: u64) -> Result<Opened, ErrorKind>;

    /// Returns the manifests that an import reads.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where there is none at all; as [`Self::has`].
    async fn manifests(&self) -> Result<Vec<Bytes>, ErrorKind>;

    /// Writes the manifest under its names; all blobs that it lists are there.
    ///
    /// # Errors
    /// As [`Self::has`].
    async fn put_manifest(&self, manifest: Bytes) -> Result<(), ErrorKind>;
}

/// What became of a blob that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It can be read.
    There,
    /// Somebody else has begun to write it and not finished; nobody can read it before, and nobody else write it.
    Awaited,
}

/// A kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Http,
    S3,
    Gha,
    Azblob,
}

impl Kind {
    /// Returns the kind that `type=` of a cache names.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "http" => Self::Http,
            "s3" => Self::S3,
            "gha" => Self::Gha,
            "azblob" => Self::Azblob,
            _ => return None,
        })
    }

    /// Returns the name of an export's vertex.
    pub fn exporting(self) -> &'static str {
        match self {
            Self::Http => "exporting cache to HTTP server",
            Self::S3 => "exporting cache to Amazon S3",
            Self::Gha => "exporting to GitHub Actions Cache",
            Self::Azblob => "exporting cache to Azure Blob Storage",
        }
    }
}

/// Returns the store that the attributes of a cache describe; what they lack, the environment of the engine may have.
/// Nothing is asked of the store yet.
///
/// # Errors
/// Attributes that are missing or wrong.
pub fn open(
    kind: Kind,
    attrs: &Attrs,
    env: Environment<'_>,
    limits: Limits,
) -> Result<Arc<dyn ObjectStore>, ObjectError> {
    let opened: Result<Arc<dyn ObjectStore>, ErrorKind> = match kind {
        Kind::Http => http::HttpStore::new(attrs, limits).map(|store| Arc::new(store) as _),
        Kind::S3 => s3::S3Store::new(attrs, env, limits).map(|store| Arc::new(store) as _),
        Kind::Gha => gha::GhaStore::new(attrs, limits).map(|store| Arc::new(store) as _),
        Kind::Azblob => azure::AzureStore::new(attrs, env, limits).map(|store| Arc::new(store) as _),
    };
    opened.map_err(|kind| ObjectError::new("cache", kind))
}
