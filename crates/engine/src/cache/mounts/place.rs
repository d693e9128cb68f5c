//! Where mounts lie: beside a cache in a registry, in a directory of the client, or in a store of objects.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use kiln_objects::{Kind, ObjectError, ObjectStore, fetch};
use kiln_oci::{Descriptor, Manifest, Reference, media};
use kiln_registry::{Credentials, ErrorKind, Registry, RegistryError, Repository};
use kiln_session::ContentStore;
use kiln_stdx::{Digest, limits};

use super::format::{Part, ROOT_MAX, ROOT_TYPE, damaged};
use super::{DIGEST, SUFFIX};
use crate::bridge::Bridge;
use crate::cache::{local, objects, registry};
use crate::error::EngineError;
use crate::request::CacheSpec;

/// What is told to the client after an export: name and value.
pub type Told = Option<(String, String)>;

/// One place where a root and its parts lie.
#[async_trait]
pub trait Place: Send + Sync {
    /// Returns what messages call it.
    fn name(&self) -> String;

    /// Returns the root; none where nothing was exported yet.
    async fn root(&self) -> Result<Option<Bytes>, EngineError>;

    /// Tells whether a part is there.
    async fn has(&self, part: &Part) -> Result<bool, EngineError>;

    /// Reads a part; its bytes are what its digest says.
    async fn get(&self, part: &Part) -> Result<Vec<u8>, EngineError>;

    /// Writes a part, unless it is there.
    async fn put(&self, part: &Part, bytes: Bytes) -> Result<(), EngineError>;

    /// Writes the root; all parts that it names are there.
    async fn set_root(&self, root: Bytes, parts: &[Part]) -> Result<Told, EngineError>;
}

/// Returns the place beside the cache that an import or export names.
///
/// # Errors
/// Attributes that are missing or wrong; the client's session is gone.
pub async fn open(bridge: &Bridge, spec: &CacheSpec) -> Result<Box<dyn Place>, EngineError> {
    if let Some(kind) = Kind::parse(&spec.kind) {
        let store = objects::open(bridge, kind, &beside(kind, spec)).await?;
        return Ok(Box::new(InObjects(store)));
    }
    if spec.kind == "registry" {
        let (reference, registry) = (reference(spec)?, bridge.parts().registry.clone());
        return Ok(Box::new(InRegistry { registry, reference, credentials: registry::credentials(bridge).await }));
    }
    let attr = |name: &str| spec.attrs.get(name).filter(|text| !text.is_empty());
    let directory = attr("dest").or_else(|| attr("src"));
    let directory = directory.ok_or_else(|| EngineError::user("a local cache needs a directory"))?;
    let digest = attr(DIGEST).map(|text| text.parse()).transpose();
    let digest = digest.map_err(|e| EngineError::user(format!("local cache {directory}: {e}")))?;
    let content = local::session(bridge).await?.content(&local::store_id(directory));
    Ok(Box::new(InDirectory { content, directory: directory.clone(), digest }))
}

/// Returns the name in a registry: the cache's tag and a word more.
///
/// # Errors
/// The cache is named by a digest, or its tag is too long for that.
pub fn reference(spec: &CacheSpec) -> Result<Reference, EngineError> {
    let reference = registry::reference(spec)?;
    if reference.digest().is_some() {
        return Err(EngineError::user(format!("{reference}: cache mounts are found beside a tag, not a digest")));
    }
    let tag = format!("{}{SUFFIX}", reference.tag().unwrap_or("latest"));
    if tag.len() > 128 {
        return Err(EngineError::user(format!("{reference}: the tag is too long to have mounts beside it")));
    }
    Ok(reference.with_tag(&tag))
}

/// Returns the attributes of a store of objects, with other names of manifests.
fn beside(kind: Kind, spec: &CacheSpec) -> CacheSpec {
    let (name, fallback) = match kind {
        Kind::Gha => ("scope", "buildkit"),
        Kind::Http => ("name", "kiln"),
        Kind::S3 | Kind::Azblob => ("name", "buildkit"),
    };
    let mut spec = spec.clone();
    let given = spec.attrs.get(name).map_or(fallback, String::as_str);
    let names: Vec<String> = given.split(';').map(|name| format!("{name}{SUFFIX}")).collect();
    spec.attrs.insert(name.to_owned(), names.join(";"));
    spec
}

/// Returns a manifest that lists what a root names, so that no part is taken for garbage.
fn manifest(root: &[u8], parts: &[Part]) -> Result<Vec<u8>, EngineError> {
    let layers = parts.iter().map(Part::descriptor).collect();
    let bytes = Manifest::new(media::OCI_MANIFEST, Descriptor::of(ROOT_TYPE, root), layers).to_manifest_json()?;
    if bytes.len() as u64 > limits::MANIFEST {
        return Err(EngineError::user("the cache mounts have too many parts for one manifest"));
    }
    Ok(bytes)
}

/// Returns what names the root in a manifest.
fn config(manifest: &[u8]) -> Result<Descriptor, EngineError> {
    let config = Manifest::from_json(manifest)?.config;
    if config.media_type != ROOT_TYPE || config.size > ROOT_MAX {
        return Err(damaged("it holds no cache mounts".to_owned()));
    }
    Ok(config)
}

struct InRegistry {
    registry: Registry,
    reference: Reference,
    credentials: Credentials,
}

impl InRegistry {
    fn failed(&self, error: RegistryError) -> EngineError {
        let mut result = EngineError::new(error.class(), crate::error::chain(&error));
        result.hint = error.hint();
        result
    }

    async fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, EngineError> {
        let repository = Repository::from(&self.reference);
        let opened = self.registry.fetch_blob(&repository, descriptor, &self.credentials).await;
        let mut stream = opened.map_err(|e| self.failed(e))?;
        let mut bytes = Vec::new();
        while let Some(piece) = stream.next().await {
            bytes.extend_from_slice(&piece.map_err(|e| self.failed(e))?);
        }
        Ok(bytes)
    }

    async fn push(&self, descriptor: &Descriptor, bytes: Bytes) -> Result<(), EngineError> {
        let repository = Repository::from(&self.reference);
        let pushed = self.registry.push_blob(&repository, descriptor, Arc::new(bytes), &[], &self.credentials).await;
        pushed.map(drop).map_err(|e| self.failed(e))
    }
}

#[async_trait]
impl Place for InRegistry {
    fn name(&self) -> String {
        self.reference.to_string()
    }

    async fn root(&self) -> Result<Option<Bytes>, EngineError> {
        let found = match self.registry.resolve(&self.reference, &self.credentials).await {
            Err(error) if error.is_not_found() => return Ok(None),
            other => other.map_err(|e| self.failed(e))?,
        };
        let repository = Repository::from(&self.reference);
        let fetched = self.registry.fetch_manifest(&repository, &found, &self.credentials).await;
        let config = config(&fetched.map_err(|e| self.failed(e))?.bytes)?;
        Ok(Some(self.blob(&config).await?.into()))
    }

    async fn has(&self, part: &Part) -> Result<bool, EngineError> {
        let repository = Repository::from(&self.reference);
        match self.registry.blob_size(&repository, &part.digest, &self.credentials).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(self.failed(error)),
        }
    }

    async fn get(&self, part: &Part) -> Result<Vec<u8>, EngineError> {
        self.blob(&part.descriptor()).await
    }

    async fn put(&self, part: &Part, bytes: Bytes) -> Result<(), EngineError> {
        self.push(&part.descriptor(), bytes).await
    }

    async fn set_root(&self, root: Bytes, parts: &[Part]) -> Result<Told, EngineError> {
        let manifest = manifest(&root, parts)?;
        self.push(&Descriptor::of(ROOT_TYPE, &root), root).await?;
        let pushed =
            self.registry.push_manifest(&self.reference, media::OCI_MANIFEST, manifest.into(), &self.credentials).await;
        pushed.map(|_| None).map_err(|e| self.failed(e))
    }
}

struct InDirectory {
    content: ContentStore,
    directory: String,
    /// Of the manifest that is there.
    digest: Option<Digest>,
}

impl InDirectory {
    async fn write(&self, part: &Part, bytes: Bytes) -> Result<(), EngineError> {
        let Some(mut writer) = self.content.write(&part.digest, part.size).await? else { return Ok(()) };
        writer.write(bytes).await?;
        Ok(writer.commit().await?)
    }
}

#[async_trait]
impl Place for InDirectory {
    fn name(&self) -> String {
        self.directory.clone()
    }

    async fn root(&self) -> Result<Option<Bytes>, EngineError> {
        let Some(digest) = self.digest else { return Ok(None) };
        let config = config(&self.content.read_all(&digest, limits::MANIFEST).await?)?;
        Ok(Some(self.content.read_all(&config.digest, ROOT_MAX).await?.into()))
    }

    async fn has(&self, part: &Part) -> Result<bool, EngineError> {
        Ok(self.content.info(&part.digest).await?.is_some())
    }

    async fn get(&self, part: &Part) -> Result<Vec<u8>, EngineError> {
        Ok(self.content.read_all(&part.digest, part.size).await?)
    }

    async fn put(&self, part: &Part, bytes: Bytes) -> Result<(), EngineError> {
        self.write(part, bytes).await
    }

    async fn set_root(&self, root: Bytes, parts: &[Part]) -> Result<Told, EngineError> {
        let manifest: Bytes = manifest(&root, parts)?.into();
        let descriptor = Descriptor::of(media::OCI_MANIFEST, &manifest);
        self.write(&Part::of(&root), root).await?;
        self.write(&Part::of(&manifest), manifest).await?;
        let value = kiln_oci::to_ordered_json("descriptor", &descriptor)?;
        // Only the client touches the index of its directory.
        Ok(Some((format!("kiln.mounts:{}", self.directory), String::from_utf8_lossy(&value).into_owned())))
    }
}

struct InObjects(Arc<dyn ObjectStore>);

impl InObjects {
    fn failed(&self, kind: ErrorKind) -> EngineError {
        objects::failed(ObjectError::new(self.0.name(), kind))
    }
}

#[async_trait]
impl Place for InObjects {
    fn name(&self) -> String {
        self.0.name().to_owned()
    }

    async fn root(&self) -> Result<Option<Bytes>, EngineError> {
        let late = ErrorKind::Timeout("reading it takes too long");
        let read = tokio::time::timeout(self.0.limits().manifests, self.0.manifests()).await;
        match read.map_err(|_| self.failed(late))? {
            Err(ErrorKind::NotFound) => Ok(None),
            other => Ok(other.map_err(|kind| self.failed(kind))?.into_iter().next()),
        }
    }

    async fn has(&self, part: &Part) -> Result<bool, EngineError> {
        self.0.has(&part.digest).await.map_err(|kind| self.failed(kind))
    }

    async fn get(&self, part: &Part) -> Result<Vec<u8>, EngineError> {
        let mut stream = fetch(self.0.clone(), part.digest, part.size);
        let mut bytes = Vec::new();
        while let Some(piece) = stream.next().await {
            bytes.extend_from_slice(&piece.map_err(objects::failed)?);
        }
        Ok(bytes)
    }

    async fn put(&self, part: &Part, bytes: Bytes) -> Result<(), EngineError> {
        if self.has(part).await? {
            return Ok(());
        }
        // One that is awaited and never comes is missed by an import, like any that is gone.
        self.0.put(&part.digest, part.size, Arc::new(bytes)).await.map(drop).map_err(|kind| self.failed(kind))
    }

    async fn set_root(&self, root: Bytes, _: &[Part]) -> Result<Told, EngineError> {
        self.0.put_manifest(root).await.map(|()| None).map_err(|kind| self.failed(kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: &str, attrs: &[(&str, &str)]) -> CacheSpec {
        let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        CacheSpec { kind: kind.into(), attrs }
    }

    #[test]
    fn names_beside_caches() {
        let named = |name: &str| reference(&spec("registry", &[("ref", name)])).map(|r| r.to_string());
        assert_eq!(named("h:5000/a:t").unwrap(), "h:5000/a:t-mounts");
        assert_eq!(named("h:5000/a").unwrap(), "h:5000/a:latest-mounts");
        assert!(named(&format!("h:5000/a:{}", "t".repeat(125))).is_err());
        assert!(named(&format!("h:5000/a@{}", Digest::of("x"))).unwrap_err().to_string().contains("digest"));
        let beside = |kind, attrs: &[(&str, &str)], name: &str| beside(kind, &spec("", attrs)).attrs[name].clone();
        assert_eq!(beside(Kind::S3, &[("name", "a;b")], "name"), "a-mounts;b-mounts");
        assert_eq!(beside(Kind::Http, &[], "name"), "kiln-mounts");
        assert_eq!(beside(Kind::Gha, &[("scope", "app")], "scope"), "app-mounts");
    }
}
