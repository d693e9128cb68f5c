//! Content digests of parts of a ref, with the values that BuildKit's cache keys hold, so that caches interoperate.
//!
//! A file's digest is SHA-256 over a header (mode, owner, size, type, link target, extended attributes; no name, no
//! time) and the file's bytes. A directory's is SHA-256 over, in component order, its own header's digest under the
//! name NUL, then for each child NUL, its name and its digest. Everything but the file sums comes from manifests; a file
//! sum is computed once, when the bytes pass by or else by reading the file, and kept (see [`sums`]).

mod header;
mod listing;
mod select;
mod sums;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use kiln_snapshot::{Entry, Kind, Node, Tree};
use kiln_stdx::{Digest, DigestHasher, ErrorClass, StableHasher, pattern};
use parking_lot::Mutex;

use crate::check::Depth;
use crate::error::{Result, StoreError};
use crate::layout::RefId;
use crate::lru::Lru;
use crate::record::RecordType;
use crate::refs::ImmutableRef;
use crate::store::Store;

pub use header::FileSum;
pub use listing::{Changed, Listing};
pub(crate) use sums::SumCache;
use sums::Sums;

/// How many results are remembered.
const RESULTS: usize = 20_000;

/// Which part of a ref is hashed, in the words of LLB's file copies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContentSelector {
    /// The path, absolute in the ref. A trailing slash leaves out the header of the directory itself where patterns are used.
    pub path: String,
    /// Follow a symbolic link at the path itself.
    pub follow_links: bool,
    /// The path is a pattern.
    pub wildcard: bool,
    /// Only what matches one of these, below the path.
    pub include: Vec<String>,
    /// Nothing that matches these, below the path.
    pub exclude: Vec<String>,
    /// Paths of which something must have been included.
    pub required: Vec<String>,
}

impl ContentSelector {
    /// Selects all that is at `path`.
    pub fn path(path: impl Into<String>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    fn digest(&self) -> Digest {
        StableHasher::new("kiln.selector.v1")
            .str("path", &self.path)
            .bool("follow", self.follow_links)
            .bool("wildcard", self.wildcard)
            .strs("include", self.include.iter())
            .strs("exclude", self.exclude.iter())
            .strs("required", self.required.iter())
            .finish()
    }

    fn is_plain(&self) -> bool {
        !self.wildcard && self.include.is_empty() && self.exclude.is_empty()
    }
}

/// Results by ref and selector.
pub(crate) struct ContentCache(Mutex<Lru<(RefId, Digest), Digest>>);

impl Default for ContentCache {
    fn default() -> Self {
        Self(Mutex::new(Lru::new(RESULTS)))
    }
}

impl ContentCache {
    pub fn clear(&self) {
        self.0.lock().retain(|_, _| false);
    }
}

impl Store {
    /// Returns the content digest of what `selector` selects of `r`.
    ///
    /// # Errors
    /// The path does not exist; a pattern is malformed; a layer is lazy, or was found damaged and dropped.
    pub fn content_digest(&self, r: &ImmutableRef, selector: &ContentSelector) -> Result<Digest> {
        let key = (r.id(), selector.digest());
        if r.is_valid()
            && let Some(digest) = self.0.content.0.lock().get(&key)
        {
            return Ok(digest);
        }
        let digest = match self.compute_content(r, selector) {
            // A file was not what its manifest says: the layer is verified as a whole, repaired or dropped, and if it
            // is there after that, hashed again.
            Err(e) if e.class() == ErrorClass::Damage => {
                for layer in r.layers() {
                    self.0.check_layer(self, layer, Depth::Digest)?;
                }
                self.compute_content(r, selector)?
            }
            other => other?,
        };
        self.0.content.0.lock().put(key, digest, 1);
        Ok(digest)
    }

    /// Remembers the content digest of a file whose bytes passed by, made with [`FileSum`], so that it need not be
    /// read again for [`Store::content_digest`]. `entry` must have its data's digest.
    pub fn note_file_sum(&self, entry: &Entry, sum: Digest) {
        self.0.sums.note(entry, sum);
    }

    fn compute_content(&self, r: &ImmutableRef, selector: &ContentSelector) -> Result<Digest> {
        if r.is_scratch() {
            let root = pattern::clean(format!("/{}", selector.path).as_bytes()) == b"/";
            return if root { Ok(Digest::of(b"")) } else { Err(StoreError::NotFound(selector.path.clone())) };
        }
        let tree = r.tree()?;
        let hasher = TreeHasher { store: self, r, tree: &tree, bare_root: has_bare_root(r) };
        if selector.is_plain() {
            hasher.plain(&selector.path, selector.follow_links)
        } else {
            hasher.selected(selector)
        }
    }
}

/// A client's directory has no root of its own in file sync, and BuildKit hashes nothing for its header.
fn has_bare_root(r: &ImmutableRef) -> bool {
    matches!(r.layers(), [only] if only.record_type() == RecordType::SourceLocal)
}

/// Hashes parts of one tree.
struct TreeHasher<'a> {
    store: &'a Store,
    r: &'a ImmutableRef,
    tree: &'a Arc<Tree>,
    bare_root: bool,
}

/// A directory whose children are being hashed.
struct OpenDir<'a> {
    entry: &'a Entry,
    hasher: DigestHasher,
}

impl<'a> TreeHasher<'a> {
    /// Hashes all that is at a path.
    fn plain(&self, path: &str, follow: bool) -> Result<Digest> {
        let node = self.resolve(path.as_bytes(), follow)?.ok_or_else(|| StoreError::NotFound(path.to_owned()))?;
        self.whole(node)
    }

    /// Returns the node that a path leads to, links on the way followed within the root.
    fn resolve(&self, path: &[u8], follow_last: bool) -> Result<Option<Node<'a>>> {
        match self.tree.resolve(path, follow_last) {
            Ok(resolved) => Ok(self.tree.get(&resolved.path)),
            Err(e @ kiln_snapshot::ResolveError::TooManyLinks(_)) => Err(StoreError::Invalid(e.to_string())),
            Err(_) => Ok(None),
        }
    }

    /// Hashes a node with all below it.
    fn whole(&self, node: Node<'a>) -> Result<Digest> {
        if !node.entry.is_dir() {
            let sums = Sums::of(self.store, self.r, [node].into_iter())?;
            return self.leaf(node.entry, &sums);
        }
        let sums = Sums::of(self.store, self.r, self.tree.walk(&node.entry.path))?;
        let mut open: Vec<OpenDir<'a>> = Vec::new();
        for node in self.tree.walk(&node.entry.path) {
            while open.last().is_some_and(|dir| !is_below(&node.entry.path, &dir.entry.path)) {
                close(&mut open);
            }
            if node.entry.is_dir() {
                let mut hasher = DigestHasher::new();
                hasher.update(&[0]);
                put(&mut hasher, &self.header(node.entry));
                open.push(OpenDir { entry: node.entry, hasher });
            } else if let Some(dir) = open.last_mut() {
                let digest = self.leaf(node.entry, &sums)?;
                child(&mut dir.hasher, node.entry, &digest);
            }
        }
        while open.len() > 1 {
            close(&mut open);
        }
        let top = open.pop().ok_or_else(|| StoreError::NotFound(String::new()))?;
        Ok(top.hasher.finish())
    }

    /// The digest of a directory's own metadata.
    fn header(&self, entry: &Entry) -> Digest {
        if self.bare_root && entry.path.is_empty() {
            return Digest::of(b"");
        }
        header::header(entry).finish()
    }

    /// The digest of something that is no directory.
    fn leaf(&self, entry: &Entry, sums: &Sums) -> Result<Digest> {
        match entry.kind {
            Kind::File => sums.get(entry),
            _ => Ok(header::header(entry).finish()),
        }
    }
}

fn close(open: &mut Vec<OpenDir<'_>>) {
    if let Some(dir) = open.pop()
        && let Some(parent) = open.last_mut()
    {
        child(&mut parent.hasher, dir.entry, &dir.hasher.finish());
    }
}

fn child(hasher: &mut DigestHasher, entry: &Entry, digest: &Digest) {
    hasher.update(&[0]);
    hasher.update(entry.name());
    put(hasher, digest);
}

/// Adds a digest in its text form.
fn put(hasher: &mut DigestHasher, digest: &Digest) {
    hasher.update(b"sha256:");
    let mut hex = [0u8; 64];
    for (pair, byte) in hex.chunks_exact_mut(2).zip(digest.as_bytes()) {
        pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
        pair[1] = b"0123456789abcdef"[usize::from(byte & 15)];
    }
    hasher.update(&hex);
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    dir.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'))
}
