//! What the owner of a job is told while it is solved.

use std::sync::Arc;

use crate::miss::MissReason;
use crate::op::OpError;
use crate::vertex::VertexDigest;

/// Something happened to a vertex that a job wants.
#[derive(Debug, Clone)]
pub struct VertexEvent {
    /// The vertex, by the digest the job knows it by.
    pub vertex: VertexDigest,
    /// What happened.
    pub what: VertexChange,
}

/// What happened to a vertex. For one job and vertex: `Resolving?`, then `Cached` or `Started` with one of `Completed`,
/// `Failed` or `Canceled`; all of it again if the result is needed anew.
#[derive(Debug, Clone)]
pub enum VertexChange {
    /// The key of a vertex without inputs is being found out, which may do I/O.
    Resolving,
    /// It is executed (perhaps on behalf of another job, perhaps since a while ago).
    Started {
        /// Why.
        miss: Arc<MissReason>,
    },
    /// Its execution succeeded.
    Completed,
    /// It need not be executed.
    Cached(CachedBy),
    /// It failed. Vertices that only failed because an input did get no event.
    Failed(OpError),
    /// It was started or failed to be, and this job does not want it any more.
    Canceled,
}

/// Why a vertex need not be executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CachedBy {
    /// Its result was loaded.
    Record,
    /// Its result was there already, made for another job or by a vertex of the same key.
    Shared,
    /// Its result is not needed, since what is made from it was found.
    Covered,
}

/// Gets the events of one job, in order, from the solver's own task: it must not block. Events of a vertex come before
/// the calls of its operation that they announce.
pub trait EventSink: Send + Sync {
    /// Takes one event.
    fn event(&self, event: VertexEvent);
}

impl<F: Fn(VertexEvent) + Send + Sync> EventSink for F {
    fn event(&self, event: VertexEvent) {
        self(event);
    }
}
