//! Looks at one vertex: what failed, what its outputs need, what its demanders are to know.

use super::graph::{Call, Demander, Exec, Level, OutputRef, State, VertexId};
use super::plan::{Action, Dep, Head, Phase, plan};
use super::{Core, Effect};
use crate::error::SolveError;
use crate::job::Solved;
use crate::vertex::{CacheUse, Edge};

impl<R: Clone, O: Clone> Core<R, O> {
    /// Brings a vertex up to date with its surroundings.
    pub(super) fn evaluate(&mut self, vertex: VertexId) {
        let Some(node) = self.nodes.get_mut(&vertex) else { return };
        // Until it is counted again what it waits for, all news are worth a look.
        (node.waiting, node.news) = (0, 0);
        #[cfg(test)]
        {
            self.looks += node.inputs.len();
        }
        if node.wanted.is_empty() {
            self.stop(vertex);
            self.try_remove(vertex);
            return;
        }
        if let Some(failure) = &node.failure {
            if node.wanted.is_subset(&failure.jobs) {
                self.deliver_failure(vertex);
                return;
            }
            // Somebody is here who has not met it: try again.
            node.failure = None;
        }
        if self.input_failed(vertex) {
            return;
        }
        self.stop_needless_execution(vertex);
        if !self.has_more_to_do(vertex) {
            self.tell(vertex);
            return;
        }
        let mut actions = self.plan_outputs(vertex);
        // What is not called for is withdrawn before anything is started.
        let asks = self.asks(vertex);
        self.apply_asks(vertex, &asks);
        for (output, action) in actions.drain(..) {
            self.act(output, action);
        }
        self.count_waiting(vertex);
        self.tell(vertex);
    }

    /// Counts what a vertex waits for of its inputs.
    fn count_waiting(&mut self, vertex: VertexId) {
        let waiting = self.waiting(vertex);
        if let Some(node) = self.nodes.get_mut(&vertex) {
            node.waiting = waiting;
        }
    }

    /// Returns how many inputs have not been told to have come as far as is asked of them, and how many contents are being
    /// keyed.
    pub(super) fn waiting(&self, vertex: VertexId) -> usize {
        let Some(node) = self.nodes.get(&vertex) else { return 0 };
        let told = |edge: OutputRef| Some(self.nodes.get(&edge.vertex)?.outputs.get(&edge.index)?.told.0);
        let behind = |input: &super::graph::Input| told(input.edge).unwrap_or(Level::None) < input.ask;
        let keyed = |input: &super::graph::Input| matches!(input.content, Call::Running(_));
        let count = |input| usize::from(behind(input)) + usize::from(keyed(input));
        node.inputs.iter().map(count).sum()
    }

    /// Calls an execution off if only keys are wanted any more.
    fn stop_needless_execution(&mut self, vertex: VertexId) {
        let Some(node) = self.nodes.get(&vertex) else { return };
        let needed = node.outputs.values().any(|out| out.target() == Level::Complete) || !node.followers.is_empty();
        if !needed && !matches!(node.exec, Exec::Idle | Exec::Done(_)) {
            self.stop_execution(vertex);
        }
    }

    /// Returns whether any output lacks what is wanted of it, or wants inputs though it does not.
    fn has_more_to_do(&self, vertex: VertexId) -> bool {
        let Some(node) = self.nodes.get(&vertex) else { return false };
        let lacking =
            |out: &super::graph::Out<R>| !matches!(out.state, State::Complete(_)) && out.target() > Level::None;
        node.outputs.values().any(lacking) || node.inputs.iter().any(|input| input.ask > Level::None)
    }

    fn plan_outputs(&mut self, vertex: VertexId) -> Vec<(OutputRef, Action)> {
        let deps = self.deps(vertex);
        let saves = self.saves;
        let Some(node) = self.nodes.get_mut(&vertex) else { return Vec::new() };
        let exec = match node.exec {
            Exec::Idle => Phase::Idle,
            Exec::Done(_) => Phase::Done,
            Exec::Recalling(..)
            | Exec::Explaining(..)
            | Exec::Queued(_)
            | Exec::Running(..)
            | Exec::Stopping(..)
            | Exec::Following(..) => Phase::Busy,
        };
        let map = node.map.value().cloned();
        let last_save = map.as_ref().and_then(|map| self.saved_ops.get(&map.digest)).copied().unwrap_or(0);
        #[cfg(test)]
        let last_save = if self.planted == Some(super::Planted::NoRecheck) { 0 } else { last_save };
        let contents: Vec<&Call<_>> = node.inputs.iter().map(|input| &input.content).collect();
        let mut actions = Vec::new();
        for (&index, out) in &mut node.outputs {
            let head = Head {
                index,
                cache: node.cache,
                map: map.as_deref(),
                deps: &deps,
                contents: &contents,
                exec,
                saves,
                last_save,
            };
            let output = OutputRef { vertex, index };
            actions.extend(plan(&head, out).into_iter().map(|action| (output, action)));
        }
        actions
    }

    /// Returns what the inputs have reached.
    fn deps(&self, vertex: VertexId) -> Vec<Dep> {
        let Some(node) = self.nodes.get(&vertex) else { return Vec::new() };
        let dep = |edge: OutputRef| {
            let node = self.nodes.get(&edge.vertex)?;
            let out = node.outputs.get(&edge.index)?;
            let late = node.max_age.is_some() && node.cache == CacheUse::Use;
            // The keys of one that had to run are those of its older results, too.
            let shown = match node.cache {
                CacheUse::Use if late => out.reached == Level::Complete && !matches!(node.exec, Exec::Done(_)),
                CacheUse::Use => true,
                CacheUse::Ignore => false,
            };
            let lookup = if shown { out.keys.clone() } else { Vec::new() };
            Some(Dep { reached: out.reached, late, lookup })
        };
        let none = || Dep { reached: Level::None, late: false, lookup: Vec::new() };
        node.inputs.iter().map(|input| dep(input.edge).unwrap_or_else(none)).collect()
    }

    /// Returns what all outputs together want of each input.
    fn asks(&self, vertex: VertexId) -> Vec<Level> {
        let Some(node) = self.nodes.get(&vertex) else { return Vec::new() };
        let of = |input: usize| node.outputs.values().filter_map(|out| out.asks.get(input)).copied().max();
        #[cfg(test)]
        if self.planted(super::Planted::KeepDemands) {
            let kept = |(at, input): (usize, &super::graph::Input)| input.ask.max(of(at).unwrap_or(Level::None));
            return node.inputs.iter().enumerate().map(kept).collect();
        }
        (0..node.inputs.len()).map(|input| of(input).unwrap_or(Level::None)).collect()
    }

    fn act(&mut self, output: OutputRef, action: Action) {
        let vertex = output.vertex;
        match action {
            Action::Map => self.start_map(vertex),
            Action::Content(input) => self.start_content(vertex, input),
            Action::Query(asks) => self.start_query(output, asks),
            Action::Records(keys) => self.start_records(output, &keys),
            Action::Load(record) => self.start_load(output, record),
            Action::Unload => {
                let Some(node) = self.nodes.get_mut(&vertex) else { return };
                let Some(out) = node.outputs.get_mut(&output.index) else { return };
                if let State::Loading(task, record) = std::mem::replace(&mut out.state, State::Open) {
                    out.records.found.push_front(record);
                    self.tasks.remove(&task);
                    self.effects.push(Effect::Abort { task });
                    self.touch(vertex);
                }
            }
            Action::Execute => self.begin_execution(vertex),
            Action::Take => self.take_result(output),
        }
    }

    /// Tells the demanders of a vertex what changed, and answers jobs.
    pub(super) fn tell(&mut self, vertex: VertexId) {
        let Some(node) = self.nodes.get_mut(&vertex) else { return };
        let mut users = Vec::new();
        let mut solved = Vec::new();
        let digest = node.digest;
        for (&index, out) in &mut node.outputs {
            if matches!(out.state, State::Complete(_)) {
                out.reached = Level::Complete;
            }
            let now = (out.reached, out.all_keys().count());
            let changed = out.told != now;
            let before = std::mem::replace(&mut out.told, now).0;
            for (who, level) in &out.demands {
                match who {
                    Demander::Vertex(user, _) if changed => users.push((*user, before < *level && now.0 >= *level)),
                    Demander::Vertex(..) => {}
                    Demander::Job(job, ticket) if *level == Level::Complete => {
                        if let Some(done) = out.done() {
                            let answer = Solved {
                                edge: Edge { vertex: digest, index },
                                result: done.result.clone(),
                                origin: done.origin,
                                keys: out.all_keys().map(|key| key.id).collect(),
                                record: done.record.clone(),
                            };
                            solved.push((*job, *ticket, OutputRef { vertex, index }, answer));
                        }
                    }
                    Demander::Job(..) => {}
                }
            }
        }
        for (user, arrived) in users {
            self.nudge(user, arrived);
        }
        for (job, ticket, output, answer) in solved {
            self.report_unseen(vertex, job);
            if let Some(state) = self.jobs.get_mut(&job) {
                state.tickets.remove(&ticket);
            }
            self.effects.push(Effect::Reply { job, ticket, outcome: Ok(answer) });
            self.set_demand(output, Demander::Job(job, ticket), Level::None);
        }
    }

    /// Answers jobs and wakes users of a failed vertex. The demands of its users go when these fail in turn.
    fn deliver_failure(&mut self, vertex: VertexId) {
        self.stop(vertex);
        let Some(node) = self.nodes.get(&vertex) else { return };
        let Some(failure) = node.failure.clone() else { return };
        let mut users = Vec::new();
        let mut jobs = Vec::new();
        for (&index, out) in &node.outputs {
            for who in out.demands.keys() {
                match who {
                    Demander::Vertex(user, _) => users.push(*user),
                    Demander::Job(job, ticket) => jobs.push((*job, *ticket, OutputRef { vertex, index })),
                }
            }
        }
        for user in users {
            self.touch(user);
        }
        for (job, ticket, output) in jobs {
            let origin = self.nodes.get(&failure.origin);
            let name = origin.and_then(|node| node.name_for(job)).unwrap_or(&failure.name).to_string();
            let error = SolveError::Vertex { vertex: failure.digest, name, cause: failure.cause.clone() };
            if let Some(state) = self.jobs.get_mut(&job) {
                state.tickets.remove(&ticket);
            }
            self.effects.push(Effect::Reply { job, ticket, outcome: Err(error) });
            self.set_demand(output, Demander::Job(job, ticket), Level::None);
        }
    }

    /// Fails a vertex if an input it wants failed for all its jobs.
    fn input_failed(&mut self, vertex: VertexId) -> bool {
        let Some(node) = self.nodes.get(&vertex) else { return false };
        let failure = node.inputs.iter().filter(|input| input.ask > Level::None).find_map(|input| {
            let failure = self.nodes.get(&input.edge.vertex)?.failure.as_ref()?;
            node.wanted.is_subset(&failure.jobs).then(|| failure.clone())
        });
        match failure {
            Some(failure) => {
                self.fail_with(vertex, failure);
                true
            }
            None => false,
        }
    }
}
