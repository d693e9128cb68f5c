//! Operations that make tiny layers, and what the parts of one life share.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use kiln_snapshot::LayerManifest;
use kiln_snapshot::layer::{FileMeta, LayerBuilder};
use kiln_solver::{CacheMap, Op, OpContext, OpError};
use kiln_stdx::Digest;
use kiln_store::{ContentSelector, ImmutableRef, LayerDraft, LayerInfo, Store, StoreError};
use parking_lot::Mutex;

use crate::Planted;
use crate::check::{self, Checks};
use crate::gate::Gate;
use crate::machine::Machine;
use crate::world::{Files, World};

/// What belongs to one life of a store.
pub struct Shared {
    pub world: Arc<World>,
    pub gate: Gate,
    pub checks: Arc<Mutex<Checks>>,
    pub machine: Arc<Machine>,
    pub store: Store,
    pub planted: Option<Planted>,
    /// What calls that are under way work on.
    pub held: Mutex<BTreeMap<u64, Vec<ImmutableRef>>>,
}

/// Holds the inputs of a call until it is dropped.
struct Holding<'a>(&'a Shared, u64);

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.0.held.lock().remove(&self.1);
    }
}

impl Shared {
    fn hold(&self, refs: &[ImmutableRef]) -> Holding<'_> {
        let mut held = self.held.lock();
        let id = held.keys().next_back().map_or(0, |last| last + 1);
        held.insert(id, refs.to_vec());
        Holding(self, id)
    }
}

pub struct SimOp {
    pub sim: Arc<Shared>,
    pub def: usize,
}

/// A layer that is not committed.
struct Draft {
    draft: LayerDraft,
    manifest: LayerManifest,
    below: ImmutableRef,
}

pub fn op_error(error: StoreError) -> OpError {
    OpError::new(error.class(), error)
}

/// Metadata that any user may give.
fn meta(mode: u32) -> FileMeta {
    FileMeta {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        ..FileMeta::new(mode, (1_600_000_000, 5))
    }
}

impl SimOp {
    fn alive(&self) -> Result<(), OpError> {
        if self.sim.machine.is_dead() { Err(OpError::canceled()) } else { Ok(()) }
    }

    /// Reads the inputs as an operation does: checked, and then by their files.
    fn read(&self, inputs: &[ImmutableRef]) -> Result<Vec<Files>, OpError> {
        let mut all = Vec::new();
        for input in inputs {
            self.sim.store.check(input).map_err(op_error)?;
            all.push(check::read(input).map_err(op_error)?);
        }
        Ok(all)
    }

    fn make(&self, inputs: &[ImmutableRef]) -> Result<Vec<Draft>, OpError> {
        let def = &self.sim.world.defs[self.def];
        let files = self.read(inputs)?;
        let files: Vec<&Files> = files.iter().collect();
        let work = def.work(&files);
        if work != self.sim.world.work_of(self.def) {
            self.sim.checks.lock().fail(format!("v{} is executed with wrong inputs", self.def));
        }
        let (none, empty) = (Files::new(), self.sim.store.scratch());
        let (below, on) = if def.on_first { (files[0], &inputs[0]) } else { (&none, &empty) };
        let mut drafts = Vec::new();
        for output in 0..def.outputs {
            let (written, removed) = def.changes(work, output, below);
            drafts.push(self.draft(on, &written, removed.as_deref())?);
        }
        Ok(drafts)
    }

    fn draft(&self, below: &ImmutableRef, written: &Files, removed: Option<&str>) -> Result<Draft, OpError> {
        let failed = |e: kiln_snapshot::Error| OpError::new(e.class(), e);
        let draft = self.sim.store.draft().map_err(op_error)?;
        let (lower, dirs) = (below.tree().map_err(op_error)?, below.dirs());
        let mut builder = LayerBuilder::new(&draft.fs(), &lower, &dirs).map_err(failed)?;
        builder.set_implicit(meta(0o755));
        for (name, bytes) in written {
            builder.file_from_bytes(name.as_bytes(), &meta(0o644), bytes).map_err(failed)?;
        }
        if let Some(name) = removed {
            builder.remove(name.as_bytes()).map_err(failed)?;
        }
        let manifest = builder.finish().map_err(failed)?;
        Ok(Draft { draft, manifest, below: below.clone() })
    }
}

#[async_trait]
impl Op<ImmutableRef> for SimOp {
    async fn cache_map(&self, _: &OpContext) -> Result<CacheMap, OpError> {
        Ok(self.sim.world.defs[self.def].cache_map())
    }

    async fn content_key(
        &self,
        cx: &OpContext,
        input: usize,
        result: &ImmutableRef,
    ) -> Result<Option<Digest>, OpError> {
        let Some(path) = self.sim.world.defs[self.def].selects(input) else { return Ok(None) };
        if self.def.is_multiple_of(2)
            && !self.sim.gate.pass(format!("content v{} {input}", self.def), cx.cancel()).await
        {
            return Err(OpError::canceled());
        }
        self.alive()?;
        self.sim.store.check(result).map_err(op_error)?;
        self.sim.store.content_digest(result, &ContentSelector::path(path)).map(Some).map_err(op_error)
    }

    async fn execute(&self, cx: &OpContext, inputs: &[ImmutableRef]) -> Result<Vec<ImmutableRef>, OpError> {
        let _holding = self.sim.hold(inputs);
        self.alive()?;
        self.sim.checks.lock().execute(&self.sim.world, self.def, &self.sim.store);
        if !self.sim.gate.pass(format!("execute v{}", self.def), cx.cancel()).await {
            return Err(OpError::canceled());
        }
        self.alive()?;
        let drafts = self.make(inputs)?;
        if !self.sim.gate.pass(format!("commit v{}", self.def), cx.cancel()).await {
            return Err(OpError::canceled());
        }
        let mut results = Vec::new();
        for (output, made) in drafts.into_iter().enumerate() {
            self.alive()?;
            let info = LayerInfo {
                chain: made.below.layer_ids(),
                description: format!("v{}", self.def),
                ..LayerInfo::default()
            };
            let layer = self.sim.store.commit(made.draft, made.manifest, info).map_err(op_error)?;
            let result = made.below.with_layer(layer);
            self.sim.checks.lock().made(self.def, output as u32, &result);
            results.push(result);
        }
        Ok(results)
    }
}
