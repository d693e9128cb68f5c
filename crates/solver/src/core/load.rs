//! Jobs: loading vertices, wanting edges, ending.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kiln_stdx::StableHasher;

use super::graph::{Call, Demander, Exec, Freshness, Input, Level, Node, OutputRef, Ticket, VertexId, View};
use super::{Core, Effect};
use crate::context::JobId;
use crate::error::{LoadError, SolveError};
use crate::vertex::{Bound, CacheUse, Edge, MaxAge, StepSlot, VertexDigest};

/// A vertex as the core needs it.
pub(crate) struct Spec<O> {
    pub digest: VertexDigest,
    pub inputs: Vec<Edge>,
    pub op: O,
    pub name: Arc<str>,
    pub cache: CacheUse,
    pub max_age: Option<MaxAge>,
    pub slot: Option<StepSlot>,
    pub bound: Bound,
}

impl<R: Clone, O: Clone> Core<R, O> {
    /// Loads vertices into a job, all or none. Makes no effects.
    pub(crate) fn load(&mut self, job: JobId, specs: Vec<Spec<O>>) -> Result<(), LoadError> {
        let Some(state) = self.jobs.get(&job) else { return Err(LoadError::Canceled) };
        let order = order(&specs, &state.loaded)?;
        let mut specs: Vec<Option<Spec<O>>> = specs.into_iter().map(Some).collect();
        for at in order {
            if let Some(spec) = specs[at].take() {
                self.load_one(job, spec);
            }
        }
        Ok(())
    }

    fn load_one(&mut self, job: JobId, spec: Spec<O>) {
        let Some(state) = self.jobs.get(&job) else { return };
        let edges: Vec<OutputRef> = spec
            .inputs
            .iter()
            .filter_map(|edge| Some(OutputRef { vertex: *state.loaded.get(&edge.vertex)?, index: edge.index }))
            .collect();
        let apart = state.apart.then_some(job);
        let fresh = self.freshness(spec.cache, spec.max_age, &edges, apart);
        let id = match self.index.get(&(spec.digest, fresh)) {
            Some(&id) => id,
            None => self.add_node(&spec, fresh),
        };
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.jobs.is_empty() {
            // It is new, or lingers from jobs that are over and whose other vertices may be gone.
            node.inputs = edges.into_iter().map(|edge| Input { edge, ask: Level::None, content: Call::Idle }).collect();
            let inputs = node.inputs.len();
            for out in node.outputs.values_mut() {
                out.asks.resize(inputs, Level::None);
                out.probes.resize_with(inputs, Default::default);
            }
        }
        node.jobs.insert(job, View { op: spec.op, name: spec.name, slot: spec.slot });
        if let Some(state) = self.jobs.get_mut(&job) {
            state.loaded.insert(spec.digest, id);
        }
    }

    fn add_node(&mut self, spec: &Spec<O>, fresh: Freshness) -> VertexId {
        self.next_vertex += 1;
        let id = VertexId(self.next_vertex);
        let node = Node {
            digest: spec.digest,
            cache: spec.cache,
            max_age: spec.max_age,
            fresh,
            bound: spec.bound,
            jobs: BTreeMap::new(),
            wanted: BTreeSet::new(),
            wants: BTreeMap::new(),
            map: Call::Idle,
            inputs: Vec::new(),
            outputs: BTreeMap::new(),
            exec: Exec::Idle,
            failure: None,
            followers: BTreeSet::new(),
            miss: None,
            lost: 0,
            queued: false,
            waiting: 0,
            news: 0,
            left: BTreeSet::new(),
        };
        self.nodes.insert(id, Box::new(node));
        self.index.insert((spec.digest, fresh), id);
        id
    }

    /// Returns which of a vertex and its inputs ignore the cache, or that they are the own ones of a job.
    fn freshness(
        &self,
        cache: CacheUse,
        max_age: Option<MaxAge>,
        inputs: &[OutputRef],
        apart: Option<JobId>,
    ) -> Freshness {
        let of = |input: &OutputRef| self.nodes.get(&input.vertex).map_or(Freshness::Plain, |node| node.fresh);
        let plain = cache == CacheUse::Use && max_age.is_none() && apart.is_none();
        if plain && inputs.iter().all(|input| of(input) == Freshness::Plain) {
            return Freshness::Plain;
        }
        let mut hasher = StableHasher::new("kiln.fresh.v1").bool("ignore", cache == CacheUse::Ignore);
        if let Some(age) = max_age {
            hasher = hasher.u64("not before", age.not_before);
        }
        if let Some(job) = apart {
            hasher = hasher.u64("apart", job.0);
        }
        for input in inputs {
            hasher = match of(input) {
                Freshness::Plain => hasher.bool("plain", true),
                Freshness::Fresh(digest) => hasher.digest("fresh", &digest),
            };
        }
        Freshness::Fresh(hasher.finish())
    }

    pub(super) fn want(&mut self, job: JobId, ticket: Ticket, edge: Edge) {
        let Some(state) = self.jobs.get_mut(&job) else {
            self.effects.push(Effect::Reply { job, ticket, outcome: Err(SolveError::Canceled) });
            return;
        };
        let Some(&vertex) = state.loaded.get(&edge.vertex) else {
            self.effects.push(Effect::Reply { job, ticket, outcome: Err(SolveError::Unknown(edge)) });
            return;
        };
        let output = OutputRef { vertex, index: edge.index };
        state.tickets.insert(ticket, output);
        self.set_demand(output, Demander::Job(job, ticket), Level::Complete);
    }

    pub(super) fn withdraw(&mut self, job: JobId, ticket: Ticket) {
        let Some(output) = self.jobs.get_mut(&job).and_then(|state| state.tickets.remove(&ticket)) else { return };
        self.set_demand(output, Demander::Job(job, ticket), Level::None);
        self.effects.push(Effect::Reply { job, ticket, outcome: Err(SolveError::Canceled) });
    }

    /// Ends a job: answers its wishes, withdraws them, and lets go of its vertices.
    pub(super) fn end(&mut self, job: JobId) {
        let Some(state) = self.jobs.get_mut(&job) else { return };
        let tickets: Vec<Ticket> = state.tickets.keys().copied().collect();
        for ticket in tickets {
            self.withdraw(job, ticket);
        }
        // What it wanted is called off while it can still be told so.
        self.settle();
        let Some(state) = self.jobs.remove(&job) else { return };
        for vertex in state.loaded.into_values() {
            if let Some(node) = self.nodes.get_mut(&vertex) {
                node.jobs.remove(&job);
                self.touch(vertex);
            }
        }
        self.effects.push(Effect::Closed { job });
    }
}

/// Returns the order in which a batch can be loaded, inputs first.
fn order<O>(specs: &[Spec<O>], loaded: &BTreeMap<VertexDigest, VertexId>) -> Result<Vec<usize>, LoadError> {
    let mut at: BTreeMap<VertexDigest, usize> = BTreeMap::new();
    for (index, spec) in specs.iter().enumerate() {
        if !loaded.contains_key(&spec.digest) {
            at.entry(spec.digest).or_insert(index);
        }
    }
    let mut order = Vec::with_capacity(at.len());
    let mut marks: BTreeMap<usize, Mark> = BTreeMap::new();
    for &start in at.values() {
        // Depth first with a stack of its own: graphs are deeper than threads have stack for.
        let mut stack = vec![(start, 0usize)];
        while let Some((index, input)) = stack.pop() {
            if input == 0 && marks.insert(index, Mark::Open) == Some(Mark::Closed) {
                marks.insert(index, Mark::Closed);
                continue;
            }
            let spec = &specs[index];
            let Some(edge) = spec.inputs.get(input) else {
                marks.insert(index, Mark::Closed);
                order.push(index);
                continue;
            };
            stack.push((index, input + 1));
            match at.get(&edge.vertex) {
                Some(next) => match marks.get(next) {
                    None => stack.push((*next, 0)),
                    Some(Mark::Open) => return Err(LoadError::Cycle(edge.vertex)),
                    Some(Mark::Closed) => {}
                },
                None if loaded.contains_key(&edge.vertex) => {}
                None => return Err(LoadError::UnknownInput { vertex: spec.digest, input: edge.vertex }),
            }
        }
    }
    Ok(order)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Open,
    Closed,
}
