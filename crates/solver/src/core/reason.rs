//! Tells why a vertex is executed, by comparing its key with the one its slot remembers.

use std::collections::BTreeSet;

use super::Core;
use super::graph::{Exec, Freshness, Node, VertexId};
use crate::key::KeyRecord;
use crate::miss::{FieldChange, MissReason, Renamed, SlotInput, SlotRecord};

impl<R: Clone, O: Clone> Core<R, O> {
    /// Returns why a vertex keyed as `now` is executed, when its slot remembers `old`.
    pub(super) fn miss_reason(&self, vertex: VertexId, now: &SlotRecord, old: Option<&SlotRecord>) -> MissReason {
        let Some(node) = self.nodes.get(&vertex) else { return MissReason::NoRecord };
        if let Some(gone) = node.outputs.values().find_map(|out| out.gone.clone()) {
            return gone.into();
        }
        let Some(old) = old else { return MissReason::NoRecord };
        let changes = field_changes(&old.op, &now.op);
        if !changes.is_empty() {
            return MissReason::OpChanged { changes, renamed: renamed(old, now) };
        }
        if old.inputs.len() != now.inputs.len() {
            let count = |record: &SlotRecord| Some(record.inputs.len().to_string());
            let change = FieldChange { field: "inputs".to_owned(), old: count(old), new: count(now) };
            return MissReason::OpChanged { changes: vec![change], renamed: renamed(old, now) };
        }
        let pairs = old.inputs.iter().zip(&now.inputs).enumerate();
        for (at, (old, new)) in pairs {
            if let Some(reason) = self.input_reason(vertex, at, old, new) {
                return reason;
            }
        }
        MissReason::Evicted { eviction: None }
    }

    /// Returns what differs in one input.
    fn input_reason(&self, vertex: VertexId, at: usize, old: &SlotInput, new: &SlotInput) -> Option<MissReason> {
        let edge = self.nodes.get(&vertex)?.inputs.get(at)?.edge;
        let dep = self.nodes.get(&edge.vertex)?;
        let (input, name) = (at as u32, new.name.clone());
        if let (Some(old), Some(new)) = (old.content, new.content) {
            let (vertex, cause) = (dep.digest, cause_of(dep));
            let reason = MissReason::ContentChanged { input, vertex, name, old, new, difference: None, cause };
            return (old != new).then_some(reason);
        }
        // An input that was made afresh may have the same key and yet be another one.
        let afresh = dep.fresh != Freshness::Plain && matches!(dep.exec, Exec::Done(_));
        if !afresh && old.keys.iter().any(|key| new.keys.contains(key)) {
            return None;
        }
        let was = (old.name != name).then(|| old.name.clone());
        Some(MissReason::InputChanged { input, vertex: dep.digest, name, was, cause: cause_of(dep) })
    }
}

/// Returns why an input was executed, if it was.
fn cause_of<R, O>(dep: &Node<R, O>) -> Option<Box<MissReason>> {
    let executed = matches!(dep.exec, Exec::Done(_));
    dep.miss.as_ref().filter(|_| executed).map(|miss| Box::new(MissReason::clone(miss)))
}

fn renamed(old: &SlotRecord, now: &SlotRecord) -> Option<Renamed> {
    let (old, new) = (old.name.clone(), now.name.clone());
    (!old.is_empty() && old != new).then_some(Renamed { old, new })
}

/// Returns the fields that differ, by name.
fn field_changes(old: &KeyRecord, new: &KeyRecord) -> Vec<FieldChange> {
    let names: BTreeSet<&String> = old.0.keys().chain(new.0.keys()).collect();
    let differing = names.into_iter().filter(|name| old.0.get(*name) != new.0.get(*name));
    let change = |name: &String| FieldChange {
        field: name.clone(),
        old: old.0.get(name).cloned(),
        new: new.0.get(name).cloned(),
    };
    differing.map(change).collect()
}
