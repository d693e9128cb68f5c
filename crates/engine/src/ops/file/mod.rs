//! File: changes to a file system without a process: copy, mkfile, mkdir, rm, symlink.
//!
//! No mounts: sources are read through merged trees and new layers are written by hand, with links wherever the
//! store already holds the bytes. Actions that build on each other without anyone looking in between share a layer.

mod archive;
mod copy;
mod mode;
mod owner;
mod plan;
mod simple;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use kiln_llb::op::{FileChange, FileOp};
use kiln_llb::{Op as LlbOp, Vertex, pb};
use kiln_solver::{CacheMap, DepMap, Difference, KeyLife, KeyRecord, Op, OpContext, OpError};
use kiln_stdx::{Digest, ErrorClass};
use kiln_store::ImmutableRef;
use prost::Message;

use crate::build::Progress;
use crate::content;
use crate::error::EngineError;
use crate::keys::file::{FileKey, Selector, key};
use crate::ops::exec::mounts::Left;
use crate::parts::{Parts, builds};
use crate::source::lazy;
use crate::wreck::{Subject, Wreck};

/// Changes files.
pub struct File {
    parts: Arc<Parts>,
    op: FileOp,
    name: String,
    digest: Digest,
    read: BTreeMap<usize, Vec<Selector>>,
    inputs: usize,
    /// The operation as it came.
    raw: Bytes,
}

impl File {
    /// Returns the operation.
    ///
    /// # Errors
    /// Never for a graph that was checked.
    pub fn new(parts: Arc<Parts>, vertex: Arc<Vertex>) -> Result<Self, EngineError> {
        let bug = || EngineError::new(ErrorClass::Bug, "not a file op");
        let LlbOp::File(op) = &vertex.op else { return Err(bug()) };
        let wire = pb::Op::decode(vertex.raw.as_ref()).map_err(|e| EngineError::user(e.to_string()))?;
        let Some(pb::op::Op::File(wire)) = wire.op else { return Err(bug()) };
        let inputs = vertex.inputs.len();
        let FileKey { digest, read } = key(&wire, inputs)?;
        Ok(Self { parts, op: op.clone(), name: vertex.name.clone(), digest, read, inputs, raw: vertex.raw.clone() })
    }

    fn record(&self) -> KeyRecord {
        let mut record = KeyRecord::new();
        for (number, action) in self.op.actions.iter().enumerate() {
            let text = match &action.change {
                FileChange::Copy(copy) => {
                    format!("copy {} {} {:?} {:?}", copy.src, copy.dest, copy.owner, copy.mode)
                }
                FileChange::Mkfile(file) => format!("mkfile {} {:o} {}", file.path, file.mode, Digest::of(&file.data)),
                FileChange::Mkdir(dir) => format!("mkdir {} {:o}", dir.path, dir.mode),
                FileChange::Rm(rm) => format!("rm {}", rm.path),
                FileChange::Symlink(link) => format!("symlink {} {}", link.link, link.target),
            };
            record.0.insert(format!("action {number}"), text);
        }
        record
    }
}

#[async_trait]
impl Op<ImmutableRef> for File {
    async fn cache_map(&self, _: &OpContext) -> Result<CacheMap, OpError> {
        let deps = (0..self.inputs)
            .map(|input| match self.read.get(&input) {
                Some(selectors) => DepMap { selector: Some(FileKey::selector(selectors)), content: true },
                None => DepMap::default(),
            })
            .collect();
        Ok(CacheMap { digest: self.digest, also: Vec::new(), record: self.record(), deps, life: KeyLife::Stored })
    }

    async fn content_key(
        &self,
        cx: &OpContext,
        input: usize,
        result: &ImmutableRef,
    ) -> Result<Option<Digest>, OpError> {
        let Some(selectors) = self.read.get(&input) else { return Ok(None) };
        Ok(Some(content::digest(&self.parts, cx, result, FileKey::content_selectors(selectors)).await?))
    }

    async fn explain(
        &self,
        _: &OpContext,
        input: usize,
        old: &Digest,
        _: &Digest,
        result: &ImmutableRef,
    ) -> Option<Difference> {
        content::difference(&self.parts, old, result, FileKey::content_selectors(self.read.get(&input)?)).await
    }

    async fn execute(&self, cx: &OpContext, inputs: &[ImmutableRef]) -> Result<Vec<ImmutableRef>, OpError> {
        let (name, progress, cancel) = (self.name.clone(), Progress::new(cx), cx.cancel().clone());
        lazy::unpack_inputs(&self.parts, cx, inputs).await?;
        let read = inputs;
        let (op, inputs, parts) = (self.op.clone(), inputs.to_vec(), self.parts.clone());
        let keep = builds(cx).iter().any(|build| build.settings.keeps_wrecks);
        let came = inputs.clone();
        let outputs = self
            .parts
            .blocking(move || {
                let run =
                    plan::Run { parts: &parts, op: &op, inputs: &inputs, name: &name, progress, cancel, at: 0.into() };
                Ok::<_, EngineError>(run.run(keep))
            })
            .await?;
        let outputs = outputs.map_err(|failed| {
            let mut error = failed.error;
            if keep {
                let left = failed.left.into_iter().map(|made| made.map(Left::Same)).collect();
                let came = came.into_iter().map(Some).collect();
                let wreck = Wreck::new(self.parts.clone(), self.raw.clone(), self.name.clone(), came, left);
                error.further_mut().wreck = Some(Arc::new(wreck.of(Subject::Action(failed.at))));
            }
            OpError::from(error)
        })?;
        for (input, selectors) in &self.read {
            let Some(reference) = read.get(*input) else { continue };
            content::keep_listing(&self.parts, cx, reference, FileKey::content_selectors(selectors)).await;
        }
        Ok(outputs)
    }
}
