//! From a config to nodes: only what holds together comes out, inputs before what uses them.

use std::collections::{BTreeMap, HashMap, HashSet};

use kiln_oci::{Descriptor, JsonError};
use kiln_stdx::Digest;

use super::format::{CacheConfig, CacheLayer, CacheRecord, NO_TIME};
use super::{CREATED_AT, CacheLink, CacheNode, CacheResult, UNCOMPRESSED};

/// What a config holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParsedCache {
    /// Links point to earlier nodes only.
    pub nodes: Vec<CacheNode>,
    /// How many records, links and results were left out, for a note to the user.
    pub dropped: usize,
}

/// Reads a config; `blobs` are the descriptors that its manifest has.
///
/// # Errors
/// Bytes that are no JSON object.
pub fn parse(config: &[u8], blobs: &BTreeMap<Digest, Descriptor>) -> Result<ParsedCache, JsonError> {
    let config: CacheConfig = serde_json::from_slice(config).map_err(|e| JsonError::new("cache config", e))?;
    Ok(from_config(&config, blobs))
}

/// Reads a config that tells itself what its layers are, as stores without manifests keep it.
///
/// # Errors
/// Bytes that are no JSON object, or that were changed since they were sealed ([`super::seal()`]).
pub fn parse_annotated(config: &[u8]) -> Result<ParsedCache, JsonError> {
    let config: CacheConfig =
        serde_json::from_slice(&super::seal::open(config)?).map_err(|e| JsonError::new("cache config", e))?;
    let blobs = config.layers.iter().filter_map(annotated).map(|blob| (blob.digest, blob)).collect();
    Ok(from_config(&config, &blobs))
}

/// Returns what a layer says that it is; none if it does not say enough.
fn annotated(layer: &CacheLayer) -> Option<Descriptor> {
    let notes = layer.annotations.as_ref()?;
    let diff_id: Digest = notes.diff_id.parse().ok()?;
    let digest = layer.blob.parse().ok()?;
    let mut blob = Descriptor::new(&notes.media_type, digest, u64::try_from(notes.size).ok()?);
    blob.annotations.insert(UNCOMPRESSED.to_owned(), diff_id.to_string());
    if notes.created_at != NO_TIME && !notes.created_at.is_empty() {
        blob.annotations.insert(CREATED_AT.to_owned(), notes.created_at.clone());
    }
    Some(blob)
}

/// Takes what holds together out of `config`.
pub(super) fn from_config(config: &CacheConfig, blobs: &BTreeMap<Digest, Descriptor>) -> ParsedCache {
    let mut dropped = 0;
    let stacks = Stacks::new(config, blobs);
    // Unreadable records stay as holes, so that indexes keep their meaning.
    let mut holes: HashSet<usize> = HashSet::new();
    let mut whole: Vec<CacheNode> = Vec::with_capacity(config.records.len());
    for (index, record) in config.records.iter().enumerate() {
        let node = node(record, config.records.len(), &stacks, &mut dropped);
        if node.is_none() {
            dropped += 1;
            holes.insert(index);
        }
        whole.push(node.unwrap_or(CacheNode { digest: Digest::of(b""), inputs: vec![vec![]], results: vec![] }));
    }
    let mut nodes = Vec::new();
    let mut became: HashMap<usize, usize> = HashMap::new();
    for (index, inputs) in inputs_first(&whole) {
        let slots = |links: Vec<CacheLink>| -> Vec<CacheLink> {
            let known = links.into_iter().filter_map(|l| Some((l.selector, *became.get(&l.node)?)));
            known.map(|(selector, node)| CacheLink { selector, node }).collect()
        };
        let inputs: Vec<Vec<CacheLink>> = inputs.into_iter().map(slots).collect();
        let hole = holes.contains(&index);
        if hole || inputs.iter().any(Vec::is_empty) {
            dropped += usize::from(!hole);
            continue;
        }
        became.insert(index, nodes.len());
        // Moved, as it comes by once: results of deep builds name each layer in very many stacks.
        let results = std::mem::take(&mut whole[index].results);
        nodes.push(CacheNode { digest: whole[index].digest, inputs, results });
    }
    ParsedCache { nodes, dropped }
}

/// Returns every node's index behind those of its sources, with its links less those that close a loop.
///
/// Depth first with a stack of its own: a config can be deeper than any thread's stack.
pub(super) fn inputs_first(nodes: &[CacheNode]) -> Vec<(usize, Vec<Vec<CacheLink>>)> {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        New,
        Open,
        Done,
    }
    let mut state = vec![State::New; nodes.len()];
    let mut order = Vec::with_capacity(nodes.len());
    let mut cut: HashSet<(usize, usize)> = HashSet::new();
    for start in 0..nodes.len() {
        let mut stack: Vec<(usize, Vec<usize>)> = Vec::new();
        let sources = |at: usize| -> Vec<usize> {
            nodes[at].inputs.iter().flatten().map(|l| l.node).filter(|n| *n < nodes.len()).rev().collect()
        };
        if state[start] == State::New {
            state[start] = State::Open;
            stack.push((start, sources(start)));
        }
        while let Some((at, todo)) = stack.last_mut() {
            let at = *at;
            let Some(next) = todo.pop() else {
                state[at] = State::Done;
                order.push(at);
                stack.pop();
                continue;
            };
            match state[next] {
                State::Done => {}
                State::Open => {
                    cut.insert((at, next));
                }
                State::New => {
                    state[next] = State::Open;
                    stack.push((next, sources(next)));
                }
            }
        }
    }
    let links = |at: usize| -> Vec<Vec<CacheLink>> {
        let keep = |l: &&CacheLink| l.node < nodes.len() && !cut.contains(&(at, l.node));
        nodes[at].inputs.iter().map(|links| links.iter().filter(keep).cloned().collect()).collect()
    };
    order.iter().map(|&at| (at, links(at))).collect()
}

fn node(record: &CacheRecord, count: usize, stacks: &Stacks<'_>, dropped: &mut usize) -> Option<CacheNode> {
    let digest = record.digest.parse().ok()?;
    let mut inputs = Vec::new();
    for alternatives in &record.inputs {
        let alternatives = alternatives.as_deref().unwrap_or_default();
        let links: Vec<CacheLink> = alternatives
            .iter()
            .filter_map(|input| {
                let node = usize::try_from(input.link).ok().filter(|n| *n < count)?;
                let selector = match input.selector.as_str() {
                    "" => None,
                    text => Some(text.parse().ok()?),
                };
                Some(CacheLink { selector, node })
            })
            .collect();
        *dropped += alternatives.len() - links.len();
        inputs.push(links);
    }
    let single = record.results.iter().map(|r| (stacks.below(r.layer), &r.created_at));
    let chained = record.chains.iter().map(|r| (stacks.listed(&r.layers), &r.created_at));
    let mut results = Vec::new();
    for (layers, created) in single.chain(chained) {
        match layers.filter(|l| !l.is_empty()) {
            Some(layers) => results.push(CacheResult { layers, created: nanoseconds(created) }),
            None => *dropped += 1,
        }
    }
    Some(CacheNode { digest, inputs, results })
}

/// The layers of a config with their descriptors.
struct Stacks<'a> {
    /// With the index of the one below; none where a blob is not known.
    layers: Vec<Option<(&'a Descriptor, i64)>>,
}

impl<'a> Stacks<'a> {
    fn new(config: &CacheConfig, blobs: &'a BTreeMap<Digest, Descriptor>) -> Self {
        let known = |layer: &CacheLayer| Some((blobs.get(&layer.blob.parse().ok()?)?, layer.parent));
        Self { layers: config.layers.iter().map(known).collect() }
    }

    fn layer(&self, index: i64) -> Option<(&'a Descriptor, i64)> {
        *self.layers.get(usize::try_from(index).ok()?)?
    }

    /// Returns the stack whose top is the layer `index`; none where it loops or lacks a blob.
    fn below(&self, mut index: i64) -> Option<Vec<Descriptor>> {
        let mut stack = Vec::new();
        while index != -1 {
            if stack.len() >= self.layers.len() {
                return None;
            }
            let (descriptor, parent) = self.layer(index)?;
            stack.push(descriptor);
            index = parent;
        }
        Some(stack.into_iter().rev().cloned().collect())
    }

    fn listed(&self, indexes: &[i64]) -> Option<Vec<Descriptor>> {
        indexes.iter().map(|index| Some(self.layer(*index)?.0.clone())).collect()
    }
}

/// Returns nanoseconds since 1970; a text that is no time counts as very old.
pub fn nanoseconds(text: &str) -> i128 {
    text.parse::<jiff::Timestamp>().map_or(i128::MIN, jiff::Timestamp::as_nanosecond)
}
