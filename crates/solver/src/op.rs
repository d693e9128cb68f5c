//! Operations: what a vertex does, behind one trait.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use kiln_stdx::{Digest, ErrorClass};

use crate::context::OpContext;
use crate::key::{KeyRecord, OutputKey};
use crate::miss::Difference;

/// How an operation is keyed and run. `R` is what it makes, a cheap handle whose drop releases what it stands for.
///
/// Calls for one vertex may come from several jobs; whatever belongs to a job (sessions, progress) is reached through
/// the [`OpContext`] of the call, never kept in the operation. A call ends soon after `cx.cancel()` fires; the solver
/// starts no second `execute` of a vertex before the first has returned.
#[async_trait]
pub trait Op<R>: Send + Sync {
    /// Returns the operation's own key. May do I/O: resolve a tag, look at a local directory. It is begun on the solver's
    /// own task, so what takes long before the first await belongs on a thread of its own.
    ///
    /// # Errors
    /// The vertex fails with the error.
    async fn cache_map(&self, cx: &OpContext) -> Result<CacheMap, OpError>;

    /// Returns the digest of what the operation sees of input `input`, or `None` if it cannot be known by content.
    /// Called only for inputs whose [`DepMap::content`] is set.
    ///
    /// # Errors
    /// The vertex fails with the error.
    async fn content_key(&self, cx: &OpContext, input: usize, result: &R) -> Result<Option<Digest>, OpError>
    where
        R: Sync,
    {
        let _ = (cx, input, result);
        Ok(None)
    }

    /// Returns what differs between two contents of input `input` (such as the paths of changed files), for the miss
    /// reason. `result` is the input as it is.
    async fn explain(&self, cx: &OpContext, input: usize, old: &Digest, new: &Digest, result: &R) -> Option<Difference>
    where
        R: Sync,
    {
        let _ = (cx, input, old, new, result);
        None
    }

    /// Runs the operation and returns one result for each of its outputs.
    ///
    /// # Errors
    /// The vertex fails with the error, for all jobs that want it.
    async fn execute(&self, cx: &OpContext, inputs: &[R]) -> Result<Vec<R>, OpError>;
}

/// How an operation is cached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMap {
    /// The canonical digest of the operation without its inputs; equal to BuildKit's for equal operations.
    pub digest: Digest,
    /// Other digests that name the same, of an operation without inputs: what is made from its result is found by any of
    /// them, and is kept under all. BuildKit knows an image by its manifest and by its layers, and where the first led to
    /// a result its caches do not tell the second.
    pub also: Vec<Digest>,
    /// The same as named fields.
    pub record: KeyRecord,
    /// One for each input.
    pub deps: Vec<DepMap>,
    /// Whether the digest means anything beyond this run.
    pub life: KeyLife,
}

impl CacheMap {
    /// Returns the keys of an output of an operation without inputs; the first is that of its results.
    pub fn roots(&self, index: u32) -> impl Iterator<Item = OutputKey> + '_ {
        std::iter::once(&self.digest).chain(&self.also).map(move |digest| OutputKey::new(digest, index))
    }
}

/// How long a key is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum KeyLife {
    /// It is stored and looked up.
    #[default]
    Stored,
    /// It names something of this run only (such as a client's directory); neither it nor what is keyed by it alone is
    /// ever stored or looked up. Users of the result may still be found by its content.
    Run,
}

/// How an operation's key depends on one input.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DepMap {
    /// Joined with the input's definition keys, if only a part of the input counts.
    pub selector: Option<Digest>,
    /// Whether `Op::content_key` is to be asked about this input.
    pub content: bool,
}

/// What made an operation fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpErrorKind {
    /// It failed, and would fail for everybody.
    Failed,
    /// It was called off.
    Canceled,
    /// The session it was using ended; with the session of another job that wants the vertex it may succeed.
    SessionLost,
}

/// A failed operation. Cheap to clone, since every job that wants the vertex gets it.
#[derive(Clone)]
pub struct OpError {
    kind: OpErrorKind,
    class: ErrorClass,
    source: Arc<dyn std::error::Error + Send + Sync>,
}

impl OpError {
    /// Wraps the error of an operation that failed.
    pub fn new(class: ErrorClass, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { kind: OpErrorKind::Failed, class, source: Arc::from(source.into()) }
    }

    /// Says that the operation ended because it was called off.
    pub fn canceled() -> Self {
        Self { kind: OpErrorKind::Canceled, class: ErrorClass::Canceled, source: Arc::from(Canceled) }
    }

    /// Wraps the error of an operation whose session ended.
    pub fn session_lost(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { kind: OpErrorKind::SessionLost, class: ErrorClass::Remote, source: Arc::from(source.into()) }
    }

    /// Returns what made it fail.
    pub fn kind(&self) -> OpErrorKind {
        self.kind
    }

    /// Returns who has to act.
    pub fn class(&self) -> ErrorClass {
        self.class
    }

    /// Returns the error of the operation, to be downcast.
    pub fn source(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        &*self.source
    }
}

impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl fmt::Debug for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpError").field("kind", &self.kind).field("source", &self.source).finish()
    }
}

impl std::error::Error for OpError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // The display is the source's own, so the chain goes on below it.
        self.source.source()
    }
}

/// The text of an operation that was called off.
#[derive(Debug, thiserror::Error)]
#[error("canceled")]
struct Canceled;
