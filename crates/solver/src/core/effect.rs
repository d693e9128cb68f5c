//! What the core asks for.

use std::sync::Arc;

use kiln_stdx::Digest;

use super::graph::{TaskId, Ticket, VertexId};
use crate::context::JobId;
use crate::error::SolveError;
use crate::event::VertexChange;
use crate::job::Solved;
use crate::key::{KeyId, LinkFrom, OutputKey};
use crate::keystore::{RecordRef, StoreId};
use crate::miss::{Gone, MissReason, SlotRecord};
use crate::vertex::{MaxAge, StepSlot, VertexDigest};

/// Something to be done outside. Effects with a task are answered by an event; the others are not.
pub(crate) enum Effect<R, O> {
    /// Ask an operation for its key.
    CacheMap { task: TaskId, vertex: VertexId, op: O },
    /// Ask an operation for the content digest of an input.
    ContentKey { task: TaskId, vertex: VertexId, op: O, input: usize, result: R },
    /// Follow links in these stores.
    Query { task: TaskId, stores: Vec<StoreId>, asks: Vec<LinkFrom> },
    /// Find records in these stores.
    Records { task: TaskId, stores: Vec<StoreId>, keys: Vec<KeyId>, max_age: Option<MaxAge> },
    /// Load a record.
    Load { task: TaskId, vertex: VertexId, record: RecordRef },
    /// Read the first of these slots that remembers anything.
    Recall { task: TaskId, slots: Vec<StepSlot> },
    /// Ask an operation what differs between two contents of an input.
    Explain { task: TaskId, vertex: VertexId, op: O, input: usize, old: Digest, new: Digest, result: R },
    /// Run an operation.
    Execute { task: TaskId, vertex: VertexId, op: O, inputs: Vec<R>, miss: Arc<MissReason> },
    /// Save a result with its links in the main store; `loaded` if it was the result of a record of another one.
    Save { task: TaskId, key: KeyId, op: OutputKey, links: Vec<LinkFrom>, result: R, loaded: Option<RecordRef> },
    /// Save links only.
    Link { key: KeyId, op: OutputKey, links: Vec<LinkFrom> },
    /// Call a task off. It is still answered.
    Abort { task: TaskId },
    /// Remove a record.
    Forget { record: RecordRef, why: Gone },
    /// Let a slot remember.
    Remember { slot: StepSlot, record: SlotRecord },
    /// Tell a job about a vertex.
    Report { job: JobId, vertex: VertexDigest, what: VertexChange },
    /// Answer a wish.
    Reply { job: JobId, ticket: Ticket, outcome: Result<Solved<R>, SolveError> },
    /// The jobs that want a vertex are these from here on.
    Wanted { vertex: VertexId, digest: VertexDigest, jobs: Vec<JobId> },
    /// A vertex has left the graph.
    Dropped { vertex: VertexId },
    /// A job has left the graph.
    Closed { job: JobId },
}
