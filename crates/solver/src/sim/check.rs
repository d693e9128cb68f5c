//! What must hold at every step and at the end.

use std::collections::{BTreeMap, BTreeSet};

use kiln_stdx::Digest;

use super::run::{JobPlan, Waiting};
use super::world::{Swarm, Val, World};
use crate::context::JobId;
use crate::core::{Core, TaskId, Ticket, VertexId};
use crate::error::SolveError;
use crate::event::VertexChange;
use crate::job::Solved;
use crate::vertex::{Bound, VertexDigest};

pub(super) struct Checks {
    strict: bool,
    limit: usize,
    expected: Vec<Vec<Val>>,
    storable: Vec<bool>,
    /// Wishes that are not answered.
    open: BTreeMap<(JobId, Ticket), (usize, u32)>,
    pub withdrawn: BTreeSet<Ticket>,
    /// Operations that failed at least once; vertices of equal key fail together.
    pub failed: BTreeSet<Digest>,
    pub names: BTreeMap<VertexId, VertexDigest>,
    /// What runs, by vertex and by digest.
    running: BTreeMap<VertexId, usize>,
    /// Whether one digest may stand for two vertices: one that uses the cache and one that ignores it.
    twofold: bool,
    /// Work that was done, in strict runs.
    done: BTreeSet<(Digest, u64)>,
    pub solved: BTreeSet<(usize, u32)>,
    /// Set when all that can be cached is.
    pub warm: bool,
    pub executions: usize,
    started: BTreeSet<(JobId, VertexDigest)>,
    heard: BTreeSet<(JobId, VertexDigest)>,
    closed: BTreeSet<JobId>,
    log: Vec<String>,
    verbose: bool,
}

impl Checks {
    pub fn new(world: &World, swarm: &Swarm, limit: usize) -> Self {
        Self {
            strict: swarm.is_strict(),
            limit,
            twofold: swarm.ignores,
            expected: world.evaluate(),
            storable: world.storable(),
            open: BTreeMap::new(),
            withdrawn: BTreeSet::new(),
            failed: BTreeSet::new(),
            names: BTreeMap::new(),
            running: BTreeMap::new(),
            done: BTreeSet::new(),
            solved: BTreeSet::new(),
            warm: false,
            executions: 0,
            started: BTreeSet::new(),
            heard: BTreeSet::new(),
            closed: BTreeSet::new(),
            log: Vec::new(),
            verbose: std::env::var_os("KILN_SIM_TRACE").is_some(),
        }
    }

    /// Keeps a line of the trace for the message of a failure.
    pub fn note(&mut self, what: &str) {
        if self.verbose {
            self.log.push(what.to_owned());
        }
    }

    pub fn broken<T>(&self, what: impl Into<String>) -> Result<T, String> {
        let mut text = what.into();
        for line in &self.log {
            text.push('\n');
            text.push_str(line);
        }
        Err(text)
    }

    pub fn want(&mut self, job: JobId, ticket: Ticket, def: usize, index: u32) {
        self.open.insert((job, ticket), (def, index));
    }

    pub fn tickets_of(&self, job: JobId) -> Vec<Ticket> {
        self.open.keys().filter(|(of, _)| *of == job).map(|(_, ticket)| *ticket).collect()
    }

    pub fn execute(
        &mut self,
        world: &World,
        vertex: VertexId,
        def: usize,
        inputs: &[Val],
        wanted: &[JobId],
        jobs: &[JobPlan],
    ) -> Result<(), String> {
        let node = &world.defs[def];
        let twice = self.running.values().any(|other| *other == def) && !self.twofold;
        if self.running.insert(vertex, def).is_some() || twice {
            return self.broken(format!("v{def} is run while it runs"));
        }
        let limited = self.running.values().filter(|def| world.defs[**def].bound == Bound::Limited).count();
        if limited > self.limit {
            return self.broken(format!("{limited} executions at once, {} allowed", self.limit));
        }
        let expected: Vec<Val> = node.inputs.iter().map(|(from, out)| self.expected[*from][*out as usize]).collect();
        if node.work(inputs) != node.work(&expected) {
            return self.broken(format!("v{def} is executed with wrong inputs"));
        }
        if wanted.is_empty() {
            return self.broken(format!("v{def} is executed for nobody"));
        }
        let needed = self.open.iter().any(|((job, _), (target, _))| {
            let alive = jobs.iter().any(|plan| plan.id == *job && !plan.ended);
            alive
                && world.closure(&[*target]).iter().any(|at| {
                    world.defs[*at].work(&self.inputs_of(world, *at)) == node.work(&expected)
                        && world.defs[*at].op == node.op
                })
        });
        if !needed {
            return self.broken(format!("v{def} is executed but not needed"));
        }
        if self.strict && self.storable[def] {
            if self.warm {
                return self.broken(format!("v{def} is executed though all is cached"));
            }
            let work = node.work(inputs);
            if !self.done.insert((node.op, work)) {
                return self.broken(format!("v{def} repeats work that was done"));
            }
        }
        self.executions += 1;
        Ok(())
    }

    fn inputs_of(&self, world: &World, def: usize) -> Vec<Val> {
        world.defs[def].inputs.iter().map(|(from, out)| self.expected[*from][*out as usize]).collect()
    }

    pub fn executed(&mut self, vertex: VertexId) {
        self.running.remove(&vertex);
    }

    pub fn reply(
        &mut self,
        world: &World,
        job: JobId,
        ticket: Ticket,
        outcome: Result<Solved<Val>, SolveError>,
    ) -> Result<(), String> {
        let Some((def, index)) = self.open.remove(&(job, ticket)) else {
            return self.broken(format!("wish {} is answered twice", ticket.0));
        };
        match outcome {
            Ok(solved) => {
                let expected = self.expected[def][index as usize];
                if solved.result != expected {
                    return self.broken(format!("v{def} is {:?}, not {expected:?}", solved.result));
                }
                if !self.heard.contains(&(job, world.defs[def].digest)) {
                    return self.broken(format!("job {job} got v{def} but heard nothing of it"));
                }
                self.solved.extend(world.closure(&[def]).into_iter().map(|at| (at, 0)));
                Ok(())
            }
            Err(SolveError::Canceled) if self.withdrawn.contains(&ticket) => Ok(()),
            Err(SolveError::Vertex { vertex, .. }) if self.has_failed(world, vertex) => Ok(()),
            Err(error) => self.broken(format!("v{def} failed without reason: {error:?}")),
        }
    }

    fn has_failed(&self, world: &World, vertex: VertexDigest) -> bool {
        world.by_digest.get(&vertex).is_some_and(|def| self.failed.contains(&world.defs[*def].op))
    }

    pub fn report(
        &mut self,
        world: &World,
        job: JobId,
        vertex: VertexDigest,
        what: &VertexChange,
    ) -> Result<(), String> {
        let name = format!("v{} of job {job}", world.by_digest.get(&vertex).copied().unwrap_or(usize::MAX));
        if self.closed.contains(&job) {
            return self.broken(format!("{name}: event after the job was closed"));
        }
        let key = (job, vertex);
        self.heard.insert(key);
        match what {
            VertexChange::Started { .. } if !self.started.insert(key) => self.broken(format!("{name} started twice")),
            VertexChange::Completed if !self.started.remove(&key) => {
                self.broken(format!("{name} completed but was not started"))
            }
            VertexChange::Cached(_) if self.started.contains(&key) => {
                self.broken(format!("{name} cached while it runs"))
            }
            VertexChange::Failed(_) | VertexChange::Canceled => {
                self.started.remove(&key);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub fn closed(&mut self, job: JobId) -> Result<(), String> {
        self.closed.insert(job);
        if let Some((_, vertex)) = self.started.iter().find(|(of, _)| *of == job) {
            return self.broken(format!("job {job} is closed but {vertex:?} is still running for it"));
        }
        if !self.tickets_of(job).is_empty() {
            return self.broken(format!("job {job} is closed with wishes open"));
        }
        Ok(())
    }

    /// Somebody who waits must wait for something.
    pub fn after_step(
        &self,
        step: usize,
        core: &Core<Val, usize>,
        pending: &BTreeMap<TaskId, Waiting>,
    ) -> Result<(), String> {
        if !self.open.is_empty() && pending.is_empty() {
            return self.broken(format!("{} wishes open and nothing under way", self.open.len()));
        }
        // The audit costs more than the step.
        if !step.is_multiple_of(4) {
            return Ok(());
        }
        core.audit().or_else(|error| self.broken(error))
    }

    pub fn at_end(&self, core: &Core<Val, usize>) -> Result<(), String> {
        if !self.open.is_empty() {
            return self.broken("wishes are open at the end");
        }
        match core.leaks() {
            None => Ok(()),
            Some(leak) => self.broken(format!("left at the end: {leak}")),
        }
    }
}
