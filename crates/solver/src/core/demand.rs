//! Who wants what: demands on outputs, and the jobs behind them.

use super::graph::{Call, Demander, Exec, Level, Out, OutputRef, Search, State, VertexId};
use super::{Core, Effect};
use crate::context::JobId;

/// What happens to a vertex's demanders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Gains,
    Loses,
}

impl<R: Clone, O: Clone> Core<R, O> {
    /// Sets what a demander wants of an output.
    pub(super) fn set_demand(&mut self, output: OutputRef, who: Demander, level: Level) {
        let Some(node) = self.nodes.get_mut(&output.vertex) else { return };
        let inputs = node.inputs.len();
        let change = if level == Level::None {
            let Some(out) = node.outputs.get_mut(&output.index) else { return };
            if out.demands.remove(&who).is_none() {
                return;
            }
            Some(Change::Loses)
        } else {
            let out = node.outputs.entry(output.index).or_insert_with(|| Out::new(inputs));
            match out.demands.insert(who, level) {
                Some(before) if before == level => return,
                Some(_) => None,
                None => Some(Change::Gains),
            }
        };
        self.touch(output.vertex);
        if let Some(change) = change {
            let jobs = match who {
                Demander::Job(job, _) => vec![job],
                Demander::Vertex(user, _) => self.wanting(user),
            };
            self.adjust_wanted(output.vertex, jobs, change);
        }
    }

    /// Counts that a vertex gains or loses a demander that these jobs are behind, and passes on to what it wants itself
    /// which jobs it is wanted by.
    pub(super) fn adjust_wanted(&mut self, vertex: VertexId, jobs: Vec<JobId>, change: Change) {
        let mut stack: Vec<(VertexId, JobId)> = jobs.into_iter().map(|job| (vertex, job)).collect();
        while let Some((vertex, job)) = stack.pop() {
            let Some(node) = self.nodes.get_mut(&vertex) else { continue };
            let count = node.wants.entry(job).or_insert(0);
            match change {
                Change::Gains => {
                    *count += 1;
                    if *count > 1 {
                        continue;
                    }
                    node.wanted.insert(job);
                }
                Change::Loses => {
                    *count = count.saturating_sub(1);
                    if *count > 0 {
                        continue;
                    }
                    node.wants.remove(&job);
                    node.wanted.remove(&job);
                    node.left.insert(job);
                }
            }
            stack.extend(node.inputs.iter().filter(|i| i.ask > Level::None).map(|i| (i.edge.vertex, job)));
            if let Exec::Following(leader, _) = node.exec {
                stack.push((leader, job));
            }
            let (digest, jobs) = (node.digest, node.wanted.iter().copied().collect());
            self.effects.push(Effect::Wanted { vertex, digest, jobs });
            match change {
                Change::Gains => self.report_joined(vertex, job),
                Change::Loses => self.report_left(vertex, job),
            }
            self.touch(vertex);
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
