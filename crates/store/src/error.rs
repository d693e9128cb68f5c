//! What can go wrong in the store, and whose matter it is.

use std::io;
use std::path::{Path, PathBuf};

use kiln_stdx::{Digest, ErrorClass};

use crate::layout::LayerId;

/// An error of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the store open.
    #[error("the store {root} is in use by process {holder}", root = root.display())]
    Locked {
        /// The state root.
        root: PathBuf,
        /// The process id that the holder wrote, or `unknown`.
        holder: String,
    },
    /// The directory was written by a version of kiln that this one does not understand.
    #[error("the store {root} has format {found}, this version reads up to {supported}", root = root.display())]
    Version {
        /// The state root.
        root: PathBuf,
        /// The format that was found.
        found: u32,
        /// The newest format that is understood.
        supported: u32,
    },
    /// A file operation failed.
    #[error("{what} {path}: {source}", path = path.display())]
    Io {
        /// What was tried, as a verb: `write`, `rename`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Something is not what was written; what could not be repaired has been dropped, so trying again makes it anew.
    #[error("damaged: {what}")]
    Damage {
        /// What, and in which way.
        what: String,
    },
    /// Bytes that came in do not have the digest that was asked for.
    #[error("digest mismatch: expected {expected}, got {got}")]
    Mismatch {
        /// The digest asked for.
        expected: Digest,
        /// The digest of what came.
        got: Digest,
    },
    /// Bytes that came in are not as many as were announced.
    #[error("expected {expected} bytes, got {got}")]
    Size {
        /// The number announced.
        expected: u64,
        /// The number that came.
        got: u64,
    },
    /// The layer's files are needed, but only its description is here: fetch its blob and unpack it.
    #[error("layer {0} is not unpacked")]
    Lazy(LayerId),
    /// The blob is needed but not here: fetch it.
    #[error("blob {0} is not in the store")]
    MissingBlob(Digest),
    /// The layer was dropped or pruned.
    #[error("layer {0} is gone")]
    Gone(LayerId),
    /// A path asked for is not in the tree.
    #[error("{0:?} not found")]
    NotFound(String),
    /// Something cannot be removed now.
    #[error("{0} is in use by a step")]
    Busy(String),
    /// A filter, pattern or name is malformed.
    #[error("{0}")]
    Invalid(String),
    /// Reading or writing a layer failed.
    #[error(transparent)]
    Snapshot(#[from] kiln_snapshot::Error),
}

/// The result of most calls here.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

impl StoreError {
    /// Tells whose matter the error is.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Locked { .. } | Self::Version { .. } | Self::Io { .. } => ErrorClass::Environment,
            Self::Damage { .. } | Self::Gone(_) => ErrorClass::Damage,
            Self::Mismatch { .. } | Self::Size { .. } | Self::MissingBlob(_) => ErrorClass::Remote,
            Self::NotFound(_) | Self::Invalid(_) | Self::Busy(_) => ErrorClass::UserInput,
            Self::Lazy(_) => ErrorClass::Bug,
            Self::Snapshot(e) => e.class(),
        }
    }

    /// Tells whether the disk is full.
    pub fn is_no_space(&self) -> bool {
        let mut error: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(e) = error {
            let code = e.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
            if matches!(code, Some(libc::ENOSPC | libc::EDQUOT)) {
                return true;
            }
            error = e.source();
        }
        false
    }

    pub(crate) fn damage(what: impl Into<String>) -> Self {
        Self::Damage { what: what.into() }
    }
}

impl From<kiln_snapshot::Damage> for StoreError {
    fn from(damage: kiln_snapshot::Damage) -> Self {
        Self::Snapshot(damage.into())
    }
}

/// Names the operation and the file of an I/O error.
pub(crate) trait IoContext<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| StoreError::Io { what, path: path.to_owned(), source })
    }
}

impl<T> IoContext<T> for rustix::io::Result<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T> {
        self.map_err(|e| StoreError::Io { what, path: path.to_owned(), source: e.into() })
    }
}
