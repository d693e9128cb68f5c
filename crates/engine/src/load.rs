//! From a checked LLB graph to the solver's vertices: every node gets the operation that keys and runs it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kiln_llb::op::MountKind;
use kiln_llb::{Graph, Op as LlbOp, Vertex as LlbVertex, attr};
use kiln_solver::{Bound, CacheUse, Edge, MaxAge, Op, StepSlot, Vertex, VertexDigest, VertexOptions};
use kiln_store::ImmutableRef;

use crate::build::{BuildContext, CacheMounts};
use crate::error::EngineError;
use crate::ops;
use crate::parts::Parts;

/// Returns the vertices of `graph`, ready for the solver.
///
/// # Errors
/// A step asks for what the client or the engine does not allow, or a source names an unknown scheme.
pub fn vertices(
    parts: &Arc<Parts>,
    graph: &Graph,
    build: &BuildContext,
    slots: Option<&str>,
) -> Result<Vec<Vertex<ImmutableRef>>, EngineError> {
    let mut ordinals = BTreeMap::<String, usize>::new();
    graph
        .vertices()
        .iter()
        .map(|vertex| {
            check_entitlements(parts, vertex, build)?;
            let slot = slots.and_then(|prefix| slot(prefix, &vertex.name, &mut ordinals));
            Ok(Vertex {
                digest: VertexDigest(vertex.digest),
                inputs: vertex.inputs.iter().map(|e| edge(*e)).collect(),
                op: operation(parts, vertex)?,
                name: vertex.name.clone(),
                options: VertexOptions {
                    cache: if ignores_cache(vertex, build) { CacheUse::Ignore } else { CacheUse::Use },
                    max_age: max_age(vertex, build),
                    slot,
                    // A source waits for the network and a nested build for other vertices: neither may hold a slot
                    // that a step needs.
                    bound: match vertex.op {
                        LlbOp::Exec(_) => Bound::Limited,
                        _ => Bound::Unlimited,
                    },
                },
            })
        })
        .collect()
}

/// Tells whether cached results of a vertex are not to be used. Whoever empties cache mounts does not trust what was made
/// with them either.
fn ignores_cache(vertex: &LlbVertex, build: &BuildContext) -> bool {
    let has_cache_mount = || match &vertex.op {
        LlbOp::Exec(exec) => exec.mounts.iter().any(|mount| matches!(mount.kind, MountKind::Cache { .. })),
        _ => false,
    };
    vertex.ignore_cache() || (build.settings.cache_mounts == CacheMounts::Emptied && has_cache_mount())
}

/// Returns how old a result of a step that runs a process may be: what the build says, or the step, if that is less. What
/// other operations make follows from their inputs, and sources are asked anew by every build.
fn max_age(vertex: &LlbVertex, build: &BuildContext) -> Option<MaxAge> {
    if !matches!(vertex.op, LlbOp::Exec(_)) {
        return None;
    }
    let own = vertex.metadata.description.get(attr::MAX_AGE).and_then(|seconds| seconds.parse().ok());
    bound(own, build.settings.max_age, build.started)
}

fn bound(own: Option<u64>, build: Option<u64>, started: SystemTime) -> Option<MaxAge> {
    let seconds = own.into_iter().chain(build).min()?;
    // What a build makes itself is young enough to its end.
    let begun = started.duration_since(UNIX_EPOCH).unwrap_or_default();
    let not_before = begun.saturating_sub(Duration::from_secs(seconds));
    Some(MaxAge { seconds, not_before: u64::try_from(not_before.as_nanos()).unwrap_or(u64::MAX) })
}

/// Returns the solver's edge for an edge of a definition.
pub fn edge(edge: kiln_llb::Edge) -> Edge {
    Edge { vertex: VertexDigest(edge.vertex), index: edge.index }
}

fn operation(parts: &Arc<Parts>, vertex: &Arc<LlbVertex>) -> Result<Arc<dyn Op<ImmutableRef>>, EngineError> {
    Ok(match &vertex.op {
        LlbOp::Source(source) => ops::source::operation(parts, vertex, source)?,
        LlbOp::Exec(_) => Arc::new(ops::exec::Exec::new(parts.clone(), vertex.clone())?),
        LlbOp::File(_) => Arc::new(ops::file::File::new(parts.clone(), vertex.clone())?),
        LlbOp::Merge(merge) => Arc::new(ops::merge::Merge::new(parts.clone(), merge)),
        LlbOp::Diff(diff) => Arc::new(ops::diff::Diff::new(parts.clone(), diff)),
        LlbOp::Passthrough(pass) => Arc::new(ops::passthrough::Passthrough::new(pass, vertex.inputs.len())),
        LlbOp::Build(build) => Arc::new(ops::build::Build::new(parts.clone(), build, vertex.inputs.len())),
    })
}

fn check_entitlements(parts: &Parts, vertex: &LlbVertex, build: &BuildContext) -> Result<(), EngineError> {
    let LlbOp::Exec(exec) = &vertex.op else { return Ok(()) };
    let mut wanted = Vec::new();
    if exec.security == kiln_llb::op::SecurityMode::Insecure {
        wanted.push("security.insecure");
    }
    if exec.network == kiln_llb::op::NetMode::Host {
        wanted.push("network.host");
    }
    wanted.into_iter().try_for_each(|name| check_entitlement(parts, build, name))
}

/// Checks that engine and client allow what `name` stands for.
///
/// # Errors
/// One of them does not.
pub fn check_entitlement(parts: &Parts, build: &BuildContext, name: &str) -> Result<(), EngineError> {
    let granted = |list: &[String]| list.iter().any(|e| e == name);
    if !granted(&parts.entitlements) {
        return Err(EngineError::user(format!("entitlement {name} is not allowed"))
            .with_hint(format!("start the engine with --allow-insecure-entitlement {name}")));
    }
    if !granted(&build.settings.entitlements) {
        return Err(EngineError::user(format!("entitlement {name} is not allowed"))
            .with_hint(format!("add --allow {name} to the command")));
    }
    Ok(())
}

/// Names a step across builds by the part of its name in brackets (`[build 3/7]`, without the count of steps), by how
/// many like it came before, and by its words. The form is `prefix`, stage and place in lines, NUL, words;
/// the prefix holds a NUL, too, behind the name that counts for all platforms.
fn slot(prefix: &str, name: &str, ordinals: &mut BTreeMap<String, usize>) -> Option<StepSlot> {
    let (brackets, words) = name.strip_prefix('[')?.split_once(']')?;
    let (stage, step) = match brackets.rsplit_once(' ') {
        Some((stage, step)) => (stage, step.split_once('/').map_or(step, |(number, _)| number)),
        // What the engine does for itself is nobody's step.
        None if brackets == "internal" => return None,
        // A Dockerfile of one stage has no name for it.
        None => ("", brackets.split_once('/').map_or(brackets, |(number, _)| number)),
    };
    let ordinal = ordinals.entry(format!("{stage} {step}")).or_default();
    *ordinal += 1;
    Some(StepSlot(format!("{prefix}\n{stage}\n{step} {ordinal}\0{}", words.trim_start())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_or_a_build_sets_the_age_that_counts() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(bound(None, None, at(1000)), None);
        let not_before = |own, build| bound(own, build, at(1000)).map(|age| (age.seconds, age.not_before));
        assert_eq!(not_before(Some(60), None), Some((60, 940_000_000_000)));
        assert_eq!(not_before(Some(600), Some(100)), Some((100, 900_000_000_000)));
        assert_eq!(not_before(None, Some(5000)), Some((5000, 0)));
    }

    #[test]
    fn a_step_is_known_by_place_and_words_whatever_the_count() {
        let of = |name: &str| slot("p", name, &mut BTreeMap::new()).map(|slot| slot.0);
        assert_eq!(of("[build 3/7] RUN make").as_deref(), Some("p\nbuild\n3 1\0RUN make"));
        assert_eq!(of("[build 3/7] RUN make"), of("[build 3/8] RUN make"));
        assert_eq!(of("[2/3] COPY a b").as_deref(), Some("p\n\n2 1\0COPY a b"));
        assert_eq!(of("[linux/arm64 build 3/7] RUN make").as_deref(), Some("p\nlinux/arm64 build\n3 1\0RUN make"));
        assert_eq!(of("no brackets"), None);
        let mut ordinals = BTreeMap::new();
        let mut next = || slot("p", "[1/2] RUN a", &mut ordinals).map(|slot| slot.0);
        assert_ne!(next(), next());
    }
}
