//! Keeping what was found or made: keys, links, records, slots.

use super::graph::{Done, Exec, Freshness, Key, Known, Linked, OutputRef, State, TaskId, VertexId};
use super::plan::{content_known, link_from};
use super::{Core, Effect, Owner};
use crate::context::JobId;
use crate::event::CachedBy;
use crate::job::Origin;
use crate::key::{KeyId, LinkFrom, OutputKey, derived};
use crate::keystore::{RecordRef, StoreId};
use crate::miss::{SlotInput, SlotRecord};
use crate::op::KeyLife;

impl<R: Clone, O: Clone> Core<R, O> {
    /// Returns all keys of each input.
    pub(super) fn known(&self, vertex: VertexId) -> Vec<Vec<Known>> {
        let Some(node) = self.nodes.get(&vertex) else { return Vec::new() };
        let map = node.cache_map();
        let of = |(at, input): (usize, &super::graph::Input)| {
            let selector = map.and_then(|map| map.deps.get(at)).and_then(|dep| dep.selector);
            let out = self.nodes.get(&input.edge.vertex).and_then(|dep| dep.outputs.get(&input.edge.index));
            let mut known: Vec<Known> =
                out.into_iter().flat_map(|out| out.all_keys()).map(|key| Known { key, selector }).collect();
            known.extend(content_known(&input.content));
            known
        };
        node.inputs.iter().enumerate().map(of).collect()
    }

    /// Returns what a slot is to remember of a vertex.
    pub(super) fn slot_record(&self, vertex: VertexId) -> Option<SlotRecord> {
        let node = self.nodes.get(&vertex)?;
        let map = node.cache_map()?;
        let inputs = node.inputs.iter().map(|input| {
            let dep = self.nodes.get(&input.edge.vertex);
            let out = dep.and_then(|dep| dep.outputs.get(&input.edge.index));
            let mut keys: Vec<KeyId> = out.into_iter().flat_map(|out| out.all_keys()).map(|key| key.id).collect();
            keys.sort_unstable();
            let name = dep.and_then(|dep| dep.view()).map_or_else(String::new, |view| view.name.to_string());
            SlotInput { name, keys, content: input.content.value().copied().flatten() }
        });
        let inputs = inputs.collect();
        let keys = node.outputs.values().flat_map(|out| out.all_keys()).map(|key| key.id).collect();
        let name = node.view().map_or_else(String::new, |view| view.name.to_string());
        Some(SlotRecord { name, op: map.record.clone(), inputs, keys })
    }

    /// Keeps a result of the finished execution, and completes the output when it is saved.
    pub(super) fn save_result(&mut self, output: OutputRef, origin: Origin) {
        let Some(node) = self.nodes.get_mut(&output.vertex) else { return };
        let (Some(map), Some(op)) = (node.cache_map().cloned(), node.output_key(output.index)) else { return };
        let Exec::Done(made) = &node.exec else { return };
        let Some(result) = made.results.get(output.index as usize).cloned() else { return };
        let known = made.known.clone();
        let Some(out) = node.outputs.get_mut(&output.index) else { return };
        if !matches!(out.state, State::Open) {
            return;
        }
        let key = node_key(op, map.life, &known, &out.keys);
        out.made = Some(key);
        let done = Done { result: result.clone(), origin, record: None };
        match key.life {
            KeyLife::Run => self.complete(output, done),
            KeyLife::Stored => {
                self.save(output, key.id, op, links(op, &known), done);
                self.keep_ancestors(output.vertex);
            }
        }
    }

    fn save(&mut self, output: OutputRef, key: KeyId, op: OutputKey, links: Vec<LinkFrom>, done: Done<R>) {
        let task = self.task(Owner::Save(output));
        let (result, loaded) = (done.result.clone(), done.record.clone());
        if let Some(out) = self.nodes.get_mut(&output.vertex).and_then(|node| node.outputs.get_mut(&output.index)) {
            out.linked = Linked::Main;
            out.state = State::Saving(done);
        }
        self.effects.push(Effect::Save { task, key, op, links, result, loaded });
    }

    pub(super) fn saved(&mut self, task: TaskId, record: Option<RecordRef>) {
        let Some(Owner::Save(output)) = self.tasks.remove(&task) else { return };
        let Some(node) = self.nodes.get_mut(&output.vertex) else { return };
        let operation = node.cache_map().map(|map| map.digest);
        let Some(out) = node.outputs.get_mut(&output.index) else { return };
        let State::Saving(mut done) = std::mem::replace(&mut out.state, State::Open) else { return };
        done.record = record.or(done.record);
        if let (Some(operation), Some(_)) = (operation, &done.record) {
            self.saves += 1;
            self.saved_ops.insert(operation, self.saves);
        }
        self.complete(output, done);
    }

    /// Keeps a loaded result: one from an imported cache becomes a record of the main store, and keys by which it was
    /// not found before are linked.
    pub(super) fn keep_loaded(&mut self, output: OutputRef, done: Done<R>) {
        let known = self.known(output.vertex);
        let Some(node) = self.nodes.get_mut(&output.vertex) else { return };
        let (Some(op), Some(record)) = (node.output_key(output.index), done.record.clone()) else { return };
        if record.store == StoreId::MAIN {
            self.complete(output, done);
            self.link_missing(output);
        } else {
            self.save(output, record.key, op, links(op, &known), done);
        }
        self.keep_ancestors(output.vertex);
    }

    /// Takes the result of the vertex it followed, without saving it once more; returns whether that was possible.
    pub(super) fn share_result(&mut self, output: OutputRef) -> bool {
        let Some(node) = self.nodes.get(&output.vertex) else { return false };
        let Exec::Done(made) = &node.exec else { return false };
        let (known, op) = (made.known.clone(), node.output_key(output.index));
        let leader = self.nodes.get(&made.origin).and_then(|leader| leader.outputs.get(&output.index));
        let (Some(leader), Some(op)) = (leader, op) else { return false };
        let (Some(key), State::Saving(done) | State::Complete(done)) = (leader.made, &leader.state) else {
            return false;
        };
        let done = Done { result: done.result.clone(), origin: Origin::Shared, record: done.record.clone() };
        if let Some(out) = self.nodes.get_mut(&output.vertex).and_then(|node| node.outputs.get_mut(&output.index)) {
            out.made = Some(key);
            out.linked = Linked::Main;
        }
        if key.life == KeyLife::Stored {
            self.effects.push(Effect::Link { key: key.id, op, links: links(op, &known) });
            self.keep_ancestors(output.vertex);
        }
        self.complete(output, done);
        true
    }

    /// Makes an output complete.
    fn complete(&mut self, output: OutputRef, done: Done<R>) {
        let vertex = output.vertex;
        let origin = done.origin;
        let Some(node) = self.nodes.get_mut(&vertex) else { return };
        let plain = node.fresh == Freshness::Plain;
        let Some(out) = node.outputs.get_mut(&output.index) else { return };
        // What a vertex made afresh is not looked up by: its key may be that of an older result.
        if let (true, Some(made)) = (plain, out.made)
            && !out.keys.contains(&made)
        {
            out.keys.push(made);
        }
        out.state = State::Complete(done);
        let jobs: Vec<JobId> = node.wanted.iter().copied().collect();
        if origin == Origin::Loaded {
            self.cover(vertex, &jobs);
            self.report_cached(vertex, &jobs, CachedBy::Record);
        }
        self.remember(vertex, &jobs);
        self.touch(vertex);
    }

    /// Updates the slots by which these jobs know a vertex.
    pub(super) fn remember(&mut self, vertex: VertexId, jobs: &[JobId]) {
        let Some(node) = self.nodes.get(&vertex) else { return };
        let slots: std::collections::BTreeSet<_> =
            jobs.iter().filter_map(|job| node.jobs.get(job)?.slot.clone()).collect();
        if slots.is_empty() {
            return;
        }
        let Some(record) = self.slot_record(vertex) else { return };
        for slot in slots {
            self.effects.push(Effect::Remember { slot, record: record.clone() });
        }
    }

    /// Links the keys of an output's inputs to its own keys where the main store does not have that.
    fn link_missing(&mut self, output: OutputRef) {
        let known = self.known(output.vertex);
        let Some(node) = self.nodes.get_mut(&output.vertex) else { return };
        let Some(op) = node.output_key(output.index) else { return };
        let Some(out) = node.outputs.get_mut(&output.index) else { return };
        out.linked = Linked::Main;
        let mut links_of: Vec<(KeyId, Vec<LinkFrom>)> = Vec::new();
        for key in out.keys.iter().filter(|key| key.life == KeyLife::Stored) {
            let mut missing = Vec::new();
            for (input, known) in known.iter().enumerate() {
                let has = out.probes.get(input).and_then(|probe| probe.matches.get(&key.id));
                let stored = known.iter().filter(|known| known.key.life == KeyLife::Stored);
                let lacking = stored.filter(|known| !has.is_some_and(|has| has.contains(known)));
                missing.extend(lacking.map(|known| link_from(op, input, known)));
            }
            if !missing.is_empty() {
                links_of.push((key.id, missing));
            }
        }
        for (key, links) in links_of {
            self.effects.push(Effect::Link { key, op, links });
        }
    }

    /// Sees to it that the main store leads from roots to a vertex: what was found through an imported cache must be
    /// found without it next time.
    fn keep_ancestors(&mut self, vertex: VertexId) {
        let mut stack = vec![vertex];
        while let Some(vertex) = stack.pop() {
            let Some(node) = self.nodes.get(&vertex) else { continue };
            let inputs: Vec<OutputRef> = node.inputs.iter().map(|input| input.edge).collect();
            for input in inputs {
                let out = self.nodes.get(&input.vertex).and_then(|node| node.outputs.get(&input.index));
                if out.is_some_and(|out| out.linked == Linked::Unknown && !out.keys.is_empty()) {
                    self.link_missing(input);
                    stack.push(input.vertex);
                }
            }
        }
    }
}

/// Returns the node to save a result on: one that was found, else the one that its keys derive.
fn node_key(op: OutputKey, life: KeyLife, known: &[Vec<Known>], found: &[Key]) -> Key {
    if let Some(key) = found.iter().find(|key| key.life == KeyLife::Stored) {
        return *key;
    }
    if known.is_empty() {
        return Key { id: op.root(), life };
    }
    let stored = |known: &Vec<Known>| known.iter().any(|known| known.key.life == KeyLife::Stored);
    let life = if life == KeyLife::Stored && known.iter().all(stored) { KeyLife::Stored } else { KeyLife::Run };
    let used = known.iter().map(|known| {
        let used = known.iter().filter(|known| life == KeyLife::Run || known.key.life == KeyLife::Stored);
        used.map(|known| (known.key.id, known.selector)).collect()
    });
    Key { id: derived(op, &used.collect::<Vec<_>>()), life }
}

/// Returns the links from all stored keys of the inputs.
fn links(op: OutputKey, known: &[Vec<Known>]) -> Vec<LinkFrom> {
    let of = |(input, known): (usize, &Vec<Known>)| {
        let stored = known.iter().filter(|known| known.key.life == KeyLife::Stored);
        stored.map(|known| link_from(op, input, known)).collect::<Vec<_>>()
    };
    known.iter().enumerate().flat_map(of).collect()
}
