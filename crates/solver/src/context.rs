//! What an operation is told about the call it serves.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::miss::MissReason;
use crate::vertex::VertexDigest;

/// Names a job of one solver; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the owner of a job gives along for the operations that serve it: its session, its progress sink.
pub type JobContext = Arc<dyn Any + Send + Sync>;

/// The jobs that want a vertex, kept up to date while calls for it run.
pub(crate) struct WantedBy {
    jobs: RwLock<BTreeMap<JobId, JobContext>>,
    changed: Notify,
}

impl WantedBy {
    pub(crate) fn new() -> Self {
        Self { jobs: RwLock::new(BTreeMap::new()), changed: Notify::new() }
    }

    pub(crate) fn set(&self, jobs: BTreeMap<JobId, JobContext>) {
        *self.jobs.write() = jobs;
        self.changed.notify_waiters();
    }
}

/// Goes with every call of an operation.
#[derive(Clone)]
pub struct OpContext {
    pub(crate) vertex: VertexDigest,
    pub(crate) cancel: CancellationToken,
    pub(crate) wanted: Arc<WantedBy>,
    pub(crate) miss: Option<Arc<MissReason>>,
}

impl OpContext {
    /// Returns a context outside any solve, for calling an operation directly (tests, one-off calls).
    pub fn detached(vertex: VertexDigest, jobs: impl IntoIterator<Item = (JobId, JobContext)>) -> Self {
        let wanted = WantedBy::new();
        wanted.set(jobs.into_iter().collect());
        Self { vertex, cancel: CancellationToken::new(), wanted: Arc::new(wanted), miss: None }
    }

    /// Returns the vertex that the call is for.
    pub fn vertex(&self) -> VertexDigest {
        self.vertex
    }

    /// Fires when nobody wants the outcome of the call any more.
    pub fn cancel(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Returns the jobs that want the vertex at this moment, oldest first.
    pub fn jobs(&self) -> Vec<JobId> {
        self.wanted.jobs.read().keys().copied().collect()
    }

    /// Returns the contexts of the jobs that want the vertex at this moment, oldest first, as far as they are a `T`.
    pub fn contexts<T: Any + Send + Sync>(&self) -> Vec<Arc<T>> {
        self.wanted.jobs.read().values().filter_map(|cx| cx.clone().downcast::<T>().ok()).collect()
    }

    /// Returns a future that ends when, from this call on, a job begins or ceases to want the vertex.
    pub fn changed(&self) -> impl Future<Output = ()> + Send + '_ {
        self.wanted.changed.notified()
    }

    /// Returns why the vertex is executed rather than loaded; set for `execute` only.
    pub fn miss(&self) -> Option<&Arc<MissReason>> {
        self.miss.as_ref()
    }
}
