//! Vertices of very many inputs: the work for them grows with their number, not with its square.

use std::collections::VecDeque;
use std::sync::Arc;

use kiln_stdx::Digest;

use super::{Core, Effect, Event, Spec, Ticket};
use crate::context::JobId;
use crate::key::KeyRecord;
use crate::keystore::StoreId;
use crate::op::{CacheMap, DepMap, KeyLife};
use crate::vertex::{Bound, CacheUse, Edge, VertexDigest};

fn edge(of: usize) -> Edge {
    Edge { vertex: VertexDigest(Digest::of(format!("vertex {of}"))), index: 0 }
}

fn spec(of: usize, inputs: Vec<Edge>) -> Spec<usize> {
    let digest = edge(of).vertex;
    Spec {
        digest,
        inputs,
        op: of,
        name: Arc::from(""),
        cache: CacheUse::Use,
        max_age: None,
        slot: None,
        bound: Bound::Limited,
    }
}

/// Solves a vertex of so many inputs, each a vertex to be executed, with an answer at a time. Returns how many inputs were
/// gone over.
fn looks(inputs: usize) -> usize {
    let (job, ticket) = (JobId(1), Ticket(1));
    let mut core: Core<usize, usize> = Core::new(64);
    core.step([Event::Open { job, stores: vec![StoreId::MAIN], apart: false }]);
    let mut specs: Vec<_> = (0..inputs).map(|n| spec(n, Vec::new())).collect();
    specs.push(spec(inputs, (0..inputs).map(edge).collect()));
    core.load(job, specs).unwrap();
    let mut todo = VecDeque::from(core.step([Event::Want { job, ticket, edge: edge(inputs) }]));
    let mut done = None;
    while let Some(effect) = todo.pop_front() {
        let event = match effect {
            Effect::CacheMap { task, op, .. } => {
                let deps = vec![DepMap { selector: None, content: true }; if op == inputs { inputs } else { 0 }];
                let (digest, life) = (Digest::of(format!("operation {op}")), KeyLife::Stored);
                Event::Mapped {
                    task,
                    outcome: Ok(CacheMap { digest, also: Vec::new(), record: KeyRecord::new(), deps, life }),
                }
            }
            Effect::ContentKey { task, input, .. } => {
                Event::ContentKeyed { task, outcome: Ok(Some(Digest::of(format!("content {input}")))) }
            }
            Effect::Query { task, .. } => Event::Queried { task, answers: Vec::new() },
            Effect::Records { task, .. } => Event::RecordsFound { task, records: Vec::new(), gone: None },
            Effect::Execute { task, op, inputs: given, .. } => {
                assert_eq!(given.len(), if op == inputs { inputs } else { 0 });
                Event::Executed { task, outcome: Ok(vec![op]) }
            }
            Effect::Save { task, .. } => Event::Saved { task, record: None },
            Effect::Reply { outcome, .. } => {
                done = outcome.ok().map(|solved| solved.result);
                continue;
            }
            _ => continue,
        };
        todo.extend(core.step([event]));
    }
    assert_eq!(done, Some(inputs));
    core.audit().unwrap();
    core.looks
}

#[test]
fn the_work_grows_with_the_number_of_inputs() {
    let (few, many) = (looks(500), looks(4_000));
    assert!(many < 8 * few + 8 * few / 4, "{few} for 500 inputs, {many} for 4000");
}
