//! What is known of a running build: one model, fed with events, read by every view.
//!
//! A *step* is what people see: a vertex, or a group of vertices shown as one. Steps keep the index they got when they
//! were first heard of. [`ProgressState::apply`] returns what changed, in order, so that a view needs no bookkeeping of
//! its own beyond what it has drawn.
//!
//! Invariant: nothing here reads a clock; the present is an argument.

use std::collections::{BTreeMap, HashMap};

use kiln_session::progress::{Progress, StatusProgress, VertexProgress, WarningProgress};

use super::event::Stamp;
use super::interval::Intervals;
use super::tail::{Keep, LogTail};

/// Index of a step in [`ProgressState::steps`].
pub type StepId = usize;

/// Something a view may want to draw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The step started, ended, or changed its name, error or cached mark.
    Step(StepId),
    /// The status with this index in the step changed.
    Status(StepId, usize),
    /// The step has one more warning.
    Warning(StepId),
    /// The step wrote output; the time is since the step's start, in nanoseconds.
    Log(StepId, i64, Vec<u8>),
}

/// What is known of one step.
#[derive(Debug)]
pub struct Step {
    /// Name shown.
    pub name: String,
    /// Error text, empty when there is none.
    pub error: String,
    /// Whether the result came from the cache.
    pub cached: bool,
    /// When it ran.
    pub intervals: Intervals,
    /// Parts, in the order in which they started.
    pub statuses: Vec<StatusProgress>,
    /// Warnings, in the order of arrival.
    pub warnings: Vec<WarningProgress>,
    /// Why it ran, a line for each vertex, where that was asked for.
    pub reasons: Vec<String>,
    /// The last lines of its output, kept for an error.
    pub tail: LogTail,
    /// A step that is not shown: a group of which only weak members have started.
    pub hidden: bool,
    members: BTreeMap<String, VertexProgress>,
}

impl Step {
    fn new(name: &str, hidden: bool, keep: Keep) -> Step {
        Step {
            name: name.to_owned(),
            error: String::new(),
            cached: false,
            intervals: Intervals::default(),
            statuses: Vec::new(),
            warnings: Vec::new(),
            reasons: Vec::new(),
            tail: LogTail::new(keep),
            hidden,
            members: BTreeMap::new(),
        }
    }

    /// Returns whether it has started and no run of it is open.
    pub fn is_completed(&self) -> bool {
        self.intervals.completed().is_some()
    }

    /// Returns whether it has started and not ended.
    pub fn is_running(&self) -> bool {
        self.intervals.is_open()
    }

    /// Returns whether it ended because the build was cancelled.
    pub fn is_canceled(&self) -> bool {
        self.error.ends_with("context canceled")
    }

    /// Returns whether it failed for a reason of its own.
    pub fn is_failed(&self) -> bool {
        !self.error.is_empty() && !self.is_canceled()
    }

    /// Recomputes a group from its members; returns whether it looks different.
    fn refresh_group(&mut self) -> bool {
        let before = (self.cached, self.error.clone(), self.hidden);
        let mut changed = false;
        self.cached = self.members.values().all(|m| m.cached);
        for member in self.members.values() {
            if let Some(start) = member.started {
                changed |= self.intervals.record(start.into(), member.completed.map(Stamp::from));
                if member.progress_group.as_ref().is_some_and(|g| !g.weak) {
                    self.hidden = false;
                }
            }
            if !member.error.is_empty() {
                self.hidden = false;
                if self.error.is_empty() {
                    self.error = member.error.clone();
                }
            }
        }
        changed || before != (self.cached, self.error.clone(), self.hidden)
    }
}

/// The model of a build's progress.
#[derive(Debug)]
pub struct ProgressState {
    keep: Keep,
    steps: Vec<Step>,
    by_vertex: HashMap<String, StepId>,
    by_group: HashMap<String, StepId>,
    order: Vec<StepId>,
    clock_offset: Option<i64>,
    first_started: Option<Stamp>,
}

impl ProgressState {
    /// Returns the state of a build of which nothing is known.
    pub fn new(keep: Keep) -> ProgressState {
        ProgressState {
            keep,
            steps: Vec::new(),
            by_vertex: HashMap::new(),
            by_group: HashMap::new(),
            order: Vec::new(),
            clock_offset: None,
            first_started: None,
        }
    }

    /// Returns a step.
    pub fn step(&self, id: StepId) -> &Step {
        &self.steps[id]
    }

    /// Returns the visible steps that have started, in the order in which they did.
    pub fn started(&self) -> impl Iterator<Item = (StepId, &Step)> {
        self.order.iter().map(|&id| (id, &self.steps[id])).filter(|(_, s)| !s.hidden)
    }

    /// Returns the warnings of all steps, each once, in the order of the steps.
    pub fn warnings(&self) -> Vec<&WarningProgress> {
        let mut seen = Vec::new();
        for warning in self.steps.iter().flat_map(|s| &s.warnings) {
            if !seen.contains(&warning) {
                seen.push(warning);
            }
        }
        seen
    }

    /// Returns name and reasons of the steps that ran, in the order in which they did.
    pub fn reasons(&self) -> Vec<(&str, &[String])> {
        let told = self.started().filter(|(_, step)| !step.reasons.is_empty());
        told.map(|(_, step)| (step.name.as_str(), step.reasons.as_slice())).collect()
    }

    /// Returns how many of the visible steps have completed, and how many there are.
    pub fn counts(&self) -> (usize, usize) {
        let visible = self.steps.iter().filter(|s| !s.hidden);
        (visible.clone().filter(|s| s.is_completed()).count(), visible.count())
    }

    /// Returns the moment on the engine's clock that corresponds to `now` on this machine's clock. The clocks may
    /// differ (a remote engine); their difference is taken from the first step's start.
    pub fn engine_time(&self, now: Stamp) -> Stamp {
        now.shifted(-self.clock_offset.unwrap_or(0))
    }

    /// Returns the start of the build on the engine's clock.
    pub fn first_start(&self) -> Option<Stamp> {
        self.first_started
    }

    /// Takes in a message of the status stream that arrived at `now`.
    pub fn apply(&mut self, news: &Progress, now: Stamp) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut groups: Vec<StepId> = Vec::new();
        for vertex in &news.vertexes {
            self.note_start(vertex, now);
            match &vertex.progress_group {
                Some(group) => {
                    let id = self.group(&group.id, &group.name);
                    self.by_vertex.insert(vertex.digest.clone(), id);
                    self.steps[id].members.insert(vertex.digest.clone(), vertex.clone());
                    if !groups.contains(&id) {
                        groups.push(id);
                    }
                }
                None => changes.extend(self.apply_vertex(vertex).map(Change::Step)),
            }
        }
        for id in groups {
            let changed = self.steps[id].refresh_group();
            if !self.steps[id].hidden && changed {
                self.show(id);
                changes.push(Change::Step(id));
            }
        }
        changes.extend(news.statuses.iter().filter_map(|s| self.apply_status(s)));
        for warning in &news.warnings {
            if let Some(&id) = self.by_vertex.get(&warning.vertex) {
                self.steps[id].warnings.push(warning.clone());
                changes.push(Change::Warning(id));
            }
        }
        for reason in &news.why {
            if let Some(&id) = self.by_vertex.get(&reason.vertex) {
                self.steps[id].reasons.push(reason.text.clone());
                changes.push(Change::Step(id));
            }
        }
        for log in &news.logs {
            let Some(&id) = self.by_vertex.get(&log.vertex) else { continue };
            let step = &mut self.steps[id];
            let since =
                step.intervals.latest_start().map_or(0, |start| (Stamp::from(log.timestamp).0 - start.0).max(0));
            step.tail.push(since, &log.data);
            changes.push(Change::Log(id, since, log.data.clone()));
        }
        changes
    }

    fn note_start(&mut self, vertex: &VertexProgress, now: Stamp) {
        let Some(started) = vertex.started.map(Stamp::from) else { return };
        if self.first_started.is_none() {
            self.first_started = Some(started);
            self.clock_offset = Some(now.0 - started.0);
        }
    }

    fn apply_vertex(&mut self, vertex: &VertexProgress) -> Option<StepId> {
        let id = match self.by_vertex.get(&vertex.digest) {
            Some(&id) => id,
            None => {
                self.steps.push(Step::new(&vertex.name, false, self.keep));
                self.by_vertex.insert(vertex.digest.clone(), self.steps.len() - 1);
                self.steps.len() - 1
            }
        };
        let step = &mut self.steps[id];
        // The first message of a vertex has no start; a late copy of it says nothing new.
        let started = vertex.started?;
        let mut changed = step.intervals.record(started.into(), vertex.completed.map(Stamp::from));
        changed |= step.name != vertex.name || step.cached != vertex.cached || step.error != vertex.error;
        step.name.clone_from(&vertex.name);
        step.error.clone_from(&vertex.error);
        step.cached = vertex.cached;
        self.show(id);
        changed.then_some(id)
    }

    fn apply_status(&mut self, status: &StatusProgress) -> Option<Change> {
        let id = *self.by_vertex.get(&status.vertex)?;
        let statuses = &mut self.steps[id].statuses;
        let index = match statuses.iter().position(|s| s.id == status.id) {
            Some(index) => {
                statuses[index] = status.clone();
                index
            }
            None => {
                statuses.push(status.clone());
                statuses.len() - 1
            }
        };
        Some(Change::Status(id, index))
    }

    fn group(&mut self, group: &str, name: &str) -> StepId {
        if let Some(&id) = self.by_group.get(group) {
            return id;
        }
        self.steps.push(Step::new(name, true, self.keep));
        let id = self.steps.len() - 1;
        self.by_group.insert(group.to_owned(), id);
        id
    }

    fn show(&mut self, id: StepId) {
        if !self.order.contains(&id) {
            self.order.push(id);
        }
    }
}

#[cfg(test)]
mod tests;
