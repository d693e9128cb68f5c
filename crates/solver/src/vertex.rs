//! The nodes of the graph that is solved, as callers hand them in.

use std::fmt;
use std::sync::Arc;

use kiln_stdx::Digest;
use serde::{Deserialize, Serialize};

use crate::op::Op;

/// Names one node of a build graph: the digest of its definition with all its inputs.
///
/// Invariant: equal digests mean equal work, so vertices of concurrent jobs with one digest are one vertex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VertexDigest(pub Digest);

impl fmt::Display for VertexDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One output of a vertex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Edge {
    /// The vertex.
    pub vertex: VertexDigest,
    /// Which of its outputs, counted from 0.
    pub index: u32,
}

/// Names a step across builds (context, file, target, platform, stage, ordinal), so that a miss can be compared with
/// what the same step was last time. Opaque to the solver.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StepSlot(pub String);

/// Whether a vertex may take results from the cache. Either way its result is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum CacheUse {
    /// Look up and load.
    #[default]
    Use,
    /// Neither look up nor load (`--no-cache`).
    Ignore,
}

/// A bound on the age of results that a vertex may take from the cache. What is made meanwhile is saved as ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MaxAge {
    /// The bound, in seconds; for the reason that is told.
    pub seconds: u64,
    /// Results that were made before this are too old, in nanoseconds since 1970.
    pub not_before: u64,
}

/// Whether an execution takes one of the solver's execution slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Bound {
    /// Takes a slot, so at most `Limits::executions` of these run at once.
    #[default]
    Limited,
    /// Takes none. For operations that wait for other solves, which would starve if they held a slot.
    Unlimited,
}

/// What is not part of a vertex's identity.
#[derive(Debug, Clone, Default)]
pub struct VertexOptions {
    /// Whether the cache is used.
    pub cache: CacheUse,
    /// How old what is taken from the cache may be. What builds on such a vertex is looked up only when it is known whether
    /// this one has to run.
    pub max_age: Option<MaxAge>,
    /// The slot that remembers the step's last key.
    pub slot: Option<StepSlot>,
    /// Whether an execution takes a slot.
    pub bound: Bound,
}

/// A node of a build graph.
pub struct Vertex<R> {
    /// Its identity.
    pub digest: VertexDigest,
    /// Edges it needs, in the order in which `Op::execute` gets their results.
    pub inputs: Vec<Edge>,
    /// How it is keyed and run.
    pub op: Arc<dyn Op<R>>,
    /// For messages; two jobs may name one vertex differently.
    pub name: String,
    /// What does not change its identity.
    pub options: VertexOptions,
}

impl<R> Clone for Vertex<R> {
    fn clone(&self) -> Self {
        Self {
            digest: self.digest,
            inputs: self.inputs.clone(),
            op: self.op.clone(),
            name: self.name.clone(),
            options: self.options.clone(),
        }
    }
}
