//! The only async part: turns the core's effects into futures and feeds their outcomes back as events.

mod apply;
mod ask;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};
use kiln_stdx::Digest;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::context::{JobContext, JobId, WantedBy};
use crate::core::{Core, Event, Spec, TaskId, Ticket, VertexId};
use crate::error::SolveError;
use crate::event::EventSink;
use crate::export;
use crate::job::{Command, JobSpec, Limits, Solved};
use crate::keystore::{KeyStore, StoreId};
use crate::miss::SlotRecord;
use crate::op::Op;
use crate::vertex::{StepSlot, Vertex, VertexDigest};

/// An operation as the core holds it.
type OpRef<R> = Arc<dyn Op<R>>;
/// Stores to be asked, in order.
type Stores<R> = Vec<(StoreId, Arc<dyn KeyStore<R>>)>;
/// Answers a wish.
type ReplyTo<R> = oneshot::Sender<Result<Solved<R>, SolveError>>;

/// Runs a solver until its handles and jobs are gone and all it began is finished.
pub(crate) async fn run<R: Clone + Send + Sync + 'static>(
    main: Arc<dyn KeyStore<R>>,
    limits: Limits,
    mut inbox: mpsc::Receiver<Command<R>>,
) {
    let mut driver = Driver::new(main, &limits);
    let mut open = true;
    while open || !driver.is_idle() || !driver.watchers.is_empty() {
        let mut events = Vec::new();
        tokio::select! {
            // Cancellations come first, so that nothing is started for a job that is over.
            biased;
            Some(event) = driver.watchers.next() => events.push(event),
            command = inbox.recv(), if open => match command {
                Some(command) => events.extend(driver.command(command)),
                None => open = false,
            },
            Some(done) = driver.tasks.join_next() => events.extend(done.ok().flatten()),
        }
        // Outcomes that are there at once are taken together: their vertices are then looked at once.
        while let Some(done) = driver.tasks.try_join_next() {
            events.extend(done.ok().flatten());
        }
        driver.step(events);
    }
}

/// A job as the driver knows it.
struct JobEntry {
    context: JobContext,
    events: Arc<dyn EventSink>,
    closed: oneshot::Sender<()>,
    imports: Vec<StoreId>,
}

/// A vertex somebody wants.
struct WantEntry {
    digest: VertexDigest,
    jobs: Vec<JobId>,
    /// Made when a call needs it.
    shared: Option<Arc<WantedBy>>,
}

impl WantEntry {
    fn nobody() -> Self {
        Self { digest: VertexDigest(Digest::from_bytes([0; 32])), jobs: Vec::new(), shared: None }
    }
}

struct Driver<R> {
    core: Core<R, OpRef<R>>,
    grace: Duration,
    stores: BTreeMap<StoreId, Arc<dyn KeyStore<R>>>,
    jobs: BTreeMap<JobId, JobEntry>,
    replies: BTreeMap<(JobId, Ticket), ReplyTo<R>>,
    wanted: BTreeMap<VertexId, WantEntry>,
    cancels: BTreeMap<TaskId, CancellationToken>,
    /// Effects under way; those without an answer yield none.
    tasks: JoinSet<Option<Event<R>>>,
    /// Turn the end of a job or wish into an event.
    watchers: FuturesUnordered<BoxFuture<'static, Event<R>>>,
    /// Outcomes that were there at once.
    ready: Vec<Event<R>>,
    remember: Vec<(StepSlot, SlotRecord)>,
    idlers: Vec<oneshot::Sender<()>>,
    next_ticket: u64,
    next_store: u32,
}

impl<R: Clone + Send + Sync + 'static> Driver<R> {
    fn new(main: Arc<dyn KeyStore<R>>, limits: &Limits) -> Self {
        Self {
            core: Core::new(limits.executions),
            grace: limits.grace,
            stores: BTreeMap::from([(StoreId::MAIN, main)]),
            jobs: BTreeMap::new(),
            replies: BTreeMap::new(),
            wanted: BTreeMap::new(),
            cancels: BTreeMap::new(),
            tasks: JoinSet::new(),
            watchers: FuturesUnordered::new(),
            ready: Vec::new(),
            remember: Vec::new(),
            idlers: Vec::new(),
            next_ticket: 0,
            next_store: 0,
        }
    }

    fn is_idle(&self) -> bool {
        self.tasks.is_empty() && self.ready.is_empty() && self.remember.is_empty()
    }

    /// Takes a command; returns what the core is to be told of it.
    fn command(&mut self, command: Command<R>) -> Option<Event<R>> {
        match command {
            Command::Open { job, spec, token, closed } => Some(self.open(job, spec, token, closed)),
            Command::AddImport { job, store } => {
                let store = self.add_store(store);
                match self.jobs.get_mut(&job) {
                    Some(entry) => entry.imports.push(store),
                    None => {
                        self.stores.remove(&store);
                    }
                }
                Some(Event::Import { job, store })
            }
            Command::Load { job, vertices, reply } => {
                let specs = vertices.into_iter().map(spec).collect();
                // The caller may be gone; the job's end takes care of what was loaded.
                let _ = reply.send(self.core.load(job, specs));
                None
            }
            Command::Build { job, edge, token, reply } => {
                self.next_ticket += 1;
                let ticket = Ticket(self.next_ticket);
                self.replies.insert((job, ticket), reply);
                self.watchers.push(
                    async move {
                        token.cancelled_owned().await;
                        Event::Withdraw { job, ticket }
                    }
                    .boxed(),
                );
                Some(Event::Want { job, ticket, edge })
            }
            Command::Export { job, edge, options, reply } => {
                match self.core.export(job, edge) {
                    Ok(skeleton) => {
                        let stores = self.pick_stores(&skeleton.stores);
                        self.tasks.spawn(async move {
                            let graph = export::finish(skeleton, stores, options).await;
                            let _ = reply.send(Ok(graph));
                            None
                        });
                    }
                    Err(error) => drop(reply.send(Err(error))),
                }
                None
            }
            Command::Idle { reply } => {
                self.idlers.push(reply);
                None
            }
        }
    }

    fn open(
        &mut self,
        job: JobId,
        spec: JobSpec<R>,
        token: CancellationToken,
        closed: oneshot::Sender<()>,
    ) -> Event<R> {
        let apart = spec.apart;
        let imports: Vec<StoreId> = spec.imports.into_iter().map(|store| self.add_store(store)).collect();
        let entry = JobEntry { context: spec.context, events: spec.events, closed, imports: imports.clone() };
        self.jobs.insert(job, entry);
        self.watchers.push(
            async move {
                token.cancelled_owned().await;
                Event::End { job }
            }
            .boxed(),
        );
        Event::Open { job, stores: imports, apart }
    }

    fn add_store(&mut self, store: Arc<dyn KeyStore<R>>) -> StoreId {
        self.next_store += 1;
        let id = StoreId(self.next_store);
        self.stores.insert(id, store);
        id
    }

    /// Steps the core, and again with whatever is there at once.
    fn step(&mut self, events: Vec<Event<R>>) {
        let mut events = events;
        while !events.is_empty() {
            for task in events.iter().filter_map(Event::task) {
                self.cancels.remove(&task);
            }
            for effect in self.core.step(events) {
                self.apply(effect);
            }
            events = std::mem::take(&mut self.ready);
        }
        if !self.remember.is_empty() {
            let slots = std::mem::take(&mut self.remember);
            if let Some(main) = self.stores.get(&StoreId::MAIN).cloned() {
                self.ask(None, async move {
                    if let Err(error) = main.remember(slots).await {
                        tracing::warn!(%error, "step slots were not written");
                    }
                    None
                });
            }
        }
        if self.is_idle() {
            for idler in self.idlers.drain(..) {
                // Whoever asked may have given up waiting.
                let _ = idler.send(());
            }
        }
    }
}

/// Hands a vertex over to the core.
fn spec<R>(vertex: Vertex<R>) -> Spec<OpRef<R>> {
    Spec {
        digest: vertex.digest,
        inputs: vertex.inputs,
        op: vertex.op,
        name: Arc::from(vertex.name),
        cache: vertex.options.cache,
        max_age: vertex.options.max_age,
        slot: vertex.options.slot,
        bound: vertex.options.bound,
    }
}
