//! The inline cache: records of a build inside the config of its own image, whose layers are the cached ones.

use kiln_exporter::cacheconfig::inline_records;
use kiln_exporter::{CacheCompression, CacheLayers, ExportContext};
use kiln_store::ImmutableRef;

use super::collect::{Kept, nodes};
use crate::error::EngineError;

/// Returns the records for an image of `reference`; none where no key of the build has a result made of its layers.
///
/// Layers are told apart by their uncompressed digests; they are compressed as the image is going to be, so that none is
/// compressed twice. Blocking.
///
/// # Errors
/// A layer that cannot be had, damage, a full disk.
pub fn records(
    context: &ExportContext,
    reference: &ImmutableRef,
    kept: Vec<Kept>,
    compression: CacheCompression,
) -> Result<Option<Vec<u8>>, EngineError> {
    let mut layers = CacheLayers::new(context, compression);
    let made = layers.add(reference)?;
    let diff_id = |d: &kiln_oci::Descriptor| {
        d.annotations.get(kiln_exporter::cacheconfig::UNCOMPRESSED).and_then(|text| text.parse().ok())
    };
    let image: Option<Vec<_>> = made.iter().map(|d| Some((d.digest, diff_id(d)?))).collect();
    let Some(image) = image else { return Ok(None) };
    let nodes = nodes(&mut layers, kept)?;
    Ok(inline_records(&nodes, &image)?)
}
