//! Passthrough: hands inputs on, to group and order what is before them.

use async_trait::async_trait;
use kiln_llb::op::PassthroughOp;
use kiln_solver::{CacheMap, DepMap, KeyLife, KeyRecord, Op, OpContext, OpError};
use kiln_stdx::Digest;
use kiln_store::ImmutableRef;

use super::input;

/// Groups its inputs.
pub struct Passthrough {
    id: String,
    outputs: Vec<usize>,
    inputs: usize,
}

impl Passthrough {
    /// Returns the operation of a vertex with so many inputs; those that are no output are only waited for.
    pub fn new(op: &PassthroughOp, inputs: usize) -> Self {
        Self { id: op.id.clone(), outputs: op.outputs.clone(), inputs }
    }
}

#[async_trait]
impl Op<ImmutableRef> for Passthrough {
    async fn cache_map(&self, _: &OpContext) -> Result<CacheMap, OpError> {
        Ok(CacheMap {
            digest: Digest::of(format!("buildkit.passthrough.v0:{}:{:?}", self.id, self.outputs)),
            also: Vec::new(),
            record: KeyRecord::new().with("op", "passthrough").with("id", self.id.clone()),
            deps: vec![DepMap::default(); self.inputs],
            life: KeyLife::Stored,
        })
    }

    async fn execute(&self, _: &OpContext, inputs: &[ImmutableRef]) -> Result<Vec<ImmutableRef>, OpError> {
        self.outputs.iter().map(|&i| input(inputs, i).cloned()).collect()
    }
}
