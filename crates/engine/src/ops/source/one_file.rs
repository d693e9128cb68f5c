//! A result that is one file.

use std::sync::Arc;

use kiln_snapshot::layer::FileMeta;
use kiln_snapshot::{LayerBuilder, Tree};
use kiln_store::{Blob, ImmutableRef, RecordType};
use serde::Serialize;

use crate::error::EngineError;
use crate::layers;
use crate::parts::Parts;
use crate::source::file_attrs::FileAttrs;

/// What keys of such sources say of the file.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct FileKey<'a> {
    filename: &'a str,
    perm: u32,
    #[serde(rename = "UID")]
    uid: u32,
    #[serde(rename = "GID")]
    gid: u32,
}

impl<'a> FileKey<'a> {
    /// Returns the part of the key for a file of this name.
    pub fn new(filename: &'a str, attrs: &FileAttrs) -> Self {
        Self { filename, perm: attrs.mode.unwrap_or(0), uid: attrs.uid, gid: attrs.gid }
    }
}

/// Returns a layer with the bytes of `blob` as a file of its root.
///
/// # Errors
/// The blob is damaged, or the layer cannot be written.
pub async fn one_file(
    parts: &Arc<Parts>,
    blob: Blob,
    name: String,
    meta: FileMeta,
    description: String,
) -> Result<ImmutableRef, EngineError> {
    let store = parts.store.clone();
    let work = move || {
        let draft = store.draft()?;
        draft.room().take(blob.size());
        let (tree, dirs) = (Tree::default(), Vec::new());
        let mut builder = LayerBuilder::new(&draft.fs(), &tree, &dirs)?;
        builder.file_from_reader(name.as_bytes(), &meta, blob.open_verified()?)?;
        let info = layers::info(&store.scratch(), description, RecordType::Regular);
        Ok(store.scratch().with_layer(store.commit(draft, builder.finish()?, info)?))
    };
    parts.blocking(work).await
}
