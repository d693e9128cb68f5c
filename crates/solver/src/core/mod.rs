//! The solver as a state machine: events in, effects out. No clock, no I/O, no unordered container.
//!
//! [`Core::step`] takes an event, updates the vertices it touches, and goes on with their neighbours until nothing
//! changes. Every vertex with unmet demand then waits for a task, for an input, or for an execution slot.

#[cfg(test)]
mod audit;
mod call;
mod demand;
mod effect;
mod evaluate;
mod event;
mod export;
mod flight;
mod graph;
mod load;
mod plan;
mod reason;
mod report;
mod run;
mod save;
#[cfg(test)]
mod wide;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kiln_stdx::Digest;

pub(crate) use effect::Effect;
pub(crate) use event::{Answer, Event, LoadOutcome};
pub(crate) use export::Skeleton;
pub(crate) use graph::{TaskId, Ticket, VertexId};
pub(crate) use load::Spec;

use graph::{Freshness, Node, OutputRef};
use report::Seen;

use crate::context::JobId;
use crate::keystore::StoreId;
use crate::vertex::VertexDigest;

/// The state of all jobs. `O` is how an operation is named in effects.
pub(crate) struct Core<R, O> {
    /// How many executions may run at once.
    executions: usize,
    nodes: BTreeMap<VertexId, Box<Node<R, O>>>,
    index: BTreeMap<(VertexDigest, Freshness), VertexId>,
    jobs: BTreeMap<JobId, JobState>,
    tasks: BTreeMap<TaskId, Owner>,
    /// Vertices whose execution is under way or done, by the digest of their operation.
    flights: BTreeMap<Digest, BTreeSet<VertexId>>,
    /// Vertices that wait for an execution slot, in order.
    ready: VecDeque<VertexId>,
    running: usize,
    /// Counts saves, so that a late vertex knows when its look-up is stale.
    saves: u64,
    /// The last save of each operation.
    saved_ops: BTreeMap<Digest, u64>,
    work: VecDeque<VertexId>,
    effects: Vec<Effect<R, O>>,
    next_vertex: u64,
    next_task: u64,
    patience: Patience,
    /// How often vertices were looked at, times their inputs.
    #[cfg(test)]
    pub(crate) looks: usize,
    /// A fault that tests plant to see that the simulator finds it.
    #[cfg(test)]
    pub(crate) planted: Option<Planted>,
}

/// Faults that tests plant.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planted {
    /// Vertices of equal key are executed side by side.
    NoSingleFlight,
    /// A called-off execution is not awaited before the next starts.
    NoWaitForStop,
    /// A vertex that has its result goes on wanting its inputs.
    KeepDemands,
    /// A look-up is not repeated when equal work was saved meanwhile.
    NoRecheck,
    /// A vertex keeps its place in the graph when its jobs are over.
    Leak,
}

/// When a vertex of many inputs is looked at again. Each look goes over all inputs, so one for each piece of news would take
/// a time that grows with the square of their number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Up to so many inputs, for each piece of news.
    pub narrow: usize,
    /// Beyond, when the news are a share of the inputs as large as one by this, or nothing is waited for any more.
    pub share: usize,
}

impl Patience {
    const USUAL: Self = Self { narrow: 64, share: 16 };
    /// Looks as seldom as can be, so that small graphs show what is forgotten.
    #[cfg(test)]
    pub(crate) const MOST: Self = Self { narrow: 0, share: 1 };
}

/// A job.
#[derive(Default)]
struct JobState {
    stores: Vec<StoreId>,
    /// It shares no vertices with others; what these execute may still be followed.
    apart: bool,
    tickets: BTreeMap<Ticket, OutputRef>,
    loaded: BTreeMap<VertexDigest, VertexId>,
    seen: BTreeMap<VertexId, Seen>,
}

/// Whom a task belongs to.
#[derive(Debug, Clone, Copy)]
enum Owner {
    Map(VertexId),
    Content(VertexId, usize),
    Query(OutputRef),
    Records(OutputRef),
    Load(OutputRef),
    Recall(VertexId),
    Explain(VertexId),
    Execute(VertexId),
    Save(OutputRef),
}

impl<R: Clone, O: Clone> Core<R, O> {
    /// Returns a core without jobs that runs at most `executions` limited vertices at once.
    pub(crate) fn new(executions: usize) -> Self {
        Self {
            executions: executions.max(1),
            nodes: BTreeMap::new(),
            index: BTreeMap::new(),
            jobs: BTreeMap::new(),
            tasks: BTreeMap::new(),
            flights: BTreeMap::new(),
            ready: VecDeque::new(),
            running: 0,
            saves: 0,
            saved_ops: BTreeMap::new(),
            work: VecDeque::new(),
            effects: Vec::new(),
            next_vertex: 0,
            next_task: 0,
            patience: Patience::USUAL,
            #[cfg(test)]
            looks: 0,
            #[cfg(test)]
            planted: None,
        }
    }

    /// Takes events and returns what to do about them, in order.
    pub(crate) fn step(&mut self, events: impl IntoIterator<Item = Event<R>>) -> Vec<Effect<R, O>> {
        for event in events {
            self.take(event);
        }
        self.settle();
        std::mem::take(&mut self.effects)
    }

    fn take(&mut self, event: Event<R>) {
        match event {
            Event::Open { job, stores, apart } => {
                self.jobs.insert(job, JobState { stores, apart, ..JobState::default() });
            }
            Event::Import { job, store } => {
                if let Some(job) = self.jobs.get_mut(&job) {
                    job.stores.push(store);
                }
            }
            Event::Want { job, ticket, edge } => self.want(job, ticket, edge),
            Event::Withdraw { job, ticket } => self.withdraw(job, ticket),
            Event::End { job } => self.end(job),
            Event::Mapped { task, outcome } => self.mapped(task, outcome),
            Event::ContentKeyed { task, outcome } => self.content_keyed(task, outcome),
            Event::Queried { task, answers } => self.queried(task, &answers),
            Event::RecordsFound { task, records, gone } => self.records_found(task, records, gone),
            Event::RecordLoaded { task, outcome } => self.record_loaded(task, outcome),
            Event::Recalled { task, record } => self.recalled(task, record),
            Event::Explained { task, difference } => self.explained(task, difference),
            Event::Executed { task, outcome } => self.executed(task, outcome),
            Event::Saved { task, record } => self.saved(task, record),
        }
    }

    /// Looks at changed vertices until none is left.
    fn settle(&mut self) {
        loop {
            while let Some(vertex) = self.work.pop_front() {
                if let Some(node) = self.nodes.get_mut(&vertex) {
                    node.queued = false;
                }
                self.evaluate(vertex);
            }
            self.start_ready();
            if self.work.is_empty() {
                break;
            }
        }
        if self.nodes.is_empty() {
            // No look-up is under way that could be stale.
            self.saved_ops.clear();
        }
    }

    /// Notes that an input of a vertex has come further; `arrived` if that is all that was waited for of it.
    fn nudge(&mut self, vertex: VertexId, arrived: bool) {
        let patience = self.patience;
        let Some(node) = self.nodes.get_mut(&vertex) else { return };
        node.news += 1;
        node.waiting = node.waiting.saturating_sub(usize::from(arrived));
        let inputs = node.inputs.len();
        if inputs <= patience.narrow || node.waiting == 0 || node.news * patience.share >= inputs {
            self.touch(vertex);
        }
    }

    /// Notes that a vertex is to be looked at.
    fn touch(&mut self, vertex: VertexId) {
        if let Some(node) = self.nodes.get_mut(&vertex)
            && !std::mem::replace(&mut node.queued, true)
        {
            self.work.push_back(vertex);
        }
    }

    fn task(&mut self, owner: Owner) -> TaskId {
        self.next_task += 1;
        let task = TaskId(self.next_task);
        self.tasks.insert(task, owner);
        task
    }

    /// Returns the stores of the jobs that want a vertex, the main one first.
    fn stores(&self, vertex: VertexId) -> Vec<StoreId> {
        let wanted = self.nodes.get(&vertex).map(|node| &node.wanted);
        let imports: BTreeSet<StoreId> = wanted
            .into_iter()
            .flatten()
            .filter_map(|job| self.jobs.get(job))
            .flat_map(|job| job.stores.iter().copied())
            .collect();
        let mut stores = vec![StoreId::MAIN];
        stores.extend(imports.into_iter().filter(|store| *store != StoreId::MAIN));
        stores
    }

    /// Makes vertices of many inputs be looked at otherwise than usual.
    #[cfg(test)]
    pub(crate) fn set_patience(&mut self, patience: Patience) {
        self.patience = patience;
    }

    /// Returns whether a fault is planted.
    #[cfg(test)]
    fn planted(&self, fault: Planted) -> bool {
        self.planted == Some(fault)
    }
}
