//! From nodes to a config: loops cut, equal keys merged, useless ones left out, everything in a fixed order.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use kiln_oci::Descriptor;
use kiln_stdx::{Digest, StableHasher};

use super::format::{CacheConfig, CacheInput, CacheLayer, CacheRecord, LayerAnnotations, LayerResult, NO_TIME};
use super::{CREATED_AT, CacheLink, CacheNode, CacheResult, UNCOMPRESSED};
use crate::image_config::format_nanoseconds;

/// Returns the config of `nodes` and the blobs that it names, in the order of its layers without repetition.
///
/// Equal sets of nodes give equal bytes, whatever their order.
pub fn build(nodes: &[CacheNode]) -> (CacheConfig, Vec<Descriptor>) {
    let merged = merge(nodes);
    let used = useful(&merged);
    let mut layers = Layers::default();
    let mut order: Vec<usize> = (0..merged.len()).filter(|i| used[*i]).collect();
    let ids = stable_ids(&merged);
    order.sort_by(|a, b| {
        let key = |i: &usize| (merged[*i].digest, merged[*i].inputs.len(), ids[*i]);
        key(a).cmp(&key(b))
    });
    let place: HashMap<usize, usize> = order.iter().enumerate().map(|(to, from)| (*from, to)).collect();
    for &index in &order {
        if let Some(result) = best(&merged[index].results) {
            layers.note(&result.layers);
        }
    }
    let (layer_list, blobs, layer_index) = layers.finish();
    let records = order.iter().map(|&index| record(&merged[index], &place, &layer_index)).collect();
    (CacheConfig { layers: layer_list, records }, blobs)
}

/// Returns the config of `nodes` for stores without manifests: it tells itself what its layers are.
pub fn build_annotated(nodes: &[CacheNode]) -> (CacheConfig, Vec<Descriptor>) {
    let (mut config, blobs) = build(nodes);
    let by_digest: HashMap<String, &Descriptor> = blobs.iter().map(|blob| (blob.digest.to_string(), blob)).collect();
    for layer in &mut config.layers {
        layer.annotations = by_digest.get(&layer.blob).map(|blob| annotations(blob));
    }
    (config, blobs)
}

fn annotations(blob: &Descriptor) -> LayerAnnotations {
    let mut plain = blob.clone();
    crate::layer_media::convert(&mut plain, true, true);
    let note = |name: &str| blob.annotations.get(name).cloned();
    LayerAnnotations {
        media_type: plain.media_type,
        diff_id: note(UNCOMPRESSED).unwrap_or_default(),
        size: i64::try_from(blob.size).unwrap_or(i64::MAX),
        created_at: note(CREATED_AT).unwrap_or_else(|| NO_TIME.to_owned()),
    }
}

/// A node after merging; alternatives are sets.
struct Merged {
    digest: Digest,
    inputs: Vec<BTreeSet<CacheLink>>,
    results: Vec<CacheResult>,
}

/// Merges nodes of one digest that share a source for every input, as BuildKit does. Nodes come out inputs first.
fn merge(nodes: &[CacheNode]) -> Vec<Merged> {
    let mut merged: Vec<Merged> = Vec::new();
    let mut by_digest: HashMap<Digest, Vec<usize>> = HashMap::new();
    let mut became: HashMap<usize, usize> = HashMap::new();
    for (index, inputs) in super::parse::inputs_first(nodes) {
        let node = &nodes[index];
        let translate = |links: Vec<CacheLink>| -> BTreeSet<CacheLink> {
            let known = links.into_iter().filter_map(|l| Some((l.selector, *became.get(&l.node)?)));
            known.map(|(selector, node)| CacheLink { selector, node }).collect()
        };
        let inputs: Vec<BTreeSet<CacheLink>> = inputs.into_iter().map(translate).collect();
        if inputs.iter().any(BTreeSet::is_empty) {
            continue;
        }
        let same = |at: &&usize| {
            let other = &merged[**at].inputs;
            other.len() == inputs.len() && other.iter().zip(&inputs).all(|(a, b)| !a.is_disjoint(b))
        };
        let twin = by_digest.get(&node.digest).and_then(|places| places.iter().find(same).copied());
        let at = match twin {
            None => {
                by_digest.entry(node.digest).or_default().push(merged.len());
                merged.push(Merged { digest: node.digest, inputs, results: node.results.clone() });
                merged.len() - 1
            }
            Some(at) => {
                for (slot, links) in inputs.into_iter().enumerate() {
                    // A source that itself builds on the twin would close a loop.
                    let safe: Vec<CacheLink> = links.into_iter().filter(|l| !reaches(&merged, l.node, at)).collect();
                    merged[at].inputs[slot].extend(safe);
                }
                merged[at].results.extend(node.results.iter().cloned());
                at
            }
        };
        became.insert(index, at);
    }
    merged
}

/// Tells whether `from` is `to` or has it among its sources.
fn reaches(merged: &[Merged], from: usize, to: usize) -> bool {
    let mut seen = BTreeSet::new();
    let mut work = vec![from];
    while let Some(at) = work.pop() {
        if at == to {
            return true;
        }
        if seen.insert(at) {
            work.extend(merged[at].inputs.iter().flatten().map(|l| l.node));
        }
    }
    false
}

/// Tells of each node whether it has a result or leads to one.
fn useful(merged: &[Merged]) -> Vec<bool> {
    let mut used = vec![false; merged.len()];
    let has_result = |node: &Merged| node.results.iter().any(|r| !r.layers.is_empty());
    let mut work: Vec<usize> = (0..merged.len()).filter(|i| has_result(&merged[*i])).collect();
    while let Some(at) = work.pop() {
        if !std::mem::replace(&mut used[at], true) {
            work.extend(merged[at].inputs.iter().flatten().map(|l| l.node));
        }
    }
    used
}

/// Returns identities that do not depend on the order of the nodes.
fn stable_ids(merged: &[Merged]) -> Vec<Digest> {
    let mut ids: Vec<Option<Digest>> = vec![None; merged.len()];
    for start in 0..merged.len() {
        let mut stack = vec![start];
        while let Some(&at) = stack.last() {
            let waiting = merged[at].inputs.iter().flatten().map(|l| l.node).find(|n| ids[*n].is_none());
            if let (Some(next), None) = (waiting, ids[at]) {
                stack.push(next);
                continue;
            }
            stack.pop();
            if ids[at].is_none() {
                ids[at] = Some(stable_id(&merged[at], &ids));
            }
        }
    }
    ids.into_iter().flatten().collect()
}

fn stable_id(node: &Merged, ids: &[Option<Digest>]) -> Digest {
    let mut hasher = StableHasher::new("kiln.cacheconfig.node.v1").digest("digest", &node.digest);
    for (slot, links) in node.inputs.iter().enumerate() {
        hasher = hasher.u64("input", slot as u64);
        let sources: BTreeSet<(Option<Digest>, Option<Digest>)> =
            links.iter().map(|l| (l.selector, ids[l.node])).collect();
        for (selector, source) in sources {
            hasher = hasher.str("selector", &selector.map(|s| s.to_string()).unwrap_or_default());
            hasher = hasher.str("source", &source.map(|s| s.to_string()).unwrap_or_default());
        }
    }
    hasher.finish()
}

/// Returns the newest result; of equally new ones that with the least digests, so that the choice does not vary.
fn best(results: &[CacheResult]) -> Option<&CacheResult> {
    let digests = |r: &CacheResult| r.layers.iter().map(|l| l.digest).collect::<Vec<_>>();
    let usable = results.iter().filter(|r| !r.layers.is_empty());
    usable.min_by_key(|r| (std::cmp::Reverse(r.created), digests(r)))
}

/// All layers that results name; a layer is identified by the blobs up to and with it.
#[derive(Default)]
struct Layers {
    chains: BTreeMap<Vec<Digest>, Descriptor>,
}

type LayerIndex = HashMap<Vec<Digest>, usize>;

impl Layers {
    fn note(&mut self, layers: &[Descriptor]) {
        let digests: Vec<Digest> = layers.iter().map(|l| l.digest).collect();
        for length in (1..=layers.len()).rev() {
            // What is below a known one is known, too.
            let Entry::Vacant(free) = self.chains.entry(digests[..length].to_vec()) else { return };
            free.insert(layers[length - 1].clone());
        }
    }

    fn finish(self) -> (Vec<CacheLayer>, Vec<Descriptor>, LayerIndex) {
        // By blob first, as BuildKit sorts; the chain below makes the order complete.
        let mut chains: Vec<(&Vec<Digest>, &Descriptor)> = self.chains.iter().collect();
        chains.sort_by_key(|(chain, descriptor)| (descriptor.digest, (*chain).clone()));
        let index: LayerIndex = chains.iter().enumerate().map(|(i, (chain, _))| ((*chain).clone(), i)).collect();
        let (mut layers, mut blobs, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (chain, descriptor) in chains {
            let below = &chain[..chain.len() - 1];
            let parent = index.get(below).map_or(-1, |i| i64::try_from(*i).unwrap_or(-1));
            layers.push(CacheLayer { blob: descriptor.digest.to_string(), parent, annotations: None });
            if seen.insert(descriptor.digest) {
                blobs.push(descriptor.clone());
            }
        }
        (layers, blobs, index)
    }
}

fn record(node: &Merged, place: &HashMap<usize, usize>, layers: &LayerIndex) -> CacheRecord {
    let number = |index: usize| i64::try_from(index).unwrap_or(-1);
    let input = |link: &CacheLink| {
        let selector = link.selector.map(|s| s.to_string()).unwrap_or_default();
        Some(CacheInput { selector, link: number(*place.get(&link.node)?) })
    };
    let slot = |links: &BTreeSet<CacheLink>| {
        let mut inputs: Vec<CacheInput> = links.iter().filter_map(input).collect();
        inputs.sort_by(|a, b| (a.link, &a.selector).cmp(&(b.link, &b.selector)));
        Some(inputs)
    };
    let result = best(&node.results).and_then(|result| {
        let chain: Vec<Digest> = result.layers.iter().map(|l| l.digest).collect();
        Some(LayerResult { layer: number(*layers.get(&chain)?), created_at: format_nanoseconds(result.created) })
    });
    CacheRecord {
        results: result.into_iter().collect(),
        chains: Vec::new(),
        digest: node.digest.to_string(),
        inputs: node.inputs.iter().map(slot).collect(),
    }
}
