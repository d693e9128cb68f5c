//! Merge: the layers of all inputs on top of each other, the later ones winning. Nothing is copied.

use std::sync::Arc;

use async_trait::async_trait;
use kiln_llb::op::MergeOp;
use kiln_oci::to_ordered_json;
use kiln_solver::{CacheMap, DepMap, KeyLife, KeyRecord, Op, OpContext, OpError};
use kiln_stdx::Digest;
use kiln_store::ImmutableRef;
use serde::Serialize;

use super::input;
use crate::error::EngineError;
use crate::layers;
use crate::parts::Parts;
use crate::source::lazy;

/// A union of file systems.
pub struct Merge {
    parts: Arc<Parts>,
    inputs: Vec<usize>,
}

impl Merge {
    /// Returns the operation.
    pub fn new(parts: Arc<Parts>, op: &MergeOp) -> Self {
        Self { parts, inputs: op.inputs.clone() }
    }

    fn digest(&self) -> Result<Digest, EngineError> {
        #[derive(Serialize)]
        struct Input {
            #[serde(skip_serializing_if = "is_zero")]
            input: usize,
        }
        #[derive(Serialize)]
        struct Inputs {
            inputs: Vec<Input>,
        }
        #[derive(Serialize)]
        struct Document {
            #[serde(rename = "Type")]
            kind: &'static str,
            #[serde(rename = "Merge")]
            merge: Inputs,
        }
        let inputs = self.inputs.iter().map(|&input| Input { input }).collect();
        let document = Document { kind: "buildkit.merge.v0", merge: Inputs { inputs } };
        Ok(Digest::of(to_ordered_json("merge key", &document)?))
    }
}

fn is_zero(v: &usize) -> bool {
    *v == 0
}

#[async_trait]
impl Op<ImmutableRef> for Merge {
    async fn cache_map(&self, _: &OpContext) -> Result<CacheMap, OpError> {
        Ok(CacheMap {
            digest: self.digest()?,
            also: Vec::new(),
            record: KeyRecord::new().with("op", "merge").with("inputs", self.inputs.len().to_string()),
            deps: vec![DepMap::default(); self.inputs.len()],
            life: KeyLife::Stored,
        })
    }

    async fn execute(&self, cx: &OpContext, inputs: &[ImmutableRef]) -> Result<Vec<ImmutableRef>, OpError> {
        let refs: Result<Vec<ImmutableRef>, OpError> = self.inputs.iter().map(|&i| input(inputs, i).cloned()).collect();
        let mut refs = refs?;
        // What lies below the first one is as it was; the others get new layers below them.
        lazy::unpack_inputs(&self.parts, cx, refs.iter().skip(1)).await?;
        let store = self.parts.store.clone();
        let merged = self.parts.blocking(move || {
            for reference in refs.iter_mut().skip(1) {
                *reference = store.ref_of_layers(layers::portable(&store, reference, 0)?);
            }
            Ok(store.concat(&refs))
        });
        Ok(vec![merged.await?])
    }
}
