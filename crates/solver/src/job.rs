//! The handles callers hold: a [`Solver`], its [`Job`]s, and what a job is answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::context::{JobContext, JobId};
use crate::drive;
use crate::error::{LoadError, SolveError};
use crate::event::EventSink;
use crate::export::{ExportGraph, ExportOptions};
use crate::key::KeyId;
use crate::keystore::{KeyStore, RecordRef};
use crate::vertex::{Edge, Vertex};

/// How many commands may wait for the solver's task before senders wait.
const COMMANDS: usize = 64;

/// What a solver keeps within.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How many executions of [`Bound::Limited`](crate::Bound::Limited) vertices run at once.
    pub executions: usize,
    /// How long a call of an operation may go on after it was called off, before its future is dropped.
    pub grace: std::time::Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { executions: 64, grace: std::time::Duration::from_secs(10) }
    }
}

/// What a job starts with.
pub struct JobSpec<R> {
    /// Handed to the operations that serve the job.
    pub context: JobContext,
    /// Gets the job's events.
    pub events: Arc<dyn EventSink>,
    /// Imported caches, asked in order after the main store.
    pub imports: Vec<Arc<dyn KeyStore<R>>>,
    /// Takes no result that another job has, nor what was made of one, for a build that found such a result to be of no
    /// use. What others are at when it needs that, it waits for like any job.
    pub apart: bool,
}

/// A solved edge.
#[derive(Debug, Clone)]
pub struct Solved<R> {
    /// The edge.
    pub edge: Edge,
    /// Its result.
    pub result: R,
    /// Where the result comes from.
    pub origin: Origin,
    /// The key nodes of the result.
    pub keys: Vec<KeyId>,
    /// The record of the result, if there is one.
    pub record: Option<RecordRef>,
}

/// Where a result comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Its vertex was executed.
    Executed,
    /// A record was loaded.
    Loaded,
    /// A vertex of the same key made it.
    Shared,
}

/// Commands to the solver's task.
pub(crate) enum Command<R> {
    Open {
        job: JobId,
        spec: JobSpec<R>,
        token: CancellationToken,
        closed: oneshot::Sender<()>,
    },
    AddImport {
        job: JobId,
        store: Arc<dyn KeyStore<R>>,
    },
    Load {
        job: JobId,
        vertices: Vec<Vertex<R>>,
        reply: oneshot::Sender<Result<(), LoadError>>,
    },
    Build {
        job: JobId,
        edge: Edge,
        token: CancellationToken,
        reply: oneshot::Sender<Result<Solved<R>, SolveError>>,
    },
    Export {
        job: JobId,
        edge: Edge,
        options: ExportOptions,
        reply: oneshot::Sender<Result<ExportGraph<R>, SolveError>>,
    },
    Idle {
        reply: oneshot::Sender<()>,
    },
}

/// Solves edges of graphs that jobs load. Cheap to clone; its task ends when the last handle and job are dropped.
pub struct Solver<R> {
    commands: mpsc::Sender<Command<R>>,
    next_job: Arc<AtomicU64>,
}

impl<R> Clone for Solver<R> {
    fn clone(&self) -> Self {
        Self { commands: self.commands.clone(), next_job: self.next_job.clone() }
    }
}

impl<R: Clone + Send + Sync + 'static> Solver<R> {
    /// Starts a solver that saves to `main`. Must be called within a tokio runtime.
    pub fn new(main: Arc<dyn KeyStore<R>>, limits: Limits) -> Self {
        let (commands, inbox) = mpsc::channel(COMMANDS);
        tokio::spawn(drive::run(main, limits, inbox));
        Self { commands, next_job: Arc::new(AtomicU64::new(1)) }
    }

    /// Opens a job. Dropping the job cancels it.
    ///
    /// # Errors
    /// `Ended` if the solver's task is gone.
    pub async fn job(&self, spec: JobSpec<R>) -> Result<Job<R>, SolveError> {
        let id = JobId(self.next_job.fetch_add(1, Ordering::Relaxed));
        let token = CancellationToken::new();
        let (closed, when_closed) = oneshot::channel();
        let open = Command::Open { job: id, spec, token: token.clone(), closed };
        self.commands.send(open).await.map_err(|_| SolveError::Ended)?;
        Ok(Job { id, commands: self.commands.clone(), guard: token.clone().drop_guard(), token, closed: when_closed })
    }

    /// Waits until nothing runs and nothing waits to be written: no call of an operation or of a store is under way.
    pub async fn idle(&self) {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Idle { reply }).await.is_ok() {
            // An error means the task is gone, and then nothing runs either.
            let _ = answer.await;
        }
    }
}

/// One build: a set of loaded vertices, some of which are wanted. All results stay alive until it ends.
pub struct Job<R> {
    id: JobId,
    commands: mpsc::Sender<Command<R>>,
    token: CancellationToken,
    guard: DropGuard,
    closed: oneshot::Receiver<()>,
}

impl<R: Clone + Send + Sync + 'static> Job<R> {
    /// Returns the job's name.
    pub fn id(&self) -> JobId {
        self.id
    }

    /// Adds vertices. Their inputs must be among them or loaded before; order does not matter. A vertex that the job has
    /// already is left as it is.
    ///
    /// # Errors
    /// See [`LoadError`]; then none is loaded.
    pub async fn load(&self, vertices: Vec<Vertex<R>>) -> Result<(), LoadError> {
        let (reply, answer) = oneshot::channel();
        let load = Command::Load { job: self.id, vertices, reply };
        self.commands.send(load).await.map_err(|_| LoadError::Ended)?;
        answer.await.map_err(|_| LoadError::Ended)?
    }

    /// Adds an imported cache, asked after those the job has. What was looked up before is not looked up again.
    pub async fn import(&self, store: Arc<dyn KeyStore<R>>) {
        // An error means that the solver has ended, which the next call tells.
        let _ = self.commands.send(Command::AddImport { job: self.id, store }).await;
    }

    /// Solves an edge. Dropping the future withdraws the wish.
    ///
    /// # Errors
    /// See [`SolveError`].
    pub async fn build(&self, edge: Edge) -> Result<Solved<R>, SolveError> {
        let (reply, answer) = oneshot::channel();
        let token = self.token.child_token();
        let _withdraw = token.clone().drop_guard();
        let build = Command::Build { job: self.id, edge, token, reply };
        self.commands.send(build).await.map_err(|_| SolveError::Ended)?;
        answer.await.map_err(|_| SolveError::Ended)?
    }

    /// Returns the keys and results that lead to an edge this job has built, for writing a remote cache.
    ///
    /// # Errors
    /// `Unknown` if the edge is not loaded, `Canceled` if the job is over.
    pub async fn export(&self, edge: Edge, options: ExportOptions) -> Result<ExportGraph<R>, SolveError> {
        let (reply, answer) = oneshot::channel();
        let export = Command::Export { job: self.id, edge, options, reply };
        self.commands.send(export).await.map_err(|_| SolveError::Ended)?;
        answer.await.map_err(|_| SolveError::Ended)?
    }

    /// Cancels the job: its waiting calls end with `Canceled`, and what only it wanted is called off.
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// Cancels the job and waits until it has left the solver: no event comes after this, and its results are released
    /// as far as no other job has them.
    pub async fn close(self) {
        drop(self.guard);
        // An error means that the solver has ended, and the job with it.
        let _ = self.closed.await;
    }
}
