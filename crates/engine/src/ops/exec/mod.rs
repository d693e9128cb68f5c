//! Exec: a process over mounts. What it leaves in mounts that have an output becomes layers.

mod caches;
mod log;
pub mod mounts;
mod record;
pub mod run;
mod space;

pub use space::RunningSteps;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use kiln_llb::op::ExecOp;
use kiln_llb::{Op as LlbOp, Vertex, pb};
use kiln_oci::Platform;
use kiln_solver::{CacheMap, DepMap, Difference, KeyLife, Op, OpContext, OpError};
use kiln_stdx::{Digest, ErrorClass};
use kiln_store::ImmutableRef;
use prost::Message;

use crate::content;
use crate::error::EngineError;
use crate::keys::exec::{InputKey, digest, inputs};
use crate::keys::file::Selector;
use crate::parts::{Parts, builds};
use crate::wreck::{Subject, Wreck};

/// A step that runs a process.
pub struct Exec {
    parts: Arc<Parts>,
    op: ExecOp,
    platform: Platform,
    digest: Digest,
    keys: Vec<InputKey>,
    resources: Option<pb::LinuxResources>,
    ignore_cache: bool,
    /// The operation as it came.
    raw: Bytes,
}

impl Exec {
    /// Returns the operation.
    ///
    /// # Errors
    /// A mount names an input that is not there.
    pub fn new(parts: Arc<Parts>, vertex: Arc<Vertex>) -> Result<Self, EngineError> {
        let LlbOp::Exec(op) = &vertex.op else {
            return Err(EngineError::new(ErrorClass::Bug, "not an exec op"));
        };
        // The key is taken over the message as it came: the typed form has defaults filled in.
        let wire = pb::Op::decode(vertex.raw.as_ref()).map_err(|e| EngineError::user(e.to_string()))?;
        let Some(pb::op::Op::Exec(wire)) = wire.op else {
            return Err(EngineError::new(ErrorClass::Bug, "not an exec op"));
        };
        let platform = vertex.platform.clone().unwrap_or_else(Platform::host);
        let keys = inputs(&wire, vertex.inputs.len())
            .ok_or_else(|| EngineError::user("a mount names an input that is not there"))?;
        Ok(Self {
            digest: digest(&wire, &platform)?,
            keys,
            op: op.as_ref().clone(),
            platform,
            resources: vertex.metadata.linux_resources.clone(),
            ignore_cache: vertex.ignore_cache(),
            raw: vertex.raw.clone(),
            parts,
        })
    }
}

#[async_trait]
impl Op<ImmutableRef> for Exec {
    async fn cache_map(&self, _: &OpContext) -> Result<CacheMap, OpError> {
        let deps = self.keys.iter().map(|key| DepMap { selector: key.selector(), content: key.by_content }).collect();
        Ok(CacheMap {
            digest: self.digest,
            also: Vec::new(),
            record: record::of(&self.op, &self.platform),
            deps,
            life: KeyLife::Stored,
        })
    }

    async fn content_key(
        &self,
        cx: &OpContext,
        input: usize,
        result: &ImmutableRef,
    ) -> Result<Option<Digest>, OpError> {
        let Some(key) = self.keys.get(input) else { return Ok(None) };
        let digest = content::digest(&self.parts, cx, result, selectors(key)).await;
        Ok(Some(digest.map_err(|mut error| {
            if builds(cx).iter().any(|build| build.settings.keeps_wrecks) {
                let (command, came) = (self.op.meta.args.join(" "), vec![Some(result.clone())]);
                let wreck = Wreck::new(self.parts.clone(), self.raw.clone(), command, came, Vec::new());
                error.further_mut().wreck = Some(Arc::new(wreck.of(Subject::Content(input))));
            }
            error
        })?))
    }

    async fn explain(
        &self,
        _: &OpContext,
        input: usize,
        old: &Digest,
        _: &Digest,
        result: &ImmutableRef,
    ) -> Option<Difference> {
        content::difference(&self.parts, old, result, selectors(self.keys.get(input)?)).await
    }

    async fn execute(&self, cx: &OpContext, inputs: &[ImmutableRef]) -> Result<Vec<ImmutableRef>, OpError> {
        let outputs = match run::run(self, cx, inputs).await {
            Ok(outputs) => outputs,
            Err(error) => return Err(self.blamed(error, inputs).await.into()),
        };
        for (key, reference) in self.keys.iter().zip(inputs).filter(|(key, _)| key.by_content) {
            content::keep_listing(&self.parts, cx, reference, selectors(key)).await;
        }
        Ok(outputs)
    }
}

impl Exec {
    /// Returns what a step failed for: damage of what it was given, if there is any now, and else what it says itself.
    async fn blamed(&self, error: EngineError, inputs: &[ImmutableRef]) -> EngineError {
        if matches!(error.class(), ErrorClass::Canceled | ErrorClass::Damage) {
            return error;
        }
        let (store, inputs) = (self.parts.store.clone(), inputs.to_vec());
        let looked = self.parts.blocking(move || Ok(inputs.iter().try_for_each(|input| store.check_now(input))?));
        match looked.await {
            Err(damage) if damage.class() == ErrorClass::Damage => {
                tracing::warn!(%error, %damage, "a step failed on damaged files");
                damage
            }
            _ => error,
        }
    }
}

/// What of an input counts.
fn selectors(key: &InputKey) -> Vec<Selector> {
    key.content_paths().into_iter().map(content::whole_path).collect()
}
