//! The inline cache: records inside an image's own config, whose layer indexes count the image's layers.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kiln_oci::{Descriptor, ImageConfig, JsonError, Manifest, to_ordered_json};
use kiln_stdx::Digest;
use serde::Deserialize;

use super::format::{CacheConfig, CacheLayer, CacheRecord, ChainedResult, NO_TIME, lenient};
use super::parse::{ParsedCache, from_config};
use super::{CREATED_AT, CacheNode, DESCRIPTION, UNCOMPRESSED, build};

const CONFIG_KEY: &str = "moby.buildkit.cache.v0";

/// Returns the records for an image of these `layers` (blob digests and uncompressed digests, bottom first); none where
/// no result of `nodes` is made of its layers.
///
/// # Errors
/// Never for nodes that this crate made.
pub fn inline_records(nodes: &[CacheNode], layers: &[(Digest, Digest)]) -> Result<Option<Vec<u8>>, JsonError> {
    // A result may hold the same layer in another compression, which is as good.
    let place = |descriptor: &Descriptor| {
        let uncompressed: Option<Digest> = descriptor.annotations.get(UNCOMPRESSED).and_then(|d| d.parse().ok());
        layers.iter().position(|(blob, diff)| *blob == descriptor.digest || Some(*diff) == uncompressed)
    };
    let mut kept = nodes.to_vec();
    for node in &mut kept {
        node.results.retain(|r| r.layers.iter().all(|l| place(l).is_some()));
    }
    let (config, blobs) = build(&kept);
    if config.layers.is_empty() {
        return Ok(None);
    }
    let by_digest: BTreeMap<String, &Descriptor> = blobs.iter().map(|b| (b.digest.to_string(), b)).collect();
    let index = |layer: &CacheLayer| by_digest.get(&layer.blob).and_then(|d| place(d)).map(|i| i as i64);
    let mut records = config.records.clone();
    for record in &mut records {
        for mut result in std::mem::take(&mut record.results) {
            let Some(stack) = stack_of(&config.layers, result.layer) else { continue };
            let Some(indexes) = stack.into_iter().map(index).collect::<Option<Vec<i64>>>() else { continue };
            // Lower layers in the image's own order are named by their top, others one by one.
            if indexes.iter().zip(0..).all(|(index, want)| *index == want) {
                result.layer = indexes.last().copied().unwrap_or(0);
                record.results.push(result);
            } else {
                record.chains.push(ChainedResult { layers: indexes, created_at: NO_TIME.to_owned() });
            }
        }
    }
    to_ordered_json("inline cache", &records).map(Some)
}

fn stack_of(layers: &[CacheLayer], top: i64) -> Option<Vec<&CacheLayer>> {
    let mut stack = Vec::new();
    let mut at = top;
    while at != -1 && stack.len() <= layers.len() {
        let layer = layers.get(usize::try_from(at).ok()?)?;
        stack.push(layer);
        at = layer.parent;
    }
    stack.reverse();
    Some(stack)
}

/// Reads the inline cache of an image; none where it has none, or manifest and config disagree.
///
/// # Errors
/// A config that is no JSON.
pub fn parse_inline(config: &[u8], manifest: &Manifest) -> Result<Option<ParsedCache>, JsonError> {
    #[derive(Deserialize)]
    struct Records(#[serde(deserialize_with = "lenient")] Vec<CacheRecord>);

    let image = ImageConfig::from_json(config)?;
    let records = image.extra.get(CONFIG_KEY).and_then(|v| v.as_str()).and_then(|t| BASE64_STANDARD.decode(t).ok());
    let records: Option<Records> = records.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let Some(Records(records)) = records else { return Ok(None) };
    let diff_ids = &image.rootfs.diff_ids;
    if diff_ids.len() != manifest.layers.len() {
        return Ok(None);
    }
    let mut histories = image.history.iter().filter(|h| !h.empty_layer);
    let mut blobs = BTreeMap::new();
    let mut layers = Vec::new();
    for ((descriptor, diff_id), parent) in manifest.layers.iter().zip(diff_ids).zip(-1..) {
        let mut descriptor = descriptor.clone();
        if let Some(history) = histories.next() {
            let created = history.created.clone().filter(|c| !c.is_empty());
            descriptor.annotations.extend(created.map(|c| (CREATED_AT.to_owned(), c)));
            if !history.created_by.is_empty() {
                descriptor.annotations.insert(DESCRIPTION.to_owned(), history.created_by.clone());
            }
        }
        descriptor.annotations.insert(UNCOMPRESSED.to_owned(), diff_id.to_string());
        layers.push(CacheLayer { blob: descriptor.digest.to_string(), parent, annotations: None });
        blobs.insert(descriptor.digest, descriptor);
    }
    Ok(Some(from_config(&CacheConfig { layers, records }, &blobs)))
}
