//! Many layers made one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::build::LayerBuilder;
use super::diff::Copier;
use crate::error::Result;
use crate::manifest::LayerManifest;
use crate::tree::Tree;

/// Makes one layer in `dest` (missing or empty) that holds what `layers`, bottom to top with their directories
/// `dirs`, show together. It is a bottom layer: it has no whiteouts. Files share inodes with the layers where that
/// cannot show, so this costs names, not bytes.
///
/// # Errors
/// When a source file is damaged or something cannot be written.
pub fn flatten(layers: &[Arc<LayerManifest>], dirs: &[PathBuf], dest: &Path) -> Result<LayerManifest> {
    materialise(&Tree::merge(layers), dirs, dest, true)
}

/// As [`flatten`] for a merged view; with `link` false every file is a copy that may be written to.
pub(crate) fn materialise(tree: &Tree, dirs: &[PathBuf], dest: &Path, link: bool) -> Result<LayerManifest> {
    let empty = Tree::default();
    let mut builder = LayerBuilder::new(dest, &empty, &[])?;
    if !link {
        builder.never_link();
    }
    let mut copier = Copier::new(dirs);
    for node in tree.iter() {
        copier.place(&mut builder, &node)?;
    }
    builder.finish()
}
