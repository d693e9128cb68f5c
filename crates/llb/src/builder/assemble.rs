//! The arena to a definition: reachable nodes in order, metadata merged by digest, source maps collected.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use kiln_stdx::Digest;
use prost::Message;

use super::{Body, Builder, Node, Output, SourceMapId, encode};
use crate::caps::id;
use crate::definition::Definition;
use crate::error::LlbError;
use crate::pb;

impl Builder {
    /// Returns the definition whose result is `output`; empty for the empty file system.
    ///
    /// The same calls give the same bytes.
    ///
    /// # Errors
    /// More operations than a definition may have.
    pub fn definition(&self, output: Output) -> Result<Definition, LlbError> {
        let Some((head, index)) = output.0 else { return Ok(Definition::default()) };
        if self.nodes.len() > kiln_stdx::limits::LLB_OPS {
            return Err(LlbError::TooMany);
        }
        let order = self.order(head as usize);
        let encoded = self.encode_nodes(&order);
        let mut out = Definition::default();
        let mut maps = MapCollector::default();
        let mut seen = HashSet::new();
        for &i in &order {
            let (digest, bytes) = &encoded[&i];
            let node = &self.nodes[i];
            merge_metadata(out.metadata.entry(digest.to_string()).or_default(), &metadata(node));
            maps.add(self, digest, node);
            if seen.insert(*digest) {
                out.ops.push(bytes.clone());
            }
        }
        let input = encode::input(&encoded[&(head as usize)].0, index);
        let last: Bytes = pb::Op { inputs: vec![input], ..pb::Op::default() }.encode_to_vec().into();
        let caps = envelope_caps(out.metadata.values());
        out.metadata.insert(Digest::of(&last).to_string(), pb::OpMetadata { caps, ..pb::OpMetadata::default() });
        out.ops.push(last);
        out.source = Some(maps.finish(self));
        Ok(out)
    }

    /// Returns the reachable nodes, each after its inputs, first inputs first. No recursion: chains may be long.
    fn order(&self, head: usize) -> Vec<usize> {
        let mut done = HashSet::new();
        let mut order = Vec::new();
        let mut stack = vec![(head, self.inputs(head), 0)];
        while let Some((node, inputs, next)) = stack.pop() {
            if done.contains(&node) {
                continue;
            }
            match inputs.get(next).copied() {
                Some(input) => {
                    stack.push((node, inputs, next + 1));
                    if let Some(i) = input.node().filter(|i| !done.contains(i)) {
                        stack.push((i, self.inputs(i), 0));
                    }
                }
                None => {
                    done.insert(node);
                    order.push(node);
                }
            }
        }
        order
    }

    /// Returns the inputs in the order in which BuildKit's client visits them.
    fn inputs(&self, node: usize) -> Vec<Output> {
        match &self.nodes[node].body {
            Body::Source { .. } => Vec::new(),
            Body::Exec(exec) => exec.mounts.iter().map(super::ExecMount::input).collect(),
            Body::File { base, actions } => {
                let copies = actions.list.iter().rev().filter_map(|a| match a {
                    super::file::Action::Copy { from, .. } => Some(*from),
                    _ => None,
                });
                std::iter::once(*base).chain(copies).collect()
            }
            Body::Merge(list) => list.clone(),
            Body::Diff { lower, upper } => vec![*lower, *upper],
            Body::Passthrough { inputs, .. } => inputs.iter().map(|(o, _)| *o).collect(),
            Body::Raw { inputs, .. } => inputs.clone(),
        }
    }

    fn encode_nodes(&self, order: &[usize]) -> HashMap<usize, (Digest, Bytes)> {
        let mut encoded: HashMap<usize, (Digest, Bytes)> = HashMap::with_capacity(order.len());
        for &i in order {
            let digests = |output: Output| {
                let (node, index) = output.0?;
                encoded.get(&(node as usize)).map(|(digest, _)| encode::input(digest, index))
            };
            let entry = match &self.nodes[i].body {
                Body::Raw { digest, bytes, .. } => (*digest, bytes.clone()),
                _ => {
                    let bytes = crate::encode_op(self.operation(&self.nodes[i], &digests));
                    (Digest::of(&bytes), bytes)
                }
            };
            encoded.insert(i, entry);
        }
        encoded
    }
}

fn metadata(node: &Node) -> pb::OpMetadata {
    let mut out = match &node.body {
        Body::Raw { metadata, .. } => metadata.as_ref().clone(),
        Body::Source { identifier, attrs } => {
            let mut out = pb::OpMetadata::default();
            let is_local = identifier.starts_with(crate::attr::scheme::LOCAL);
            if is_local && !attrs.contains_key(crate::attr::LOCAL_SESSION) {
                out.caps.insert(id::SOURCE_LOCAL_UNIQUE.into(), true);
            }
            out
        }
        _ => pb::OpMetadata::default(),
    };
    let meta = &node.meta;
    let own = pb::OpMetadata {
        ignore_cache: meta.ignore_cache,
        description: meta.description.clone(),
        export_cache: meta.export_cache.map(|value| pb::ExportCache { value }),
        caps: node
            .caps
            .iter()
            .map(|c| ((*c).to_owned(), true))
            .chain(meta.caps.iter().map(|c| (c.clone(), true)))
            .collect(),
        progress_group: meta.progress_group.clone(),
        linux_resources: meta.linux_resources.clone(),
    };
    merge_metadata(&mut out, &own);
    out
}

fn merge_metadata(into: &mut pb::OpMetadata, from: &pb::OpMetadata) {
    into.ignore_cache |= from.ignore_cache;
    into.description.extend(from.description.clone());
    into.caps.extend(from.caps.clone());
    if from.export_cache.is_some() {
        into.export_cache = from.export_cache;
    }
    if from.progress_group.is_some() {
        into.progress_group.clone_from(&from.progress_group);
    }
    if from.linux_resources.is_some() {
        into.linux_resources.clone_from(&from.linux_resources);
    }
}

/// What the whole definition needs of an engine is said at its last entry.
fn envelope_caps<'a>(all: impl Iterator<Item = &'a pb::OpMetadata>) -> BTreeMap<String, bool> {
    let mut caps = BTreeMap::from([(id::CONSTRAINTS.to_owned(), true), (id::PLATFORM.to_owned(), true)]);
    for metadata in all {
        for (needed, cap) in [
            (metadata.ignore_cache, id::META_IGNORE_CACHE),
            (!metadata.description.is_empty(), id::META_DESCRIPTION),
            (metadata.export_cache.is_some(), id::META_EXPORT_CACHE),
        ] {
            if needed {
                caps.insert(cap.to_owned(), true);
            }
        }
    }
    caps
}

/// Numbers the source maps that are used, in order of first use; equal ones are one.
#[derive(Default)]
struct MapCollector {
    used: Vec<SourceMapId>,
    index: HashMap<SourceMapId, i32>,
    locations: BTreeMap<String, pb::Locations>,
}

impl MapCollector {
    fn add(&mut self, builder: &Builder, digest: &Digest, node: &Node) {
        let mut list = Vec::new();
        for (map, ranges) in &node.meta.locations {
            let Some(wanted) = builder.maps.get(map.0) else { continue };
            let source_index = *self.index.entry(*map).or_insert_with(|| {
                let same = self.used.iter().position(|u| builder.maps.get(u.0) == Some(wanted));
                let at = same.unwrap_or_else(|| {
                    self.used.push(*map);
                    self.used.len() - 1
                });
                i32::try_from(at).unwrap_or(i32::MAX)
            });
            list.push(pb::Location { source_index, ranges: ranges.clone() });
        }
        self.locations.entry(digest.to_string()).or_default().locations.extend(list);
    }

    fn finish(self, builder: &Builder) -> pb::Source {
        let infos = self.used.iter().filter_map(|m| builder.maps.get(m.0)).map(super::SourceMap::to_info).collect();
        pb::Source { locations: self.locations, infos }
    }
}
