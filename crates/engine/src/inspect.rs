//! Reading files of results: what frontends ask for through the bridge. Nothing is mounted for it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use kiln_snapshot::{Entry, Kind};
use kiln_stdx::limits;
use kiln_store::ImmutableRef;

use crate::error::EngineError;
use crate::parts::Parts;

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub offset: u64,
    pub length: u64,
}

/// Reads a file of `reference`, links followed inside it.
///
/// # Errors
/// The path does not exist or is no regular file, or the file is larger than a frontend may read at once.
pub async fn read_file(
    parts: &Parts,
    reference: &ImmutableRef,
    path: &str,
    range: Option<Range>,
) -> Result<Vec<u8>, EngineError> {
    let (reference, path) = (reference.clone(), path.to_owned());
    parts.blocking(move || read_now(&reference, &path, range)).await
}

/// As [`read_file`], on this thread.
///
/// # Errors
/// As [`read_file`].
pub fn read_now(reference: &ImmutableRef, path: &str, range: Option<Range>) -> Result<Vec<u8>, EngineError> {
    let tree = reference.tree()?;
    let resolved = tree.resolve(path.as_bytes(), true).map_err(|e| EngineError::user(e.to_string()))?;
    let node = tree.get(&resolved.path).ok_or_else(|| missing(path))?;
    if node.entry.kind != Kind::File {
        return Err(EngineError::user(format!("open {path}: not a regular file")));
    }
    let range = range.unwrap_or(Range { offset: 0, length: node.entry.size });
    let length = range.length.min(node.entry.size.saturating_sub(range.offset));
    if length > limits::FRONTEND_FILE {
        return Err(EngineError::user(format!("{path} is too large to be read: {length} bytes")));
    }
    let dirs = reference.dirs();
    let dir = dirs.get(node.layer).ok_or_else(|| missing(path))?;
    let file = File::open(dir.join(os(&resolved.path)))?;
    let mut data = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut data, range.offset)?;
    if range.offset == 0
        && length == node.entry.size
        && let Some(expected) = node.entry.digest
        && kiln_stdx::Fingerprint::of(&data) != expected
    {
        return Err(EngineError::new(kiln_stdx::ErrorClass::Damage, format!("{path} is damaged in the store")));
    }
    Ok(data)
}

/// Returns what is at `path`, without following a link there.
///
/// # Errors
/// The path does not exist.
pub fn stat(reference: &ImmutableRef, path: &str) -> Result<Entry, EngineError> {
    let tree = reference.tree()?;
    let resolved = tree.resolve(path.as_bytes(), false).map_err(|e| EngineError::user(e.to_string()))?;
    tree.get(&resolved.path).map(|node| node.entry.clone()).ok_or_else(|| missing(path))
}

/// Returns what a directory holds, in order of names.
///
/// # Errors
/// The path does not exist or is no directory.
pub fn read_dir(reference: &ImmutableRef, path: &str) -> Result<Vec<Entry>, EngineError> {
    let tree = reference.tree()?;
    let resolved = tree.resolve(path.as_bytes(), true).map_err(|e| EngineError::user(e.to_string()))?;
    if resolved.path.is_empty() && tree.is_empty() {
        // The top of an empty file system is there, and empty.
        return Ok(Vec::new());
    }
    let node = tree.get(&resolved.path).ok_or_else(|| missing(path))?;
    if node.entry.kind != Kind::Dir {
        return Err(EngineError::user(format!("{path} is not a directory")));
    }
    Ok(tree.children(&resolved.path).map(|child| child.entry.clone()).collect())
}

fn missing(path: &str) -> EngineError {
    EngineError::user(format!("open {path}: no such file or directory"))
}

fn os(path: &[u8]) -> std::ffi::OsString {
    std::os::unix::ffi::OsStringExt::from_vec(path.to_vec())
}
