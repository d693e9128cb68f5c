//! Build: a definition that another vertex made, built in its place.

use std::sync::Arc;

use async_trait::async_trait;
use kiln_llb::op::BuildOp;
use kiln_llb::{Definition, attr};
use kiln_solver::{CacheMap, DepMap, KeyLife, KeyRecord, Op, OpContext, OpError};
use kiln_stdx::{ErrorClass, StableHasher};
use kiln_store::ImmutableRef;

use super::input;
use crate::bridge::Bridge;
use crate::build::Progress;
use crate::error::EngineError;
use crate::inspect;
use crate::parts::{Parts, builds};
use crate::source::lazy;

/// Where the definition is in the input, if nothing else is said.
const FILE: &str = "buildkit.llb.definition";

/// Builds a definition.
pub struct Build {
    parts: Arc<Parts>,
    op: BuildOp,
    inputs: usize,
}

impl Build {
    /// Returns the operation of a vertex with so many inputs.
    pub fn new(parts: Arc<Parts>, op: &BuildOp, inputs: usize) -> Self {
        Self { parts, op: op.clone(), inputs }
    }

    fn file(&self) -> &str {
        self.op.attrs.get(attr::LLB_DEFINITION_FILENAME).map_or(FILE, String::as_str)
    }

    async fn definition(&self, cx: &OpContext, inputs: &[ImmutableRef]) -> Result<Definition, EngineError> {
        let Some(at) = self.op.input else {
            let text = "a build op has neither an input nor a definition";
            return self.op.definition.clone().ok_or_else(|| EngineError::user(text));
        };
        let layers = input(inputs, at)?;
        lazy::unpack(&self.parts, &Progress::new(cx), [layers]).await?;
        let bytes = inspect::read_file(&self.parts, layers, self.file(), None).await?;
        Ok(Definition::decode(&bytes)?)
    }
}

#[async_trait]
impl Op<ImmutableRef> for Build {
    async fn cache_map(&self, _: &OpContext) -> Result<CacheMap, OpError> {
        let own = self.op.definition.as_ref().map(Definition::encode).unwrap_or_default();
        let digest = StableHasher::new("buildkit.build.v0")
            .str("file", self.file())
            .bytes("definition", &own)
            .str("input", &format!("{:?}", self.op.input))
            .finish();
        Ok(CacheMap {
            digest,
            also: Vec::new(),
            record: KeyRecord::new().with("op", "build").with("file", self.file().to_owned()),
            deps: vec![DepMap::default(); self.inputs],
            life: KeyLife::Stored,
        })
    }

    async fn execute(&self, cx: &OpContext, inputs: &[ImmutableRef]) -> Result<Vec<ImmutableRef>, OpError> {
        let definition = self.definition(cx, inputs).await?;
        let mut failed = EngineError::canceled();
        // One build that wants it is enough; when that is called off, another takes over.
        for build in builds(cx) {
            let Some(bridge) = build.bridge.lock().clone().and_then(|bridge| bridge.get()) else { continue };
            match built(&bridge, &definition).await {
                Ok(layers) => return Ok(vec![layers]),
                Err(error) if error.class() == ErrorClass::Canceled => failed = error,
                Err(error) => return Err(error.into()),
            }
        }
        Err(failed.into())
    }
}

async fn built(bridge: &Bridge, definition: &Definition) -> Result<ImmutableRef, EngineError> {
    match bridge.define(definition.clone()).await? {
        Some(reference) => bridge.evaluate(&reference).await,
        None => Ok(bridge.parts().store.scratch()),
    }
}
