//! A directory in OCI image layout as a blob store: cache directories, images to build from, exported images.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use kiln_stdx::{Digest, DigestHasher};
use serde_json::{Value, json};

use crate::error::SessionError;

const LAYOUT_FILE: &str = "oci-layout";
const INDEX_FILE: &str = "index.json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const TAG: &str = "org.opencontainers.image.ref.name";
const IMAGE_NAME: &str = "io.containerd.image.name";

/// A layout directory.
#[derive(Debug, Clone)]
pub struct LayoutStore {
    root: PathBuf,
    writable: bool,
}

/// What an entry of `index.json` is found by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IndexName {
    /// Only a tag.
    Tag(String),
    /// A whole image name; its tag is listed as well.
    Name(String),
}

impl IndexName {
    fn tag(&self) -> &str {
        match self {
            Self::Tag(tag) => tag,
            Self::Name(name) => match name.rsplit_once(':') {
                Some((_, tag)) if !tag.contains('/') => tag,
                _ => "latest",
            },
        }
    }
}

impl LayoutStore {
    /// Opens a layout to read from.
    ///
    /// # Errors
    /// The directory is no OCI layout.
    pub fn open(root: &Path) -> Result<Self, SessionError> {
        if !root.join(INDEX_FILE).is_file() {
            return Err(SessionError::Input(format!("{} is no OCI layout: it has no {INDEX_FILE}", root.display())));
        }
        Ok(Self { root: root.to_owned(), writable: false })
    }

    /// Opens a layout to write to, making the directory where it is missing.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn create(root: &Path) -> Result<Self, SessionError> {
        fs::create_dir_all(root.join("blobs/sha256"))
            .map_err(|e| SessionError::io(format!("creating {}", root.display()), e))?;
        Ok(Self { root: root.to_owned(), writable: true })
    }

    /// Tells whether blobs can be added.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Returns where a blob is, whether it exists or not.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Returns the size of a blob; none when it is not there.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn size(&self, digest: &Digest) -> io::Result<Option<u64>> {
        match fs::metadata(self.blob_path(digest)) {
            Ok(meta) => Ok(meta.is_file().then_some(meta.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lists the blobs.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> io::Result<Vec<(Digest, u64)>> {
        let mut out = Vec::new();
        let entries = match fs::read_dir(self.root.join("blobs/sha256")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(out),
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            let digest = entry.file_name().to_str().and_then(|n| format!("sha256:{n}").parse::<Digest>().ok());
            if let Some(digest) = digest {
                out.push((digest, entry.metadata()?.len()));
            }
        }
        out.sort();
        Ok(out)
    }

    /// Begins a blob.
    ///
    /// # Errors
    /// The store is read-only or full.
    pub fn ingest(&self) -> io::Result<Ingest> {
        if !self.writable {
            return Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "the store is read-only"));
        }
        let dir = self.root.join("ingest");
        fs::create_dir_all(&dir)?;
        let path = dir.join(kiln_stdx::rand_id());
        let file = fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
        Ok(Ingest { store: self.clone(), file, path, hasher: DigestHasher::new(), size: 0, kept: false })
    }

    /// Reads `index.json`; a missing one is empty.
    ///
    /// # Errors
    /// The file cannot be read or is no JSON object.
    pub fn index(&self) -> Result<Value, SessionError> {
        let path = self.root.join(INDEX_FILE);
        let data = match fs::read(&path) {
            Ok(data) => data,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}));
            }
            Err(error) => return Err(SessionError::io(format!("reading {}", path.display()), error)),
        };
        match serde_json::from_slice::<Value>(&data) {
            Ok(value) if value.is_object() => Ok(value),
            Ok(_) => Err(SessionError::Input(format!("{} is no image index", path.display()))),
            Err(error) => Err(SessionError::Input(format!("{}: {error}", path.display()))),
        }
    }

    /// Moves an `index.json` that cannot be understood aside, so that a new one is begun, and returns where it is now.
    ///
    /// # Errors
    /// The file cannot be read or moved.
    pub fn renew_index(&self) -> Result<Option<PathBuf>, SessionError> {
        if !matches!(self.index(), Err(SessionError::Input(_))) {
            return Ok(None);
        }
        let aside = self.root.join(format!("{INDEX_FILE}.damaged"));
        let moved = fs::rename(self.root.join(INDEX_FILE), &aside);
        moved.map_err(|e| SessionError::io(format!("moving the index of {} aside", self.root.display()), e))?;
        Ok(Some(aside))
    }

    /// Enters a descriptor into `index.json` under these names, which other entries lose.
    ///
    /// # Errors
    /// The index cannot be read or written, or the descriptor is no JSON object.
    pub fn put(&self, descriptor: &Value, names: &[IndexName]) -> Result<(), SessionError> {
        let failed = |e| SessionError::io(format!("writing the index of {}", self.root.display()), e);
        let mut index = self.index()?;
        if !descriptor.is_object() {
            return Err(SessionError::Input("a descriptor must be a JSON object".into()));
        }
        let mut manifests = match index.get_mut("manifests").map(Value::take) {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        };
        let taken: Vec<&str> = names.iter().map(IndexName::tag).collect();
        manifests.retain(|m| {
            let tag = m.pointer("/annotations").and_then(|a| a.get(TAG)).and_then(Value::as_str);
            let same = m.get("digest") == descriptor.get("digest");
            !(tag.is_some_and(|t| taken.contains(&t)) || (same && tag.is_none()))
        });
        for name in names {
            let mut entry = descriptor.clone();
            if !entry["annotations"].is_object() {
                entry["annotations"] = json!({});
            }
            entry["annotations"][TAG] = name.tag().into();
            if let IndexName::Name(name) = name {
                entry["annotations"][IMAGE_NAME] = name.as_str().into();
            }
            manifests.push(entry);
        }
        if names.is_empty() {
            manifests.push(descriptor.clone());
        }
        index["manifests"] = manifests.into();
        let layout = self.root.join(LAYOUT_FILE);
        if !layout.exists() {
            replace(&layout, br#"{"imageLayoutVersion":"1.0.0"}"#).map_err(failed)?;
        }
        let data = serde_json::to_vec(&index).map_err(io::Error::from).map_err(failed)?;
        replace(&self.root.join(INDEX_FILE), &data).map_err(failed)
    }
}

/// Writes a file aside and renames it.
fn replace(path: &Path, data: &[u8]) -> io::Result<()> {
    let aside = path.with_extension(format!("{}.tmp", kiln_stdx::rand_id()));
    let written = fs::write(&aside, data).and_then(|()| fs::rename(&aside, path));
    if written.is_err() {
        // Nothing to keep.
        let _ = fs::remove_file(&aside);
    }
    written
}

/// A blob in the making; dropped uncommitted it leaves nothing.
pub struct Ingest {
    store: LayoutStore,
    file: File,
    path: PathBuf,
    hasher: DigestHasher,
    size: u64,
    kept: bool,
}

impl Ingest {
    /// Returns the bytes written so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Makes the blob visible if it is what is expected. Returns its digest.
    ///
    /// # Errors
    /// It is something else, or cannot be renamed.
    pub fn commit(mut self, expected: Option<Digest>, size: Option<u64>) -> io::Result<Digest> {
        if size.is_some_and(|s| s != self.size) {
            let text = format!("unexpected commit size {}, expected {}", self.size, size.unwrap_or(0));
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let digest = std::mem::take(&mut self.hasher).finish();
        if let Some(expected) = expected.filter(|e| *e != digest) {
            let text = format!("unexpected commit digest {digest}, expected {expected}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        self.file.flush()?;
        fs::rename(&self.path, self.store.blob_path(&digest))?;
        self.kept = true;
        Ok(digest)
    }
}

impl Write for Ingest {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let n = self.file.write(data)?;
        self.hasher.update(&data[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if !self.kept {
            // It may never have been more than a name.
            let _ = fs::remove_file(&self.path);
        }
        // Only when it is empty.
        let _ = fs::remove_dir(self.store.root.join("ingest"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_appear_when_they_are_what_was_expected() {
        let dir = tempfile::tempdir().unwrap();
        let store = LayoutStore::create(dir.path()).unwrap();
        let digest = Digest::of("kiln");
        let mut ingest = store.ingest().unwrap();
        ingest.write_all(b"kiln").unwrap();
        assert!(store.list().unwrap().is_empty());
        assert_eq!(ingest.commit(Some(digest), Some(4)).unwrap(), digest);
        assert_eq!(store.list().unwrap(), [(digest, 4)]);
        let mut wrong = store.ingest().unwrap();
        wrong.write_all(b"oven").unwrap();
        assert!(wrong.commit(Some(digest), None).is_err());
        let mut short = store.ingest().unwrap();
        short.write_all(b"ki").unwrap();
        assert!(short.commit(None, Some(4)).is_err());
        assert_eq!(store.list().unwrap().len(), 1);
        assert!(!dir.path().join("ingest").exists(), "nothing is left behind");
    }

    #[test]
    fn names_move_to_the_newest_entry() {
        let dir = tempfile::tempdir().unwrap();
        let store = LayoutStore::create(dir.path()).unwrap();
        assert!(LayoutStore::open(dir.path()).is_err(), "not a layout before it has an index");
        let one = json!({"mediaType": "m", "digest": Digest::of("1").to_string(), "size": 1});
        let two = json!({"mediaType": "m", "digest": Digest::of("2").to_string(), "size": 1});
        store.put(&one, &[IndexName::Tag("latest".into()), IndexName::Name("r.test/a:v1".into())]).unwrap();
        store.put(&two, &[IndexName::Tag("latest".into())]).unwrap();
        let index = LayoutStore::open(dir.path()).unwrap().index().unwrap();
        let found: Vec<(&str, &str)> = index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| (m["annotations"][TAG].as_str().unwrap(), m["digest"].as_str().unwrap()))
            .collect();
        assert_eq!(found, [("v1", one["digest"].as_str().unwrap()), ("latest", two["digest"].as_str().unwrap())]);
        assert_eq!(index["manifests"][0]["annotations"][IMAGE_NAME], "r.test/a:v1");
        assert!(store.put(&json!([]), &[]).is_err());
    }
}
