//! What jobs are told about vertices.

use std::sync::Arc;

use super::graph::{Call, Exec, VertexId};
use super::{Core, Effect};
use crate::context::JobId;
use crate::event::{CachedBy, VertexChange};
use crate::miss::MissReason;

/// What a job was last told about a vertex.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    Resolving,
    Started,
    Ended,
}

impl<R: Clone, O: Clone> Core<R, O> {
    fn report(&mut self, vertex: VertexId, job: JobId, what: VertexChange) {
        let Some(node) = self.nodes.get(&vertex) else { return };
        let Some(state) = self.jobs.get_mut(&job) else { return };
        let seen = match what {
            VertexChange::Resolving => Seen::Resolving,
            VertexChange::Started { .. } => Seen::Started,
            VertexChange::Completed | VertexChange::Cached(_) | VertexChange::Failed(_) | VertexChange::Canceled => {
                Seen::Ended
            }
        };
        state.seen.insert(vertex, seen);
        self.effects.push(Effect::Report { job, vertex: node.digest, what });
    }

    fn seen(&self, vertex: VertexId, job: JobId) -> Option<Seen> {
        self.jobs.get(&job)?.seen.get(&vertex).copied()
    }

    /// Returns the jobs that want a vertex.
    pub(super) fn wanting(&self, vertex: VertexId) -> Vec<JobId> {
        self.nodes.get(&vertex).map(|node| node.wanted.iter().copied().collect()).unwrap_or_default()
    }

    /// Returns whether a job knows a vertex: those that only follow it have one of their own.
    fn loaded(&self, vertex: VertexId, job: JobId) -> bool {
        self.nodes.get(&vertex).is_some_and(|node| node.jobs.contains_key(&job))
    }

    /// Tells all jobs that want a vertex.
    pub(super) fn report_all(&mut self, vertex: VertexId, what: &VertexChange) {
        for job in self.wanting(vertex) {
            if self.loaded(vertex, job) {
                self.report(vertex, job, what.clone());
            }
        }
    }

    pub(super) fn report_started(&mut self, vertex: VertexId, miss: &Arc<MissReason>) {
        self.report_all(vertex, &VertexChange::Started { miss: miss.clone() });
    }

    /// Tells that an execution succeeded, to those who were not told of its start that there is a result.
    pub(super) fn report_completed(&mut self, vertex: VertexId) {
        for job in self.wanting(vertex) {
            match self.seen(vertex, job) {
                Some(Seen::Started) => self.report(vertex, job, VertexChange::Completed),
                Some(Seen::Resolving | Seen::Ended) | None => self.report_unseen(vertex, job),
            }
        }
    }

    pub(super) fn report_cached(&mut self, vertex: VertexId, jobs: &[JobId], by: CachedBy) {
        for &job in jobs {
            // One output may be loaded while another is made.
            if self.loaded(vertex, job) && self.seen(vertex, job) != Some(Seen::Started) {
                self.report(vertex, job, VertexChange::Cached(by));
            }
        }
    }

    /// Tells a job of a result that it has heard nothing about.
    pub(super) fn report_unseen(&mut self, vertex: VertexId, job: JobId) {
        if self.loaded(vertex, job) && matches!(self.seen(vertex, job), None | Some(Seen::Resolving)) {
            self.report(vertex, job, VertexChange::Cached(CachedBy::Shared));
        }
    }

    /// Tells a job that begins to want a vertex what goes on there.
    pub(super) fn report_joined(&mut self, vertex: VertexId, job: JobId) {
        let Some(node) = self.nodes.get(&vertex) else { return };
        if !node.jobs.contains_key(&job) {
            return;
        }
        let running = match &node.exec {
            Exec::Running(..) => Some(vertex),
            Exec::Following(leader, _) => Some(*leader),
            _ => None,
        };
        let running = running.and_then(|at| self.nodes.get(&at)).filter(|at| matches!(at.exec, Exec::Running(..)));
        if let Some(miss) = running.and_then(|at| at.miss.clone()) {
            self.report(vertex, job, VertexChange::Started { miss });
        } else if node.outputs.values().any(|out| out.done().is_some()) {
            self.report_unseen(vertex, job);
        } else if matches!(node.map, Call::Running(_)) && node.inputs.is_empty() {
            self.report(vertex, job, VertexChange::Resolving);
        }
    }

    /// Tells all who were told of the start of an execution that it is over without an outcome; another may begin.
    pub(super) fn report_interrupted(&mut self, vertex: VertexId) {
        for job in self.wanting(vertex) {
            if self.seen(vertex, job) == Some(Seen::Started) {
                self.report(vertex, job, VertexChange::Canceled);
            }
        }
    }

    /// Tells a job that ceases to want a vertex which it was told had started.
    pub(super) fn report_left(&mut self, vertex: VertexId, job: JobId) {
        let Some(node) = self.nodes.get(&vertex) else { return };
        let resolving = self.seen(vertex, job) == Some(Seen::Resolving) && matches!(node.map, Call::Running(_));
        if resolving || self.seen(vertex, job) == Some(Seen::Started) {
            self.report(vertex, job, VertexChange::Canceled);
        }
    }

    /// Tells jobs that the inputs of a loaded vertex, and theirs, need not be executed, inputs first; their slots
    /// remember how they are keyed now.
    pub(super) fn cover(&mut self, vertex: VertexId, jobs: &[JobId]) {
        let mut stack = vec![(vertex, false)];
        while let Some((at, told)) = stack.pop() {
            let Some(node) = self.nodes.get(&at) else { continue };
            if at == vertex || told {
                if told {
                    self.cover_one(at, jobs);
                    continue;
                }
            } else if jobs.iter().all(|job| matches!(self.seen(at, *job), Some(Seen::Started | Seen::Ended))) {
                continue;
            } else {
                stack.push((at, true));
            }
            stack.extend(node.inputs.iter().map(|input| (input.edge.vertex, false)));
        }
    }

    fn cover_one(&mut self, vertex: VertexId, jobs: &[JobId]) {
        let Some(node) = self.nodes.get(&vertex) else { return };
        if node.cache_map().is_none() {
            return;
        }
        let untold = |job: &&JobId| {
            !node.wanted.contains(job) && matches!(self.seen(vertex, **job), None | Some(Seen::Resolving))
        };
        let jobs: Vec<JobId> = jobs.iter().filter(untold).copied().collect();
        self.report_cached(vertex, &jobs, CachedBy::Covered);
        self.remember(vertex, &jobs);
    }
}
