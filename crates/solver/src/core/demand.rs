//! Who wants what: demands on outputs, and the jobs behind them.

use std::collections::BTreeSet;

use super::graph::{Call, Demander, Exec, Level, Out, OutputRef, Search, State, VertexId};
use super::{Core, Effect};
use crate::context::JobId;

impl<R: Clone, O: Clone> Core<R, O> {
    /// Sets what a demander wants of an output.
    pub(super) fn set_demand(&mut self, output: OutputRef, who: Demander, level: Level) {
        let Some(node) = self.nodes.get_mut(&output.vertex) else { return };
        let inputs = node.inputs.len();
        if level == Level::None {
            let Some(out) = node.outputs.get_mut(&output.index) else { return };
            if out.demands.remove(&who).is_none() {
                return;
            }
        } else {
            let out = node.outputs.entry(output.index).or_insert_with(|| Out::new(inputs));
            if out.demands.insert(who, level) == Some(level) {
                return;
            }
        }
        self.touch(output.vertex);
        self.refresh_wanted(output.vertex);
    }

    /// Recomputes the jobs that want a vertex, and then those of what it wants itself.
    pub(super) fn refresh_wanted(&mut self, vertex: VertexId) {
        let mut stack = vec![vertex];
        while let Some(vertex) = stack.pop() {
            let wanted = self.wanted_of(vertex);
            let Some(node) = self.nodes.get_mut(&vertex) else { continue };
            if node.wanted == wanted {
                continue;
            }
            let before = std::mem::replace(&mut node.wanted, wanted.clone());
            node.left += before.difference(&wanted).count();
            stack.extend(node.inputs.iter().filter(|input| input.ask > Level::None).map(|input| input.edge.vertex));
            if let Exec::Following(leader, _) = node.exec {
                stack.push(leader);
            }
            let digest = node.digest;
            self.effects.push(Effect::Wanted { vertex, digest, jobs: wanted.iter().copied().collect() });
            for &job in before.difference(&wanted) {
                self.report_left(vertex, job);
            }
            for &job in wanted.difference(&before) {
                self.report_joined(vertex, job);
            }
            self.touch(vertex);
        }
    }

    fn wanted_of(&self, vertex: VertexId) -> BTreeSet<JobId> {
        let mut wanted = BTreeSet::new();
        let Some(node) = self.nodes.get(&vertex) else { return wanted };
        for who in node.outputs.values().flat_map(|out| out.demands.keys()) {
            match who {
                Demander::Job(job, _) => {
                    wanted.insert(*job);
                }
                Demander::Vertex(user, _) => self.add_wanted(&mut wanted, *user),
            }
        }
        for follower in &node.followers {
            self.add_wanted(&mut wanted, *follower);
        }
        wanted
    }

    fn add_wanted(&self, wanted: &mut BTreeSet<JobId>, vertex: VertexId) {
        if let Some(node) = self.nodes.get(&vertex) {
            wanted.extend(&node.wanted);
        }
    }

    /// Sets what a vertex wants of each input.
    pub(super) fn apply_asks(&mut self, vertex: VertexId, asks: &[Level]) {
        let Some(node) = self.nodes.get_mut(&vertex) else { return };
        let mut changes = Vec::new();
        for (at, (input, &ask)) in node.inputs.iter_mut().zip(asks).enumerate() {
            if input.ask != ask {
                input.ask = ask;
                changes.push((input.edge, at, ask));
            }
        }
        for (edge, at, ask) in changes {
            self.set_demand(edge, Demander::Vertex(vertex, at), ask);
        }
    }

    /// Calls off all that is under way for a vertex that nobody wants or that failed. Its search begins anew if it is
    /// wanted again: by then there may be other records, and other stores to ask.
    pub(super) fn stop(&mut self, vertex: VertexId) {
        let Some(node) = self.nodes.get_mut(&vertex) else { return };
        let mut aborts: Vec<_> = node.map.stop().into_iter().collect();
        aborts.extend(node.inputs.iter_mut().filter_map(|input| input.content.stop()));
        let mut forgotten = Vec::new();
        for out in node.outputs.values_mut() {
            out.asks.fill(Level::None);
            if let State::Loading(task, _) = out.state {
                aborts.push(task);
                forgotten.push(task);
                out.state = State::Open;
            }
            if matches!(out.state, State::Open) {
                forgotten.extend(out.query.take().map(|(task, _)| task));
                forgotten.extend(out.records.task.take());
                out.search = Search::Looking;
                out.probes.iter_mut().for_each(|probe| probe.asked.clear());
                out.records = Default::default();
                out.probed_since = None;
                out.reached = Level::None;
                out.told = (Level::None, 0);
            }
        }
        let inputs = node.inputs.len();
        for task in aborts {
            self.effects.push(Effect::Abort { task });
        }
        for task in forgotten {
            self.tasks.remove(&task);
        }
        self.stop_execution(vertex);
        self.apply_asks(vertex, &vec![Level::None; inputs]);
    }

    /// Removes a vertex that no job has loaded, nobody wants and nothing is under way for.
    pub(super) fn try_remove(&mut self, vertex: VertexId) {
        let Some(node) = self.nodes.get(&vertex) else { return };
        let calls = |stopping: &Call<_>| matches!(stopping, Call::Running(_) | Call::Stopping(_));
        let busy = !node.jobs.is_empty()
            || !node.wanted.is_empty()
            || !node.followers.is_empty()
            || matches!(node.exec, Exec::Running(..) | Exec::Stopping(..))
            || matches!(node.map, Call::Running(_) | Call::Stopping(_))
            || node.inputs.iter().any(|input| calls(&input.content))
            || node.outputs.values().any(|out| matches!(out.state, State::Saving(..)));
        if busy {
            return;
        }
        #[cfg(test)]
        if self.planted(super::Planted::Leak) && node.outputs.len() > 1 {
            return;
        }
        let Some(node) = self.nodes.remove(&vertex) else { return };
        self.index.remove(&(node.digest, node.fresh));
        if let Some(map) = node.cache_map() {
            self.unregister(map.digest, vertex);
        }
        self.effects.push(Effect::Dropped { vertex });
    }
}
