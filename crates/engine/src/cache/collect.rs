//! What goes into an exported cache: the keys that lead to a build's results, and which of them keep their layers.

use std::collections::HashMap;
use std::sync::Arc;

use kiln_exporter::cacheconfig::{CacheLink, CacheNode, CacheResult};
use kiln_exporter::{BuiltCache, CacheLayers, ExportContext, ObjectCache};
use kiln_oci::Descriptor;
use kiln_solver::{ExportGraph, ExportNode, ExportOptions, Loaded, OpContext, StoreId, VertexDigest};
use kiln_stdx::Digest;
use kiln_store::{ImmutableRef, LayerId};

use super::options::{ExportSpec, Mode};
use crate::bridge::{Bridge, FrontendResult, Ref};
use crate::error::EngineError;

/// A key with the result that is exported for it.
pub struct Kept {
    digest: Digest,
    inputs: Vec<Vec<CacheLink>>,
    result: Option<ImmutableRef>,
}

/// Returns the keys of all results of a build, with the layers that `mode` asks for.
///
/// # Errors
/// The build was called off.
pub async fn collect(
    bridge: &Bridge,
    vertex: Digest,
    result: &FrontendResult,
    mode: Mode,
) -> Result<Vec<Kept>, EngineError> {
    let mut kept = Vec::new();
    for reference in result.refs.all() {
        add(bridge, vertex, &reference, mode, &mut kept).await?;
    }
    Ok(kept)
}

/// Adds the keys of one result.
///
/// # Errors
/// The build was called off.
pub async fn add(
    bridge: &Bridge,
    vertex: Digest,
    reference: &Ref,
    mode: Mode,
    kept: &mut Vec<Kept>,
) -> Result<(), EngineError> {
    let cx = OpContext::detached(VertexDigest(vertex), [(bridge.job().id(), Arc::clone(bridge.build()) as _)]);
    let last = bridge.evaluate(reference).await?;
    let graph = bridge.job().export(reference.edge(), ExportOptions { backlinks: true }).await?;
    let offset = kept.len();
    for node in &graph.nodes {
        let result = match mode {
            // Sources are fetched from where they are, as BuildKit has it.
            _ if node.inputs.is_empty() => None,
            Mode::Max => at_hand(&graph, &cx, node, |_| true).await,
            // The lower layers of the result are exported with it, so they serve their own steps too.
            Mode::Min => {
                let found = at_hand(&graph, &cx, node, |store| store == StoreId::MAIN).await;
                // What an imported cache has of the same layers was not loaded if only a later step was needed.
                let imported = || node.records.iter().filter_map(|record| graph.at_hand(record));
                let lower = |found: &ImmutableRef| found.is_prefix_of(&last);
                found.filter(lower).or_else(|| imported().find(lower))
            }
        };
        kept.push(Kept { digest: node.digest, inputs: links(node, offset), result });
    }
    Ok(())
}

/// Returns the results that a result's steps led to, by operation and output.
///
/// # Errors
/// The build was called off.
pub async fn results(bridge: &Bridge, reference: &Ref) -> Result<Vec<((Digest, u32), ImmutableRef)>, EngineError> {
    let vertex = reference.edge().vertex;
    let cx = OpContext::detached(vertex, [(bridge.job().id(), Arc::clone(bridge.build()) as _)]);
    let graph = bridge.job().export(reference.edge(), ExportOptions { backlinks: false }).await?;
    let mut found = Vec::new();
    for node in &graph.nodes {
        let Some((vertex, output)) = node.vertex else { continue };
        if let Some(result) = at_hand(&graph, &cx, node, |store| store == StoreId::MAIN).await {
            found.push(((vertex.0, output), result));
        }
    }
    Ok(found)
}

fn links(node: &ExportNode<ImmutableRef>, offset: usize) -> Vec<Vec<CacheLink>> {
    let link = |link: &kiln_solver::ExportLink| CacheLink { selector: link.selector, node: link.node + offset };
    node.inputs.iter().map(|links| links.iter().map(link).collect()).collect()
}

/// Returns a node's result, loading a record from one of the stores where this build did not need it.
async fn at_hand(
    graph: &ExportGraph<ImmutableRef>,
    cx: &OpContext,
    node: &ExportNode<ImmutableRef>,
    wanted: impl Fn(StoreId) -> bool,
) -> Option<ImmutableRef> {
    if node.result.is_some() {
        return node.result.clone();
    }
    for record in node.records.iter().filter(|record| wanted(record.store)) {
        match graph.load(cx, record).await {
            Ok(Loaded::Hit(found)) => return Some(found),
            Ok(Loaded::Gone(_)) => {}
            Err(error) => tracing::warn!(%error, "a cache record was not exported"),
        }
    }
    None
}

/// Makes blobs of all layers and the documents around them; none where no key has a result. Blocking.
///
/// # Errors
/// A layer that cannot be had, damage, a full disk.
pub fn build(context: &ExportContext, spec: &ExportSpec, kept: Vec<Kept>) -> Result<Option<BuiltCache>, EngineError> {
    let mut layers = CacheLayers::new(context, spec.compression);
    let nodes = nodes(&mut layers, kept)?;
    Ok(layers.finish(&nodes, spec.form)?)
}

/// As [`build`], for a store of objects. Blocking.
///
/// # Errors
/// As [`build`].
pub fn build_objects(
    context: &ExportContext,
    spec: &ExportSpec,
    kept: Vec<Kept>,
) -> Result<Option<ObjectCache>, EngineError> {
    let mut layers = CacheLayers::new(context, spec.compression);
    let nodes = nodes(&mut layers, kept)?;
    Ok(layers.finish_objects(&nodes)?)
}

/// Makes blobs of the layers of all results and returns the keys with them. Blocking.
///
/// # Errors
/// A layer that cannot be had, damage, a full disk.
pub fn nodes(layers: &mut CacheLayers, kept: Vec<Kept>) -> Result<Vec<CacheNode>, EngineError> {
    let mut blobs: HashMap<LayerId, Descriptor> = HashMap::new();
    // Most results are the lower part of another one, so taking the highest first leaves few to be made.
    let mut stacks: Vec<&ImmutableRef> = kept.iter().filter_map(|kept| kept.result.as_ref()).collect();
    stacks.sort_by_key(|stack| std::cmp::Reverse(stack.layers().len()));
    for stack in stacks {
        if !stack.layers().iter().all(|layer| blobs.contains_key(&layer.id())) {
            let made = layers.add(stack)?;
            blobs.extend(stack.layer_ids().into_iter().zip(made));
        }
    }
    let node = |Kept { digest, inputs, result }| {
        let results = result.as_ref().and_then(|result| cached(result, &blobs)).into_iter().collect();
        CacheNode { digest, inputs, results }
    };
    Ok(kept.into_iter().map(node).collect())
}

/// Returns a result as the cache has it; none for an empty file system, which has no layers to name.
fn cached(result: &ImmutableRef, blobs: &HashMap<LayerId, Descriptor>) -> Option<CacheResult> {
    let created = result.layers().last()?.created();
    let layers = result.layers().iter().map(|layer| blobs.get(&layer.id()).cloned()).collect::<Option<_>>()?;
    Some(CacheResult { layers, created: created.into() })
}
