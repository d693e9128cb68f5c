//! Solves edges of a graph of opaque operations: finds results by their keys, executes what cannot be found, and shares
//! equal work between concurrent jobs. It knows no container and does no I/O of its own.
//!
//! # The rules
//!
//! - A [`Vertex`] is an operation with inputs; an [`Edge`] is one of its outputs. Jobs load vertices and want edges.
//!   What no wanted edge needs is never started; inputs are solved at the same time.
//! - Vertices of equal digest are one vertex, whichever jobs loaded them. One job's end harms no other: calls are called
//!   off only when nobody wants their outcome, and a call that lost its session is made again with another job's.
//! - Keys that follow from definitions come first. If they lead to a record, no input is executed. Only when they lead
//!   nowhere, inputs whose content counts are completed and their contents looked up; only when that leads nowhere too
//!   is the vertex executed. See [`KeyStore`] and the table of key nodes at [`derived`].
//! - Two vertices whose keys turn out equal run once: the second, when it is about to be executed, waits for the first.
//! - What is executed is saved under all keys known for its inputs, also when the build fails later on. What is found in
//!   an imported cache is saved in the main store, with all links that lead to it.
//! - A vertex that ignores the cache is always executed. Vertices made from it are looked up by content only, since by
//!   definition they would be found as they were made from an older result; they are not shared with jobs in which it
//!   does not ignore the cache.
//! - A failure is met by all jobs that want the vertex, and kept for them; a job that comes later tries again.
//! - Results live as long as a job that loaded their vertex. Nothing of a job is left in the solver when it has ended
//!   and what it called off has stopped.
//! - Every execution has a [`MissReason`], found by comparing the key with the one that the step's [`StepSlot`]
//!   remembers.
//!
//! # States of an output
//!
//! ```text
//!              keys that follow          a key a store knows,
//!              from definitions          if there is one               result
//!   Initial ───────────────────► Fast ───────────────────► Slow ─────────────────► Complete
//!                                                            │    load a record        ▲
//!                                                            └─ follow │ execute, save ┘
//! ```
//!
//! A user asks an input for a level, at first for `Fast`, and for more only when it has to.
//!
//! # How it is built
//!
//! `core` is a state machine without clock, I/O or unordered containers: events in, effects out. `drive` turns effects
//! into futures and is the only asynchronous part. `sim` (tests) runs the core with random graphs, jobs and troubles in
//! random order, and compares with a naive evaluator.

mod context;
mod core;
mod drive;
mod error;
mod event;
mod export;
mod job;
mod key;
mod keystore;
mod memory;
mod miss;
mod op;
#[cfg(test)]
mod sim;
mod vertex;

pub use context::{JobContext, JobId, OpContext};
pub use error::{LoadError, SolveError};
pub use event::{CachedBy, EventSink, VertexChange, VertexEvent};
pub use export::{ExportGraph, ExportLink, ExportNode, ExportOptions};
pub use job::{Job, JobSpec, Limits, Origin, Solved, Solver};
pub use key::{KeyId, KeyRecord, Link, LinkFrom, OutputKey, content_key_id, derived};
pub use keystore::{
    Backlink, KeyStore, KeyStoreError, Loaded, RecordId, RecordRef, RecordsFound, Save, StoreId, Target,
};
pub use memory::MemoryKeyStore;
pub use miss::{Difference, Eviction, FieldChange, Gone, MissReason, Part, Renamed, SlotInput, SlotRecord};
pub use op::{CacheMap, DepMap, KeyLife, Op, OpError, OpErrorKind};
pub use vertex::{Bound, CacheUse, Edge, MaxAge, StepSlot, Vertex, VertexDigest, VertexOptions};
