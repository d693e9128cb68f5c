//! The walk over keys that a remote cache is written from.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_stdx::Digest;

use crate::context::OpContext;
use crate::core::Skeleton;
use crate::key::{KeyId, OutputKey};
use crate::keystore::{Backlink, KeyStore, KeyStoreError, Loaded, RecordRef, StoreId};
use crate::miss::Gone;
use crate::vertex::VertexDigest;

/// What a walk includes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExportOptions {
    /// Also the keys by which earlier builds came to the same nodes; they carry no results.
    pub backlinks: bool,
}

/// A node of an export: what BuildKit's cache config calls a record.
#[derive(Debug, Clone)]
pub struct ExportNode<R> {
    /// The record's digest: an output key, or the key of a content.
    pub digest: Digest,
    /// Whose output it is; none for contents and for what only earlier builds used.
    pub vertex: Option<(VertexDigest, u32)>,
    /// For each input of the operation the nodes it may come from, never empty; nothing for roots and contents.
    pub inputs: Vec<Vec<ExportLink>>,
    /// The result, if this solve has it in hand.
    pub result: Option<R>,
    /// Records of the node, best first, for when there is no result in hand.
    pub records: Vec<RecordRef>,
    /// The ids of the node in the stores.
    pub keys: Vec<KeyId>,
}

/// Where an input of an export node comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExportLink {
    /// What part of the input counts.
    pub selector: Option<Digest>,
    /// Index of a node that stands before this one.
    pub node: usize,
}

/// The keys that lead to an edge; inputs stand before what uses them. Holds results, which live as long as it does.
pub struct ExportGraph<R> {
    /// The nodes.
    pub nodes: Vec<ExportNode<R>>,
    /// The node of the edge itself; none if it cannot be keyed beyond this run.
    pub root: Option<usize>,
    stores: BTreeMap<StoreId, Arc<dyn KeyStore<R>>>,
}

impl<R: Send + Sync + 'static> ExportGraph<R> {
    /// Loads a record of one of the nodes.
    ///
    /// # Errors
    /// The store's error.
    pub async fn load(&self, cx: &OpContext, record: &RecordRef) -> Result<Loaded<R>, KeyStoreError> {
        match self.stores.get(&record.store) {
            Some(store) => store.load(cx, record.key, &record.id).await,
            None => Ok(Loaded::Gone(Gone::Evicted { eviction: None })),
        }
    }
}

impl<R> ExportGraph<R> {
    /// Returns the result of a record of one of the nodes if nothing has to be fetched to name it.
    pub fn at_hand(&self, record: &RecordRef) -> Option<R> {
        self.stores.get(&record.store)?.at_hand(record.key, &record.id)
    }
}

/// Completes a walk with what only the stores know.
pub(crate) async fn finish<R: Send + Sync + 'static>(
    skeleton: Skeleton<R>,
    stores: Vec<(StoreId, Arc<dyn KeyStore<R>>)>,
    options: ExportOptions,
) -> ExportGraph<R> {
    let stores: BTreeMap<_, _> = stores.into_iter().collect();
    let mut nodes = skeleton.nodes;
    for node in nodes.iter_mut().filter(|node| node.vertex.is_some() && node.records.is_empty()) {
        for (id, store) in &stores {
            match store.records(&node.keys).await {
                Ok(found) => {
                    let found = found.records.into_iter();
                    node.records.extend(found.map(|(key, record)| RecordRef { store: *id, key, id: record }));
                }
                Err(error) => tracing::warn!(%error, "cache records were not read"),
            }
        }
    }
    let root = skeleton.root;
    let graph = ExportGraph { nodes, root, stores };
    if options.backlinks { Backwalk::new(graph).walk().await } else { graph }
}

/// A walk from the nodes of this build to the roots by which earlier builds came to them.
struct Backwalk<R> {
    graph: ExportGraph<R>,
    /// The nodes that stand for a key; none while the key is being walked, or when it leads to no root.
    known: BTreeMap<KeyId, Vec<usize>>,
    /// Nodes of the graph before which the found ones have to stand.
    found: Vec<ExportNode<R>>,
}

/// What is known of a key on the way.
struct Frame {
    key: KeyId,
    links: Vec<Backlink>,
    next: usize,
}

impl<R: Send + Sync + 'static> Backwalk<R> {
    fn new(graph: ExportGraph<R>) -> Self {
        Self { graph, known: BTreeMap::new(), found: Vec::new() }
    }

    async fn walk(mut self) -> ExportGraph<R> {
        // Nodes found on the way are put in front, so what points to nodes of this build is not followed: those are
        // exported anyway, by their own links.
        let own: Vec<KeyId> = self.graph.nodes.iter().flat_map(|node| node.keys.iter().copied()).collect();
        for key in own {
            self.walk_key(key).await;
        }
        self.attach()
    }

    /// Visits a key and all that lead to it, with a stack of its own; a key met again on its own way leads nowhere.
    async fn walk_key(&mut self, start: KeyId) {
        let mut stack = Vec::new();
        self.enter(start, &mut stack).await;
        while let Some(frame) = stack.last_mut() {
            match frame.links.get(frame.next) {
                Some(link) => {
                    frame.next += 1;
                    let from = link.from;
                    if !self.known.contains_key(&from) {
                        self.enter(from, &mut stack).await;
                    }
                }
                None => {
                    let Some(frame) = stack.pop() else { break };
                    let nodes = self.leave(&frame);
                    self.known.insert(frame.key, nodes);
                }
            }
        }
    }

    async fn enter(&mut self, key: KeyId, stack: &mut Vec<Frame>) {
        if self.known.contains_key(&key) {
            return;
        }
        self.known.insert(key, Vec::new());
        let mut links = Vec::new();
        for store in self.graph.stores.values() {
            match store.backlinks(key).await {
                Ok(found) => links.extend(found),
                Err(error) => tracing::warn!(%error, "cache links were not read"),
            }
        }
        links.sort_unstable();
        links.dedup();
        stack.push(Frame { key, links, next: 0 });
    }

    /// Makes the nodes of a key: one for each operation whose inputs all lead to a root.
    fn leave(&mut self, frame: &Frame) -> Vec<usize> {
        if frame.links.is_empty() {
            return vec![self.add(frame.key.0, Vec::new(), frame.key)];
        }
        let mut by_op: BTreeMap<OutputKey, Vec<Vec<ExportLink>>> = BTreeMap::new();
        for back in &frame.links {
            let inputs = by_op.entry(back.link.op).or_default();
            let at = back.link.input as usize;
            if inputs.len() <= at {
                inputs.resize(at + 1, Vec::new());
            }
            let from = self.known.get(&back.from).cloned().unwrap_or_default();
            inputs[at].extend(from.into_iter().map(|node| ExportLink { selector: back.link.selector, node }));
        }
        let whole = by_op.into_iter().filter(|(_, inputs)| inputs.iter().all(|links| !links.is_empty()));
        let whole: Vec<_> = whole.collect();
        whole.into_iter().map(|(op, inputs)| self.add(op.0, inputs, frame.key)).collect()
    }

    fn add(&mut self, digest: Digest, inputs: Vec<Vec<ExportLink>>, key: KeyId) -> usize {
        self.found.push(ExportNode {
            digest,
            vertex: None,
            inputs,
            result: None,
            records: Vec::new(),
            keys: vec![key],
        });
        self.found.len() - 1
    }

    /// Puts the found nodes in front of those of this build, and links each of these from the found nodes that lead to
    /// its keys.
    fn attach(mut self) -> ExportGraph<R> {
        let offset = self.found.len();
        for node in &mut self.graph.nodes {
            for links in &mut node.inputs {
                for link in links.iter_mut() {
                    link.node += offset;
                }
            }
            for at in node.keys.iter().filter_map(|key| self.known.get(key)).flatten() {
                let other = &self.found[*at];
                if other.digest != node.digest || other.inputs.len() != node.inputs.len() {
                    continue;
                }
                for (links, more) in node.inputs.iter_mut().zip(&other.inputs) {
                    links.extend(more);
                    links.sort_unstable();
                    links.dedup();
                }
            }
        }
        let mut graph = self.graph;
        graph.root = graph.root.map(|root| root + offset);
        self.found.append(&mut graph.nodes);
        graph.nodes = self.found;
        graph
    }
}
