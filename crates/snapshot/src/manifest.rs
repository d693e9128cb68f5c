//! The manifest of a layer: what its directory must hold.

mod codec;

use std::collections::HashSet;
use std::sync::OnceLock;

use crate::entry::{Entry, Kind};
use crate::path;

pub use codec::DecodeError;

/// Everything in one layer, in component order, parents before children.
///
/// Invariant: entries are sorted and unique, paths are well-formed, and the parent of every entry is a directory
/// of the same manifest; a non-empty manifest therefore starts with the root directory.
#[derive(Debug, Default)]
pub struct LayerManifest {
    entries: Vec<Entry>,
    inodes: OnceLock<HashSet<u64>>,
}

impl LayerManifest {
    /// Returns the manifest of `entries`, sorting them when they are not in order.
    ///
    /// # Errors
    /// When an invariant of the type does not hold.
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, DecodeError> {
        if !entries.is_sorted_by(|a, b| path::cmp(&a.path, &b.path).is_lt()) {
            entries.sort_by(|a, b| path::cmp(&a.path, &b.path));
        }
        validate(&entries)?;
        Ok(Self { entries, inodes: OnceLock::new() })
    }

    /// Returns the entries in component order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Returns the number of entries, the root directory included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Tells whether there is no entry at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Tells whether the layer changes nothing: it has at most its root directory.
    pub fn changes_nothing(&self) -> bool {
        self.entries.iter().all(|e| e.path.is_empty() && !e.opaque)
    }

    /// Returns the entry at `path`.
    pub fn get(&self, path: &[u8]) -> Option<&Entry> {
        self.entries.binary_search_by(|e| path::cmp(&e.path, path)).ok().map(|i| &self.entries[i])
    }

    /// Returns the bytes of all regular files, each inode counted once.
    pub fn total_size(&self) -> u64 {
        let mut seen = HashSet::new();
        self.entries
            .iter()
            .filter(|e| e.is_file() && e.nlink_group.is_none_or(|group| seen.insert(group)))
            .fold(0, |sum, e| sum.saturating_add(e.size))
    }

    /// Tells whether a name of this layer, whiteouts aside, is the inode `ino`. The set is built once.
    pub fn holds_inode(&self, ino: u64) -> bool {
        self.inodes
            .get_or_init(|| {
                self.entries.iter().filter(|e| !matches!(e.kind, Kind::Whiteout | Kind::Dir)).map(|e| e.ino).collect()
            })
            .contains(&ino)
    }

    /// Returns the binary form: versioned, ending in a checksum. Equal manifests have equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(&self.entries)
    }

    /// Tells whether bytes claim to be of an older version, which [`upgrade_manifest`](crate::layer::upgrade_manifest)
    /// reads.
    pub fn is_old(bytes: &[u8]) -> bool {
        codec::is_old(bytes)
    }

    /// Returns the form that [`decode_old`](Self::decode_old) reads.
    #[cfg(test)]
    pub(crate) fn encode_old(&self) -> Vec<u8> {
        codec::encode_with_digests(&self.entries)
    }

    /// Reads the entries of an older version, with digests where fingerprints belong.
    pub(crate) fn decode_old(bytes: &[u8]) -> Result<Vec<Entry>, DecodeError> {
        let entries = codec::decode_with_digests(bytes)?;
        validate(&entries)?;
        Ok(entries)
    }

    /// Reads the binary form.
    ///
    /// # Errors
    /// For any bytes that [`encode`](Self::encode) does not write; never panics.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let entries = codec::decode(bytes)?;
        validate(&entries)?;
        Ok(Self { entries, inodes: OnceLock::new() })
    }
}

impl PartialEq for LayerManifest {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl Eq for LayerManifest {}

impl Clone for LayerManifest {
    fn clone(&self) -> Self {
        Self { entries: self.entries.clone(), inodes: OnceLock::new() }
    }
}

/// Checks order, paths, parents and what each kind may carry.
fn validate(entries: &[Entry]) -> Result<(), DecodeError> {
    let invalid = |e: &Entry, what| Err(DecodeError::Invalid { path: path::lossy(&e.path), what });
    let mut parents: Vec<&Entry> = Vec::new();
    let mut previous: Option<&Entry> = None;
    for entry in entries {
        if path::check(&entry.path).is_err() {
            return invalid(entry, "the path is malformed");
        }
        if previous.is_some_and(|p| path::cmp(&p.path, &entry.path).is_ge()) {
            return invalid(entry, "it is out of order");
        }
        let parent = path::parent(&entry.path);
        while parents.last().is_some_and(|p| Some(&p.path[..]) != parent) {
            parents.pop();
        }
        match (parents.last(), parent) {
            (None, None) if entry.is_dir() => {}
            (None, None) => return invalid(entry, "the root is not a directory"),
            (Some(dir), Some(_)) if dir.is_dir() => {}
            _ => return invalid(entry, "its parent is not a directory of the layer"),
        }
        if entry.digest.is_some() != entry.is_file() {
            return invalid(entry, "only files, and all of them, have a digest");
        }
        if entry.opaque && !entry.is_dir() {
            return invalid(entry, "only directories are opaque");
        }
        if entry.mode > 0o7777 || entry.mtime.1 > 999_999_999 {
            return invalid(entry, "its mode or time is out of range");
        }
        if entry.is_dir() {
            parents.push(entry);
        }
        previous = Some(entry);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
