//! Exec: a process over mounts. What it leaves in mounts that have an output becomes layers.

mod log;
pub mod mounts;
pub mod run;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use kiln_llb::op::{ExecOp, MountKind};
use kiln_llb::{Op as LlbOp, Vertex, pb};
use kiln_oci::Platform;
use kiln_solver::{CacheMap, DepMap, KeyLife, KeyRecord, Op, OpContext, OpError};
use kiln_stdx::{Digest, ErrorClass};
use kiln_store::ImmutableRef;
use prost::Message;

use crate::content;
use crate::error::EngineError;
use crate::keys::exec::{InputKey, digest, inputs};
use crate::parts::Parts;

/// A step that runs a process.
pub struct Exec {
    parts: Arc<Parts>,
    op: ExecOp,
    platform: Platform,
    digest: Digest,
    keys: Vec<InputKey>,
    resources: Option<pb::LinuxResources>,
    ignore_cache: bool,
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
            parts,
        })
    }

    /// Named fields for telling what changed. Values of secrets are not among them: an exec op does not have them.
    fn record(&self) -> KeyRecord {
        let mut fields = BTreeMap::from([
            ("command".to_owned(), self.op.meta.args.join(" ")),
            ("workdir".to_owned(), self.op.meta.cwd.clone()),
            ("user".to_owned(), self.op.meta.user.clone()),
            ("platform".to_owned(), self.platform.short()),
            ("network".to_owned(), format!("{:?}", self.op.network)),
            ("security".to_owned(), format!("{:?}", self.op.security)),
            ("hostname".to_owned(), self.op.meta.hostname.clone()),
        ]);
        for variable in &self.op.meta.env {
            let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
            fields.insert(format!("env {name}"), value.to_owned());
        }
        for mount in self.op.mounts.iter().filter(|m| !m.is_root()) {
            let kind = match &mount.kind {
                MountKind::Bind => "bind",
                MountKind::Tmpfs { .. } => "tmpfs",
                MountKind::Cache { .. } => "cache",
                MountKind::Secret(_) => "secret",
                MountKind::Ssh(_) => "ssh",
            };
            let access = if mount.readonly { "ro" } else { "rw" };
            fields.insert(format!("mount {}", mount.dest), format!("{kind} {} {access}", mount.selector));
        }
        KeyRecord(fields)
    }
}

#[async_trait]
impl Op<ImmutableRef> for Exec {
    async fn cache_map(&self, _: &OpContext) -> Result<CacheMap, OpError> {
        let deps = self.keys.iter().map(|key| DepMap { selector: key.selector(), content: key.by_content }).collect();
        Ok(CacheMap { digest: self.digest, record: self.record(), deps, life: KeyLife::Stored })
    }

    async fn content_key(
        &self,
        cx: &OpContext,
        input: usize,
        result: &ImmutableRef,
    ) -> Result<Option<Digest>, OpError> {
        let Some(key) = self.keys.get(input) else { return Ok(None) };
        let selectors = key.content_paths().into_iter().map(content::whole_path).collect();
        Ok(Some(content::digest(&self.parts, cx, result, selectors).await?))
    }

    async fn execute(&self, cx: &OpContext, inputs: &[ImmutableRef]) -> Result<Vec<ImmutableRef>, OpError> {
        Ok(run::run(self, cx, inputs).await?)
    }
}
