//! What can go wrong with layers, and whose fault it is.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use kiln_stdx::ErrorClass;

use crate::manifest::DecodeError;

/// The result of everything here that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on a layer failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on a layer's directory failed.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was tried, an infinitive.
        action: &'static str,
        /// The path it was tried on.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Reading the archive failed: the download, the blob or its decompression.
    #[error("cannot read the archive")]
    Input(#[source] io::Error),
    /// Writing the archive failed.
    #[error("cannot write the archive")]
    Output(#[source] io::Error),
    /// The archive is not one that can be unpacked.
    #[error("bad archive at `{path}`: {problem}")]
    Archive {
        /// The member, as far as it is known.
        path: String,
        /// What is wrong.
        problem: ArchiveProblem,
    },
    /// A path is not one that a layer can hold.
    #[error("bad path `{path}`: {what}")]
    BadPath {
        /// The path.
        path: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A path that must exist does not.
    #[error("`{0}` does not exist")]
    NotFound(String),
    /// A path that must be a directory is something else.
    #[error("`{0}` is not a directory")]
    NotADirectory(String),
    /// Too many symbolic links were met while a path was resolved.
    #[error("too many symbolic links while resolving `{0}`")]
    TooManyLinks(String),
    /// What the layer holds has no form in an image layer.
    #[error("`{path}` cannot be stored in an image layer: {what}")]
    Unstorable {
        /// The path.
        path: String,
        /// Why.
        what: &'static str,
    },
    /// A layer's directory is not what its manifest says.
    #[error(transparent)]
    Damage(#[from] Damage),
    /// A manifest cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl Error {
    /// Returns the class that decides exit code and retry.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Io { .. } | Self::Output(_) => ErrorClass::Environment,
            Self::Input(_) => ErrorClass::Remote,
            Self::Archive { .. }
            | Self::BadPath { .. }
            | Self::NotFound(_)
            | Self::NotADirectory(_)
            | Self::TooManyLinks(_)
            | Self::Unstorable { .. } => ErrorClass::UserInput,
            Self::Damage(_) | Self::Decode(_) => ErrorClass::Damage,
        }
    }

    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// As [`Error::io`] for a path inside a layer and an error of rustix.
    pub(crate) fn sys<'a>(action: &'static str, path: &'a [u8]) -> impl FnOnce(rustix::io::Errno) -> Self + 'a {
        move |errno| Self::Io { action, path: crate::path::lossy(path).into(), source: errno.into() }
    }

    pub(crate) fn archive(path: &[u8], problem: ArchiveProblem) -> Self {
        Self::Archive { path: crate::path::lossy(path), problem }
    }
}

/// What is wrong with an archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveProblem {
    /// The archive ends in the middle of something.
    #[error("the archive is truncated")]
    Truncated,
    /// A header's checksum does not match.
    #[error("the header's checksum is wrong")]
    Checksum,
    /// A number in a header or an extended header cannot be read or is out of range.
    #[error("bad value for {0}")]
    BadValue(&'static str),
    /// An extended header is malformed.
    #[error("malformed extended header")]
    BadExtendedHeader,
    /// An extended header, a long name or a sparse map is larger than accepted.
    #[error("{0} is too large")]
    TooLarge(&'static str),
    /// The map of a sparse file contradicts itself or the header.
    #[error("inconsistent sparse map")]
    BadSparseMap,
    /// The member's type is not one that is known.
    #[error("unknown member type {0:#04x}")]
    UnknownType(u8),
    /// The member's path leads out of the archive's root.
    #[error("the path leads out of the root")]
    Escapes,
    /// A symbolic link leads out of the archive's root.
    #[error("a symbolic link to `{0}`, which leads out of the root")]
    LinkEscapes(String),
    /// The member has no name, or a name that no file can have.
    #[error("unusable name: {0}")]
    BadName(String),
    /// A hard link's target does not exist.
    #[error("hard link to `{0}`, which does not exist")]
    MissingLinkTarget(String),
    /// A hard link's target is a directory or otherwise cannot be linked.
    #[error("hard link to `{0}`, which cannot be linked to")]
    BadLinkTarget(String),
    /// A parent of the member is not a directory.
    #[error("`{0}` is not a directory")]
    ParentNotDirectory(String),
    /// Too many symbolic links were met on the way to the member.
    #[error("too many symbolic links on the way to it")]
    TooManyLinks,
}

/// A place where a layer's directory differs from its manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{path}` of a stored layer is damaged: {what}")]
pub struct Damage {
    /// The path inside the layer.
    pub path: String,
    /// What differs.
    pub what: DamageKind,
}

impl Damage {
    pub(crate) fn new(path: &[u8], what: DamageKind) -> Self {
        Self { path: crate::path::lossy(path), what }
    }
}

/// What of a damaged file differs from the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DamageKind {
    /// It is gone.
    Missing,
    /// It is of another type.
    Kind,
    /// It is another inode: replaced or copied.
    Inode,
    /// Its size in bytes.
    Size,
    /// Its modification time.
    Mtime,
    /// Its permission bits.
    Mode,
    /// Its owner or group.
    Owner,
    /// The target of a symbolic link.
    Target,
    /// The numbers of a device.
    Device,
    /// The digest of its bytes.
    Content,
    /// Its extended attributes, or its opaque mark.
    Xattrs,
    /// It is in the directory but not in the manifest.
    Unexpected,
    /// It cannot be read: what the system said.
    Unreadable(String),
}

impl fmt::Display for DamageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "it is missing",
            Self::Kind => "its type differs",
            Self::Inode => "it is another inode",
            Self::Size => "its size differs",
            Self::Mtime => "its modification time differs",
            Self::Mode => "its mode differs",
            Self::Owner => "its owner differs",
            Self::Target => "its link target differs",
            Self::Device => "its device numbers differ",
            Self::Content => "its content differs",
            Self::Xattrs => "its extended attributes differ",
            Self::Unexpected => "it should not exist",
            Self::Unreadable(said) => return write!(f, "it cannot be read: {said}"),
        })
    }
}
