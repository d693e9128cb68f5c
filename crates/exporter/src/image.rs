//! The `image` exporter: images in the engine's own store.

use kiln_oci::Reference;
use kiln_stdx::Digest;

use crate::commit::BuiltImage;
use crate::content::{Content, Data};
use crate::context::ExportContext;
use crate::error::{ExportError, Result};
use crate::options::{ImageOptions, Options};
use crate::progress::Status;
use crate::source::ExportSource;

/// Adds the name that an image without one gets, or that every image gets, `<prefix>@<digest>`.
pub(crate) fn add_dangling_name(image: &mut BuiltImage, options: &ImageOptions) -> Result<()> {
    let prefix = &options.dangling_prefix;
    if prefix.is_empty() || (options.dangling_empty_only && !image.names.is_empty()) {
        return Ok(());
    }
    let bad = |why: String| ExportError::invalid("dangling-name-prefix", prefix, why);
    let name = format!("{prefix}@{}", image.descriptor.digest);
    image.names.push(Reference::parse(&name).map_err(|e| bad(e.to_string()))?);
    Ok(())
}

/// Lets an image that goes into the store be built on without unpacking what is here already.
pub(crate) fn identify(context: &ExportContext, options: &Options, source: &ExportSource) -> Result<()> {
    if options.image.store && !options.commit.rewrite_timestamp {
        let references = source.entries.iter().filter_map(|entry| entry.reference.as_ref());
        references.into_iter().try_for_each(|reference| context.store.identify(reference))?;
    }
    Ok(())
}

/// Puts every piece of `image` into the store and names it; on disk when this returns. Blocking.
pub(crate) fn store(context: &ExportContext, image: &BuiltImage, options: &ImageOptions) -> Result<()> {
    let mut digests: Vec<Digest> = Vec::new();
    // The guards keep what was put from being collected before the image refers to it.
    let mut guards = Vec::new();
    for content in image.contents() {
        context.check_canceled()?;
        if let Some(blob) = ensure(context, content, options.store_incomplete)? {
            digests.push(content.descriptor.digest);
            guards.push(blob);
        }
    }
    let mut names: Vec<String> = image.names.iter().map(Reference::to_string).collect();
    if options.name_canonical {
        let pinned = image.names.iter().filter(|n| n.digest().is_none());
        names.extend(pinned.map(|n| n.clone().with_digest(image.descriptor.digest).to_string()).collect::<Vec<_>>());
    }
    let statuses: Vec<Status> =
        names.iter().map(|name| Status::start(&context.progress, format!("naming to {name}"), 0)).collect();
    let mut target = image.descriptor.clone();
    // In an index, the annotations of a descriptor are those of the place, not of the image.
    target.annotations.clear();
    context.store.put_image(&names, &target, &digests)?;
    drop(statuses);
    drop(guards);
    Ok(())
}

/// Returns the blob of `content`, made or fetched where it is not there; none where it may stay away.
fn ensure(context: &ExportContext, content: &Content, incomplete: bool) -> Result<Option<kiln_store::Blob>> {
    Ok(match &content.data {
        Data::Bytes(bytes) => Some(context.store.put_blob(bytes)?),
        Data::Blob(blob) => Some(blob.clone()),
        Data::Remote(_) if incomplete => None,
        Data::Remote(layer) => Some(context.remote.fetch(layer, &content.descriptor.digest)?),
    })
}
