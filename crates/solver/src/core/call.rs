//! Calls that find out keys and load records: starting them, and taking their outcomes.

use std::sync::Arc;

use kiln_stdx::{Digest, ErrorClass};

use super::event::{Answer, LoadOutcome};
use super::graph::{Call, Done, Key, Known, OutputRef, State, TaskId, VertexId};
use super::plan::link_from;
use super::{Core, Effect, Owner};
use crate::event::VertexChange;
use crate::job::Origin;
use crate::keystore::{RecordRef, StoreId};
use crate::miss::Gone;
use crate::op::{CacheMap, KeyLife, OpError, OpErrorKind};

impl<R: Clone, O: Clone> Core<R, O> {
    pub(super) fn start_map(&mut self, vertex: VertexId) {
        let Some(node) = self.nodes.get(&vertex) else { return };
        let (Call::Idle, Some(view)) = (&node.map, node.view()) else { return };
        let (op, root) = (view.op.clone(), node.inputs.is_empty());
        let task = self.task(Owner::Map(vertex));
        if let Some(node) = self.nodes.get_mut(&vertex) {
            node.map = Call::Running(task);
        }
        if root {
            self.report_all(vertex, &VertexChange::Resolving);
        }
        self.effects.push(Effect::CacheMap { task, vertex, op });
    }

    pub(super) fn mapped(&mut self, task: TaskId, outcome: Result<CacheMap, OpError>) {
        let Some(Owner::Map(vertex)) = self.tasks.remove(&task) else { return };
        let Some(node) = self.nodes.get_mut(&vertex) else { return };
        let stopping = matches!(node.map, Call::Stopping(_));
        node.map = Call::Idle;
        match outcome {
            Ok(map) if map.deps.len() == node.inputs.len() => node.map = Call::Done(Arc::new(map)),
            Ok(map) => {
                let text = format!("cache map has {} inputs, the vertex {}", map.deps.len(), node.inputs.len());
                self.fail(vertex, OpError::new(ErrorClass::Bug, text));
            }
            Err(_) if stopping => {}
            Err(error) => self.call_failed(vertex, error),
        }
        self.touch(vertex);
    }

    pub(super) fn start_content(&mut self, vertex: VertexId, input: usize) {
        let Some(node) = self.nodes.get(&vertex) else { return };
        let Some(Call::Idle) = node.inputs.get(input).map(|input| &input.content) else { return };
        let (Some(view), Some(result)) = (node.view(), self.result(node.inputs[input].edge)) else { return };
        let (op, result) = (view.op.clone(), result.clone());
        let task = self.task(Owner::Content(vertex, input));
        if let Some(node) = self.nodes.get_mut(&vertex) {
            node.inputs[input].content = Call::Running(task);
        }
        self.effects.push(Effect::ContentKey { task, vertex, op, input, result });
    }

    pub(super) fn content_keyed(&mut self, task: TaskId, outcome: Result<Option<Digest>, OpError>) {
        let Some(Owner::Content(vertex, input)) = self.tasks.remove(&task) else { return };
        let Some(content) =
            self.nodes.get_mut(&vertex).and_then(|node| node.inputs.get_mut(input)).map(|input| &mut input.content)
        else {
            return;
        };
        let stopping = match content {
            Call::Running(running) if *running == task => false,
            Call::Stopping(running) if *running == task => true,
            // The vertex was loaded anew with other inputs meanwhile.
            Call::Idle | Call::Running(_) | Call::Stopping(_) | Call::Done(_) => return,
        };
        *content = Call::Idle;
        match outcome {
            Ok(digest) => {
                *content = Call::Done(digest);
                self.nudge(vertex, true);
                return;
            }
            Err(_) if stopping => {}
            Err(error) => self.call_failed(vertex, error),
        }
        self.touch(vertex);
    }

    /// Fails a vertex, unless its call may be made again with the session of another job.
    pub(super) fn call_failed(&mut self, vertex: VertexId, error: OpError) {
        if !self.may_retry(vertex, &error) {
            self.fail(vertex, error);
        }
    }

    /// Returns whether another job's session may do what the lost one did not. Each job gives one more try.
    pub(super) fn may_retry(&mut self, vertex: VertexId, error: &OpError) -> bool {
        let Some(node) = self.nodes.get_mut(&vertex) else { return false };
        let others = node.left.union(&node.wanted).count().saturating_sub(1);
        if error.kind() != OpErrorKind::SessionLost || node.lost >= others || node.jobs.is_empty() {
            return false;
        }
        node.lost += 1;
        true
    }

    pub(super) fn start_query(&mut self, output: OutputRef, asks: Vec<(usize, Known)>) {
        let Some(node) = self.nodes.get(&output.vertex) else { return };
        let Some(op) = node.output_key(output.index) else { return };
        let questions = asks.iter().map(|(input, known)| link_from(op, *input, known)).collect();
        let stores = self.stores(output.vertex);
        let task = self.task(Owner::Query(output));
        if let Some(out) = self.nodes.get_mut(&output.vertex).and_then(|node| node.outputs.get_mut(&output.index)) {
            for (input, known) in &asks {
                out.probes[*input].asked.insert(*known);
            }
            out.query = Some((task, asks));
        }
        self.effects.push(Effect::Query { task, stores, asks: questions });
    }

    pub(super) fn queried(&mut self, task: TaskId, answers: &[Answer]) {
        let Some(Owner::Query(output)) = self.tasks.remove(&task) else { return };
        let Some(out) = self.nodes.get_mut(&output.vertex).and_then(|node| node.outputs.get_mut(&output.index)) else {
            return;
        };
        let Some((_, asks)) = out.query.take() else { return };
        for answer in answers {
            let Some((input, known)) = asks.get(answer.ask) else { continue };
            let leads = out.probes[*input].matches.entry(answer.key).or_default();
            if answer.store == StoreId::MAIN {
                leads.insert(*known);
            }
        }
        self.touch(output.vertex);
    }

    pub(super) fn start_records(&mut self, output: OutputRef, keys: &[Key]) {
        let stores = self.stores(output.vertex);
        let task = self.task(Owner::Records(output));
        let max_age = self.nodes.get(&output.vertex).and_then(|node| node.max_age);
        if let Some(out) = self.nodes.get_mut(&output.vertex).and_then(|node| node.outputs.get_mut(&output.index)) {
            out.records.asked = out.keys.len();
            out.records.task = Some(task);
        }
        let keys = keys.iter().filter(|key| key.life == KeyLife::Stored).map(|key| key.id).collect();
        self.effects.push(Effect::Records { task, stores, keys, max_age });
    }

    pub(super) fn records_found(&mut self, task: TaskId, records: Vec<RecordRef>, gone: Option<Gone>) {
        let Some(Owner::Records(output)) = self.tasks.remove(&task) else { return };
        let Some(out) = self.nodes.get_mut(&output.vertex).and_then(|node| node.outputs.get_mut(&output.index)) else {
            return;
        };
        out.records.task = None;
        if out.gone.is_none() {
            out.gone = gone;
        }
        for record in records {
            if !out.records.tried.contains(&record) && !out.records.found.contains(&record) {
                out.records.found.push_back(record);
            }
        }
        self.touch(output.vertex);
    }

    pub(super) fn start_load(&mut self, output: OutputRef, record: RecordRef) {
        let task = self.task(Owner::Load(output));
        if let Some(out) = self.nodes.get_mut(&output.vertex).and_then(|node| node.outputs.get_mut(&output.index)) {
            out.state = State::Loading(task, record.clone());
        }
        self.effects.push(Effect::Load { task, vertex: output.vertex, record });
    }

    pub(super) fn record_loaded(&mut self, task: TaskId, outcome: LoadOutcome<R>) {
        let Some(Owner::Load(output)) = self.tasks.remove(&task) else { return };
        let Some(out) = self.nodes.get_mut(&output.vertex).and_then(|node| node.outputs.get_mut(&output.index)) else {
            return;
        };
        let State::Loading(_, record) = std::mem::replace(&mut out.state, State::Open) else { return };
        match outcome {
            LoadOutcome::Hit(result) => {
                self.keep_loaded(output, Done { result, origin: Origin::Loaded, record: Some(record) });
            }
            LoadOutcome::Gone(why) => {
                out.gone = Some(why.clone());
                out.records.tried.insert(record.clone());
                self.effects.push(Effect::Forget { record, why });
            }
            LoadOutcome::Failed(detail) => {
                out.gone = Some(Gone::Damaged { detail });
                out.records.tried.insert(record);
            }
        }
        self.touch(output.vertex);
    }

    /// Returns the result of an output that is complete.
    pub(super) fn result(&self, output: OutputRef) -> Option<&R> {
        let out = self.nodes.get(&output.vertex)?.outputs.get(&output.index)?;
        out.done().map(|done| &done.result)
    }
}
