//! Checks of the core's own consistency, for the simulator.

use std::collections::BTreeMap;

use super::Core;
use super::graph::{Call, Demander, Exec, Level, Out, State, VertexId};
use crate::context::JobId;

impl<R: Clone, O: Clone> Core<R, O> {
    /// Checks that every vertex that is wanted waits for something that will happen.
    pub(crate) fn audit(&self) -> Result<(), String> {
        if !self.work.is_empty() || !self.effects.is_empty() {
            return Err("the core stopped before it was settled".to_owned());
        }
        let counted = self.nodes.values().filter(|node| {
            matches!(node.exec, Exec::Running(..) | Exec::Stopping(..)) && node.bound == crate::vertex::Bound::Limited
        });
        let counted = counted.count();
        if counted != self.running && self.planted.is_none() {
            return Err(format!("{counted} executions run, {} are counted", self.running));
        }
        for (&vertex, node) in &self.nodes {
            if !node.wanted.is_empty() && node.failure.is_none() && !self.waits(vertex) {
                return Err(format!("vertex {} is wanted and waits for nothing", vertex.0));
            }
            if node.waiting != 0 && node.waiting != self.waiting(vertex) {
                return Err(format!("vertex {} has lost count of what it waits for", vertex.0));
            }
            if node.waiting == 0 && node.news > 0 {
                return Err(format!("vertex {} was not looked at though there is news", vertex.0));
            }
            let behind = self.count_wants(vertex);
            if behind != node.wants || !node.wanted.iter().eq(node.wants.keys()) {
                return Err(format!("vertex {} has lost count of who wants it", vertex.0));
            }
            let met = |out: &Out<R>| out.target() == Level::None || !matches!(out.state, State::Open);
            if node.outputs.values().all(met) && node.inputs.iter().any(|input| input.ask > Level::None) {
                return Err(format!("vertex {} has what is wanted of it and yet wants inputs", vertex.0));
            }
            if let Exec::Following(leader, _) = node.exec
                && !self.nodes.get(&leader).is_some_and(|leader| leader.followers.contains(&vertex))
            {
                return Err(format!("vertex {} follows one that does not know it", vertex.0));
            }
        }
        Ok(())
    }

    /// Counts anew which jobs are behind the demands on a vertex.
    fn count_wants(&self, vertex: VertexId) -> BTreeMap<JobId, usize> {
        let mut wants = BTreeMap::new();
        let Some(node) = self.nodes.get(&vertex) else { return wants };
        for who in node.outputs.values().flat_map(|out| out.demands.keys()) {
            let jobs = match who {
                Demander::Job(job, _) => vec![*job],
                Demander::Vertex(user, _) => self.wanting(*user),
            };
            jobs.into_iter().for_each(|job| *wants.entry(job).or_insert(0) += 1);
        }
        for job in node.followers.iter().flat_map(|follower| self.wanting(*follower)) {
            *wants.entry(job).or_insert(0) += 1;
        }
        wants
    }

    fn waits(&self, vertex: VertexId) -> bool {
        let Some(node) = self.nodes.get(&vertex) else { return false };
        let calling = |call: &Call<_>| matches!(call, Call::Running(_) | Call::Stopping(_));
        matches!(node.map, Call::Running(_) | Call::Stopping(_))
            || !matches!(node.exec, Exec::Idle | Exec::Done(_))
            || node.inputs.iter().any(|input| input.ask > Level::None || calling(&input.content))
            || node.outputs.values().any(|out| {
                out.query.is_some()
                    || out.records.task.is_some()
                    || matches!(out.state, State::Loading(..) | State::Saving(..))
            })
            // What is wanted of it is there already; its users have further to go.
            || node.outputs.values().all(|out| out.reached >= out.target())
    }

    /// Returns what is left when nothing should be.
    pub(crate) fn leaks(&self) -> Option<String> {
        let counts = [
            ("vertices", self.nodes.len()),
            ("index entries", self.index.len()),
            ("jobs", self.jobs.len()),
            ("tasks", self.tasks.len()),
            ("flights", self.flights.len()),
            ("queued executions", self.ready.len()),
            ("running executions", self.running),
            ("notes of saves", self.saved_ops.len()),
        ];
        let left: Vec<String> = counts.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what}")).collect();
        (!left.is_empty()).then(|| left.join(", "))
    }
}
