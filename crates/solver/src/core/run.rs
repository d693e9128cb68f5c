//! Executions: from the decision to run a vertex to its results.

use std::collections::BTreeSet;
use std::sync::Arc;

use kiln_stdx::ErrorClass;

use super::graph::{Exec, Failure, Made, OutputRef, Prepared, State, TaskId, VertexId};
use super::{Core, Effect, Owner};
use crate::event::VertexChange;
use crate::job::Origin;
use crate::miss::{Difference, MissReason, SlotRecord};
use crate::op::OpError;
use crate::vertex::{Bound, CacheUse};

impl<R: Clone, O: Clone> Core<R, O> {
    /// Executes a vertex all of whose inputs are complete and keyed, or waits for one of equal key that is being executed.
    pub(super) fn begin_execution(&mut self, vertex: VertexId) {
        let Some(node) = self.nodes.get(&vertex) else { return };
        if !matches!(node.exec, Exec::Idle) {
            return;
        }
        let Some(prepared) = self.prepare(vertex) else { return };
        if let Some(leader) = self.find_leader(vertex, &prepared) {
            self.follow(vertex, leader, prepared);
            return;
        }
        self.register(vertex);
        let Some(node) = self.nodes.get(&vertex) else { return };
        if node.cache == CacheUse::Ignore {
            self.make_ready(vertex, prepared, MissReason::IgnoreCache);
        } else if prepared.slots.is_empty() {
            let miss = self.miss_reason(vertex, &prepared.slot, None);
            self.make_ready(vertex, prepared, miss);
        } else {
            let slots = prepared.slots.clone();
            let task = self.task(Owner::Recall(vertex));
            self.set_exec(vertex, Exec::Recalling(task, prepared));
            self.effects.push(Effect::Recall { task, slots });
        }
        self.touch(vertex);
    }

    fn prepare(&self, vertex: VertexId) -> Option<Box<Prepared<R, O>>> {
        let node = self.nodes.get(&vertex)?;
        let inputs: Option<Vec<R>> = node.inputs.iter().map(|input| self.result(input.edge).cloned()).collect();
        let slots = node.wanted.iter().filter_map(|job| node.jobs.get(job)?.slot.clone());
        let slots: BTreeSet<_> = slots.collect();
        Some(Box::new(Prepared {
            op: node.view()?.op.clone(),
            inputs: inputs?,
            known: self.known(vertex),
            slots: slots.into_iter().collect(),
            slot: self.slot_record(vertex)?,
        }))
    }

    pub(super) fn recalled(&mut self, task: TaskId, record: Option<SlotRecord>) {
        let Some(Owner::Recall(vertex)) = self.tasks.remove(&task) else { return };
        let Exec::Recalling(_, prepared) = self.take_exec(vertex) else { return };
        let miss = self.miss_reason(vertex, &prepared.slot, record.as_ref());
        let MissReason::ContentChanged { input, old, new, .. } = &miss else {
            self.make_ready(vertex, prepared, miss);
            return;
        };
        let (input, old, new) = (*input as usize, *old, *new);
        let (op, result) = (prepared.op.clone(), prepared.inputs.get(input).cloned());
        let Some(result) = result else {
            self.make_ready(vertex, prepared, miss);
            return;
        };
        let task = self.task(Owner::Explain(vertex));
        self.set_exec(vertex, Exec::Explaining(task, prepared, Box::new(miss)));
        self.effects.push(Effect::Explain { task, vertex, op, input, old, new, result });
    }

    pub(super) fn explained(&mut self, task: TaskId, told: Option<Difference>) {
        let Some(Owner::Explain(vertex)) = self.tasks.remove(&task) else { return };
        let Exec::Explaining(_, prepared, mut miss) = self.take_exec(vertex) else { return };
        if let MissReason::ContentChanged { difference, .. } = &mut *miss {
            *difference = told;
        }
        self.make_ready(vertex, prepared, *miss);
    }

    fn make_ready(&mut self, vertex: VertexId, prepared: Box<Prepared<R, O>>, miss: MissReason) {
        let Some(node) = self.nodes.get_mut(&vertex) else { return };
        node.miss = Some(Arc::new(miss));
        node.exec = Exec::Queued(prepared);
        match node.bound {
            Bound::Limited => self.ready.push_back(vertex),
            Bound::Unlimited => self.run(vertex),
        }
    }

    /// Starts queued executions while there are slots.
    pub(super) fn start_ready(&mut self) {
        while self.running < self.executions {
            let Some(vertex) = self.ready.pop_front() else { break };
            self.run(vertex);
        }
    }

    fn run(&mut self, vertex: VertexId) {
        let Exec::Queued(mut prepared) = self.take_exec(vertex) else { return };
        let task = self.task(Owner::Execute(vertex));
        let inputs = std::mem::take(&mut prepared.inputs);
        let Some(node) = self.nodes.get_mut(&vertex) else { return };
        if node.bound == Bound::Limited {
            self.running += 1;
        }
        let op = node.view().map_or_else(|| prepared.op.clone(), |view| view.op.clone());
        let miss = node.miss.clone().unwrap_or_else(|| Arc::new(MissReason::NoRecord));
        node.exec = Exec::Running(task, prepared);
        let followers = node.followers.clone();
        self.report_started(vertex, &miss);
        for follower in followers {
            self.report_started(follower, &miss);
        }
        self.effects.push(Effect::Execute { task, vertex, op, inputs, miss });
    }

    pub(super) fn executed(&mut self, task: TaskId, outcome: Result<Vec<R>, OpError>) {
        let Some(Owner::Execute(vertex)) = self.tasks.remove(&task) else { return };
        let Some(node) = self.nodes.get_mut(&vertex) else { return };
        if node.bound == Bound::Limited {
            self.running -= 1;
        }
        let (stopping, prepared) = match std::mem::replace(&mut node.exec, Exec::Idle) {
            Exec::Running(_, prepared) => (false, prepared),
            Exec::Stopping(prepared) => (true, prepared),
            other => {
                node.exec = other;
                return;
            }
        };
        match outcome {
            // A result that came in spite of being called off is as good as any.
            Ok(results) => self.keep_results(vertex, results, prepared.known),
            Err(error) => {
                self.unregister_vertex(vertex);
                if stopping || self.may_retry(vertex, &error) || self.is_orphan(vertex, &error) {
                    self.report_interrupted(vertex);
                    self.release_followers(vertex);
                } else {
                    self.fail_followers(vertex, &error);
                    self.fail(vertex, error);
                }
            }
        }
        self.touch(vertex);
    }

    /// Returns whether a vertex lost its session after the jobs that loaded it ended: then a follower has to run itself.
    fn is_orphan(&self, vertex: VertexId, error: &OpError) -> bool {
        error.kind() == crate::op::OpErrorKind::SessionLost
            && self.nodes.get(&vertex).is_some_and(|node| node.jobs.is_empty())
    }

    fn keep_results(&mut self, vertex: VertexId, results: Vec<R>, known: Vec<Vec<super::graph::Known>>) {
        let Some(node) = self.nodes.get_mut(&vertex) else { return };
        node.lost = 0;
        node.left.clear();
        let missing = node.outputs.iter().find_map(|(index, out)| {
            let wanted = out.target() == super::graph::Level::Complete && *index as usize >= results.len();
            wanted.then_some(*index)
        });
        // Outputs that nobody asked for yet are kept too: whoever asks later need not run it again.
        let inputs = node.inputs.len();
        let mut open = Vec::new();
        for index in 0..results.len() as u32 {
            let out = node.outputs.entry(index).or_insert_with(|| super::graph::Out::new(inputs));
            if matches!(out.state, State::Open) {
                open.push(index);
            }
        }
        let count = results.len();
        node.exec = Exec::Done(Box::new(Made { results, known, origin: vertex }));
        self.report_completed(vertex);
        for index in open {
            self.save_result(OutputRef { vertex, index }, Origin::Executed);
        }
        self.complete_followers(vertex);
        if let Some(index) = missing {
            self.fail_missing(vertex, index, count);
        }
    }

    /// Fails a vertex that has no such output.
    pub(super) fn fail_missing(&mut self, vertex: VertexId, index: u32, count: usize) {
        let text = format!("output {index} is wanted of an operation that has {count}");
        self.fail(vertex, OpError::new(ErrorClass::Bug, text));
    }

    /// Takes the result of an output from the finished execution.
    pub(super) fn take_result(&mut self, output: OutputRef) {
        let Some(node) = self.nodes.get(&output.vertex) else { return };
        let Exec::Done(made) = &node.exec else { return };
        if made.results.len() <= output.index as usize {
            let count = made.results.len();
            self.fail_missing(output.vertex, output.index, count);
            return;
        }
        if made.origin == output.vertex {
            self.save_result(output, Origin::Executed);
        } else if !self.share_result(output) {
            self.save_result(output, Origin::Shared);
        }
    }

    /// Fails a vertex for all jobs that want it.
    pub(super) fn fail(&mut self, vertex: VertexId, cause: OpError) {
        let Some(node) = self.nodes.get(&vertex) else { return };
        let name = node.view().map_or_else(|| Arc::from("vertex"), |view| view.name.clone());
        let failure =
            Failure { origin: vertex, digest: node.digest, name, cause: cause.clone(), jobs: BTreeSet::new() };
        self.report_all(vertex, &VertexChange::Failed(cause));
        self.fail_with(vertex, failure);
    }

    /// Fails a vertex because of itself or of an input.
    pub(super) fn fail_with(&mut self, vertex: VertexId, failure: Failure) {
        let Some(node) = self.nodes.get_mut(&vertex) else { return };
        node.lost = 0;
        node.left.clear();
        node.failure = Some(Failure { jobs: node.wanted.clone(), ..failure });
        self.touch(vertex);
    }

    /// Calls an execution off, wherever it is.
    pub(super) fn stop_execution(&mut self, vertex: VertexId) {
        match self.take_exec(vertex) {
            Exec::Running(task, prepared) => {
                self.effects.push(Effect::Abort { task });
                #[cfg(test)]
                if self.planted(super::Planted::NoWaitForStop) {
                    self.unregister_vertex(vertex);
                    self.tasks.remove(&task);
                    self.running -=
                        usize::from(self.nodes.get(&vertex).is_some_and(|node| node.bound == Bound::Limited));
                    return;
                }
                self.set_exec(vertex, Exec::Stopping(prepared));
            }
            Exec::Recalling(task, _) | Exec::Explaining(task, _, _) => {
                self.effects.push(Effect::Abort { task });
                self.tasks.remove(&task);
                self.unregister_vertex(vertex);
                self.release_followers(vertex);
            }
            Exec::Queued(_) => {
                self.ready.retain(|waiting| *waiting != vertex);
                self.unregister_vertex(vertex);
                self.release_followers(vertex);
            }
            Exec::Following(leader, _) => {
                self.report_interrupted(vertex);
                self.unfollow(vertex, leader);
            }
            state @ (Exec::Idle | Exec::Stopping(..) | Exec::Done(_)) => self.set_exec(vertex, state),
        }
    }

    pub(super) fn set_exec(&mut self, vertex: VertexId, exec: Exec<R, O>) {
        if let Some(node) = self.nodes.get_mut(&vertex) {
            node.exec = exec;
        }
    }

    /// Takes the state of an execution out, leaving it idle.
    pub(super) fn take_exec(&mut self, vertex: VertexId) -> Exec<R, O> {
        match self.nodes.get_mut(&vertex) {
            Some(node) => std::mem::replace(&mut node.exec, Exec::Idle),
            None => Exec::Idle,
        }
    }
}
