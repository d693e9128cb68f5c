//! The merged view that a layer under construction sees: itself over the chain below.

use super::LayerBuilder;
use crate::entry::Entry;
use crate::path;
use crate::tree::{ResolveError, ResolvedPath, Seen, resolve};

impl LayerBuilder<'_> {
    /// Returns what lower layers show at `path` as far as this layer's entries above it let them. What this layer
    /// itself has at `path` does not matter.
    pub(super) fn lower_visible(&self, path: &[u8]) -> Option<&Entry> {
        let node = self.lower.get(path)?;
        let mut at = path;
        while let Some(parent) = path::parent(at) {
            if self.own(parent).is_some_and(|e| e.opaque || !e.is_dir()) {
                return None;
            }
            at = parent;
        }
        Some(node.entry)
    }

    /// Resolves `path` with the directory `base` as root.
    pub(crate) fn resolve_in(&self, base: &[u8], path: &[u8], last: bool) -> Result<ResolvedPath, ResolveError> {
        resolve(path, last, |path| self.lookup(&path::join(base, path)).map(Seen::of))
    }
}
