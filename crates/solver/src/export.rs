//! The walk over keys that a remote cache is written from.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_stdx::Digest;

use crate::key::KeyId;
use crate::keystore::{KeyStore, RecordRef, StoreId};
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

/// The keys that lead to an edge; inputs stand before what uses them.
pub struct ExportGraph<R> {
    /// The nodes.
    pub nodes: Vec<ExportNode<R>>,
    /// The node of the edge itself; none if it cannot be keyed beyond this run.
    pub root: Option<usize>,
    pub(crate) stores: BTreeMap<StoreId, Arc<dyn KeyStore<R>>>,
}
