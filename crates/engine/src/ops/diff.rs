//! Diff: what makes one file system differ from another, as a chain of its own.

use std::sync::Arc;

use async_trait::async_trait;
use kiln_llb::op::DiffOp;
use kiln_oci::to_ordered_json;
use kiln_solver::{CacheMap, DepMap, KeyLife, KeyRecord, Op, OpContext, OpError};
use kiln_stdx::Digest;
use kiln_store::{ImmutableRef, RecordType};
use serde::Serialize;

use super::input;
use crate::error::EngineError;
use crate::layers;
use crate::parts::Parts;
use crate::source::lazy;

/// The changes from `lower` to `upper`.
pub struct Diff {
    parts: Arc<Parts>,
    lower: Option<usize>,
    upper: Option<usize>,
}

impl Diff {
    /// Returns the operation.
    pub fn new(parts: Arc<Parts>, op: &DiffOp) -> Self {
        Self { parts, lower: op.lower, upper: op.upper }
    }

    fn digest(&self) -> Result<Digest, EngineError> {
        #[derive(Serialize)]
        struct Side {
            #[serde(skip_serializing_if = "is_zero")]
            input: i64,
        }
        #[derive(Serialize)]
        struct Sides {
            lower: Side,
            upper: Side,
        }
        #[derive(Serialize)]
        struct Document {
            #[serde(rename = "Type")]
            kind: &'static str,
            #[serde(rename = "Diff")]
            diff: Sides,
        }
        let side = |index: Option<usize>| Side { input: index.map_or(-1, |i| i64::try_from(i).unwrap_or(i64::MAX)) };
        let diff = Sides { lower: side(self.lower), upper: side(self.upper) };
        let document = Document { kind: "buildkit.diff.v0", diff };
        Ok(Digest::of(to_ordered_json("diff key", &document)?))
    }
}

fn is_zero(v: &i64) -> bool {
    *v == 0
}

#[async_trait]
impl Op<ImmutableRef> for Diff {
    async fn cache_map(&self, _: &OpContext) -> Result<CacheMap, OpError> {
        let inputs = [self.lower, self.upper].into_iter().flatten().count();
        Ok(CacheMap {
            digest: self.digest()?,
            also: Vec::new(),
            record: KeyRecord::new().with("op", "diff"),
            deps: vec![DepMap::default(); inputs],
            life: KeyLife::Stored,
        })
    }

    async fn execute(&self, cx: &OpContext, inputs: &[ImmutableRef]) -> Result<Vec<ImmutableRef>, OpError> {
        let store = self.parts.store.clone();
        let side = |index: Option<usize>| match index {
            Some(index) => input(inputs, index).cloned(),
            None => Ok(store.scratch()),
        };
        let (lower, upper) = (side(self.lower)?, side(self.upper)?);
        if lower.is_prefix_of(&upper) {
            // The layers above the common part are the difference already; their blobs can be reused where they came with one.
            lazy::unpack_inputs(&self.parts, cx, [&upper]).await?;
            let work = move || {
                let rest = layers::difference(&store, &upper, lower.layers().len())?;
                Ok(store.ref_of_layers(rest))
            };
            return Ok(vec![self.parts.blocking(work).await?]);
        }
        lazy::unpack_inputs(&self.parts, cx, [&lower, &upper]).await?;
        let reference = self
            .parts
            .blocking(move || {
                let draft = store.draft()?;
                let (from, to) = (lower.tree()?, upper.tree()?);
                let manifest = kiln_snapshot::layer::difference(&from, &to, &upper.dirs(), &draft.fs())?;
                let layer =
                    store.commit(draft, manifest, layers::info(&store.scratch(), "diff", RecordType::Regular))?;
                Ok(store.ref_of_layers(vec![layer]))
            })
            .await?;
        Ok(vec![reference])
    }
}
