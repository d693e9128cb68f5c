//! The part of an export that the graph knows: which keys lead to an edge, and what results are at hand.

use std::collections::BTreeMap;

use kiln_stdx::Digest;

use super::Core;
use super::graph::OutputRef;
use super::plan::content_known;
use crate::context::JobId;
use crate::error::SolveError;
use crate::export::{ExportLink, ExportNode};
use crate::key::{KeyId, OutputKey};
use crate::keystore::StoreId;
use crate::op::KeyLife;
use crate::vertex::Edge;

/// What the graph knows of an export.
pub(crate) struct Skeleton<R> {
    pub nodes: Vec<ExportNode<R>>,
    pub root: Option<usize>,
    pub stores: Vec<StoreId>,
}

/// A walk that is under way.
struct Walk<R> {
    nodes: Vec<ExportNode<R>>,
    /// The nodes of an output, the one with its result last; none where it cannot be keyed.
    outputs: BTreeMap<OutputRef, Vec<usize>>,
    contents: BTreeMap<KeyId, usize>,
}

impl<R: Clone, O: Clone> Core<R, O> {
    /// Walks from an edge to the roots. Changes nothing.
    pub(crate) fn export(&self, job: JobId, edge: Edge) -> Result<Skeleton<R>, SolveError> {
        let state = self.jobs.get(&job).ok_or(SolveError::Canceled)?;
        let vertex = *state.loaded.get(&edge.vertex).ok_or(SolveError::Unknown(edge))?;
        let start = OutputRef { vertex, index: edge.index };
        let mut walk = Walk { nodes: Vec::new(), outputs: BTreeMap::new(), contents: BTreeMap::new() };
        let mut stack = vec![start];
        while let Some(&output) = stack.last() {
            if walk.outputs.contains_key(&output) {
                stack.pop();
                continue;
            }
            let inputs = self.nodes.get(&output.vertex).map(|node| node.inputs.as_slice()).unwrap_or_default();
            let open: Vec<OutputRef> =
                inputs.iter().map(|input| input.edge).filter(|edge| !walk.outputs.contains_key(edge)).collect();
            if open.is_empty() {
                let nodes = self.export_one(output, &mut walk).unwrap_or_default();
                walk.outputs.insert(output, nodes);
                stack.pop();
            } else {
                stack.extend(open);
            }
        }
        let root = walk.outputs.get(&start).and_then(|nodes| nodes.last().copied());
        let mut stores = vec![StoreId::MAIN];
        stores.extend(&state.stores);
        Ok(Skeleton { nodes: walk.nodes, root, stores })
    }

    fn export_one(&self, output: OutputRef, walk: &mut Walk<R>) -> Option<Vec<usize>> {
        let node = self.nodes.get(&output.vertex)?;
        let map = node.cache_map()?;
        if map.life == KeyLife::Run {
            return None;
        }
        let digest = node.output_key(output.index)?.0;
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for (input, dep) in node.inputs.iter().zip(&map.deps) {
            let mut links: Vec<ExportLink> = Vec::new();
            let nodes = walk.outputs.get(&input.edge).into_iter().flatten();
            links.extend(nodes.map(|at| ExportLink { selector: dep.selector, node: *at }));
            if let Some(known) = content_known(&input.content) {
                let nodes = &mut walk.nodes;
                let at = *walk.contents.entry(known.key.id).or_insert_with(|| add_root(nodes, known.key.id));
                links.push(ExportLink { selector: None, node: at });
            }
            if links.is_empty() {
                return None;
            }
            inputs.push(links);
        }
        let out = node.outputs.get(&output.index);
        let done = out.and_then(|out| out.done());
        let mut keys = stored_keys(out.into_iter().flat_map(|out| out.all_keys()));
        let also: Vec<KeyId> = map.roots(output.index).skip(1).map(OutputKey::root).collect();
        keys.retain(|key| !also.contains(key));
        let mut made: Vec<usize> = also.into_iter().map(|key| add_root(&mut walk.nodes, key)).collect();
        walk.nodes.push(ExportNode {
            digest,
            vertex: Some((node.digest, output.index)),
            inputs,
            result: done.map(|done| done.result.clone()),
            records: done.and_then(|done| done.record.clone()).into_iter().collect(),
            keys,
        });
        made.push(walk.nodes.len() - 1);
        Some(made)
    }
}

fn stored_keys(keys: impl Iterator<Item = super::graph::Key>) -> Vec<KeyId> {
    keys.filter(|key| key.life == KeyLife::Stored).map(|key| key.id).collect()
}

fn add_root<R>(nodes: &mut Vec<ExportNode<R>>, key: KeyId) -> usize {
    let digest: Digest = key.0;
    nodes.push(ExportNode {
        digest,
        vertex: None,
        inputs: Vec::new(),
        result: None,
        records: Vec::new(),
        keys: vec![key],
    });
    nodes.len() - 1
}
