//! Where things lie below the state root, and the ids that name directories.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use kiln_stdx::{Digest, rand_id};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Names a layer of this store: 64 random bits, 16 hex digits as text. Never used again after the layer is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerId(pub u64);

impl LayerId {
    pub(crate) fn random() -> Self {
        let digest = Digest::of(rand_id());
        let mut bytes = [0u8; 8];
        bytes.copy_from_slice(&digest.as_bytes()[..8]);
        Self(u64::from_le_bytes(bytes))
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for LayerId {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        let plain = s.len() == 16 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if plain { u64::from_str_radix(s, 16).map(Self).map_err(|_| ()) } else { Err(()) }
    }
}

impl Serialize for LayerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LayerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(|()| serde::de::Error::custom("not a layer id"))
    }
}

/// Names a chain of layers; equal chains have equal ids, also after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RefId(pub Digest);

impl fmt::Display for RefId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.hex()[..32])
    }
}

/// Every path of the on-disk format, version 2.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub root: PathBuf,
}

impl Layout {
    /// A directory that may have been deleted since the store was opened. A failure shows where it is used.
    fn dir(&self, name: &str) -> PathBuf {
        let path = self.root.join(name);
        if !path.is_dir() {
            let _ = crate::disk::ensure_dir(&path);
        }
        path
    }

    /// Directories that exist in every open store.
    pub const DIRS: [&'static str; 9] =
        ["blobs/sha256", "layers", "drafts", "images/blobs/sha256", "tmp", "partial", "damaged", "mounts", "context"];

    pub fn version(&self) -> PathBuf {
        self.root.join("version")
    }

    pub fn floor(&self) -> PathBuf {
        self.root.join("floor")
    }

    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub fn meta(&self) -> PathBuf {
        self.root.join("meta.db")
    }

    pub fn epoch(&self) -> PathBuf {
        self.root.join("epoch")
    }

    pub fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join("blobs/sha256").join(&hex[..2]).join(hex)
    }

    pub fn layers(&self) -> PathBuf {
        self.dir("layers")
    }

    pub fn layer(&self, id: LayerId) -> PathBuf {
        self.root.join("layers").join(id.to_string())
    }

    pub fn drafts(&self) -> PathBuf {
        self.dir("drafts")
    }

    /// Blobs that broke off on their way.
    pub fn partials(&self) -> PathBuf {
        self.dir("partial")
    }

    pub fn partial(&self, digest: &Digest) -> PathBuf {
        self.partials().join(digest.hex())
    }

    pub fn images(&self) -> PathBuf {
        self.dir("images")
    }

    pub fn damaged(&self) -> PathBuf {
        self.dir("damaged")
    }

    pub fn mounts(&self) -> PathBuf {
        self.dir("mounts")
    }

    pub fn context(&self) -> PathBuf {
        self.dir("context")
    }

    /// The directory of temporary files.
    pub fn temp_dir(&self) -> PathBuf {
        self.dir("tmp")
    }

    /// A fresh name for a temporary file or for something on its way to deletion.
    pub fn tmp(&self) -> PathBuf {
        self.temp_dir().join(rand_id())
    }
}

/// The directory of a layer or a draft: `fs/` beside `manifest`, `info` and, once asked for, `sums`.
#[derive(Debug, Clone)]
pub(crate) struct LayerDir(pub PathBuf);

impl LayerDir {
    pub fn fs(&self) -> PathBuf {
        self.0.join("fs")
    }

    pub fn manifest(&self) -> PathBuf {
        self.0.join("manifest")
    }

    pub fn info(&self) -> PathBuf {
        self.0.join("info")
    }

    pub fn sums(&self) -> PathBuf {
        self.0.join("sums")
    }
}

impl AsRef<Path> for LayerDir {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_of_temporary_files_comes_back() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout { root: root.path().to_owned() };
        for _ in 0..2 {
            assert!(layout.temp_dir().is_dir());
            std::fs::remove_dir(root.path().join("tmp")).unwrap();
        }
        assert_eq!(layout.tmp().parent(), Some(layout.temp_dir().as_path()));
    }
}
