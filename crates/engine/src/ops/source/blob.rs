//! One blob of a registry or of a client's OCI layout as a file. The key is its digest: it is fetched only when somebody
//! needs the file.

use std::sync::Arc;

use async_trait::async_trait;
use kiln_llb::op::SourceOp;
use kiln_oci::to_ordered_json;
use kiln_solver::{CacheMap, KeyLife, KeyRecord, Op, OpContext, OpError};
use kiln_stdx::Digest;
use kiln_store::ImmutableRef;
use serde::Serialize;

use super::one_file::{FileKey, one_file};
use crate::error::EngineError;
use crate::keys;
use crate::parts::Parts;
use crate::source::blob::BlobSource;
use crate::source::file_attrs::{FileAttrs, safe};

/// A blob as a file.
pub struct BlobOp {
    parts: Arc<Parts>,
    source: BlobSource,
    attrs: FileAttrs,
}

impl BlobOp {
    /// Returns the operation of `docker-image+blob://` and `oci-layout+blob://`.
    ///
    /// # Errors
    /// A malformed name or attribute.
    pub fn new(parts: Arc<Parts>, op: &SourceOp) -> Result<Self, EngineError> {
        let mut attrs = FileAttrs::new(op)?;
        attrs.name = attrs.name.filter(|name| !name.is_empty()).map(|name| safe(&name));
        Ok(Self { parts, source: BlobSource::new(&op.identifier, op)?, attrs })
    }
}

/// The key, in the form that BuildKit's caches have it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Key<'a> {
    digest: Digest,
    #[serde(flatten)]
    file: FileKey<'a>,
}

#[async_trait]
impl Op<ImmutableRef> for BlobOp {
    async fn cache_map(&self, _: &OpContext) -> Result<CacheMap, OpError> {
        let key = Key {
            digest: self.source.digest,
            file: FileKey::new(self.attrs.name.as_deref().unwrap_or_default(), &self.attrs),
        };
        let digest = Digest::of(to_ordered_json("blob key", &key).map_err(EngineError::from)?);
        let record =
            KeyRecord::new().with("blob", self.source.name.clone()).with("digest", self.source.digest.to_string());
        Ok(CacheMap {
            digest: keys::source(&digest.to_string()),
            also: Vec::new(),
            record,
            deps: Vec::new(),
            life: KeyLife::Stored,
        })
    }

    async fn execute(&self, cx: &OpContext, _: &[ImmutableRef]) -> Result<Vec<ImmutableRef>, OpError> {
        let blob = self.source.bring(&self.parts, cx).await?;
        let name = self.attrs.name.clone().unwrap_or_else(|| self.source.digest.hex().to_string());
        let description = format!("blob {}", self.source.name);
        Ok(vec![one_file(&self.parts, blob, name, self.attrs.meta(0), description).await?])
    }
}
