//! Images on their way to a registry: blobs side by side, then manifests, the root last.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{BoxFuture, try_join_all};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use kiln_oci::Reference;
use kiln_registry::{BlobSource, Credentials, FileBlob, Pushed, Registry, RegistryError, Repository};
use kiln_stdx::Digest;
use parking_lot::Mutex;

use crate::commit::BuiltImage;
use crate::content::{Content, Data};
use crate::context::ExportContext;
use crate::error::{ExportError, Result};
use crate::options::ImageOptions;
use crate::progress::Status;
use crate::send::joined;

/// Most blobs of one image on their way at once; the registry client has its own bound per host.
const UPLOADS: usize = 4;

/// Uploads `image` under each of its names: hosts side by side, and of one host each repository once, the later ones
/// mounting what the earlier ones have.
///
/// # Errors
/// The registry refuses or cannot be reached; a blob is damaged or cannot be fetched.
pub async fn push_image(
    context: &ExportContext,
    image: &BuiltImage,
    options: &ImageOptions,
    registry: &Registry,
    credentials: &Credentials,
) -> Result<()> {
    let mut hosts: BTreeMap<&str, Vec<(Repository, Vec<&Reference>)>> = BTreeMap::new();
    for name in &image.names {
        let repositories = hosts.entry(name.host()).or_default();
        let repository = Repository::from(name);
        match repositories.iter_mut().find(|(known, _)| *known == repository) {
            Some((_, names)) => names.push(name),
            None => repositories.push((repository, vec![name])),
        }
    }
    let copies = hosts.values().map(Vec::len).sum::<usize>() as u64;
    let bytes: u64 = image.blobs.iter().map(|c| c.descriptor.size).sum();
    let status = Arc::new(Mutex::new(Status::start(&context.progress, "pushing layers", bytes * copies)));
    let pushes = hosts.into_iter().map(|(host, repositories)| {
        let status = status.clone();
        async move {
            let lenient = options.insecure.then(|| registry.allowing_insecure(host));
            let registry = lenient.as_ref().unwrap_or(registry);
            let mut earlier: Vec<String> = Vec::new();
            for (repository, names) in repositories {
                let push = Push { context, name: names[0], repository, registry, credentials };
                push.blobs(&image.blobs, &earlier, &status).await?;
                for name in names {
                    let push = Push { name, repository: push.repository.clone(), ..push };
                    push.manifests(&image.manifests, image.descriptor.digest, options.push_by_digest).await?;
                }
                earlier.push(push.repository.path);
            }
            Ok(())
        }
        .boxed()
    });
    let pushes: Vec<BoxFuture<'_, Result<()>>> = pushes.collect();
    try_join_all(pushes).await.map(drop)
}

/// Uploads a remote cache under `name`: its blobs, then the manifest that names them.
pub(crate) async fn push_cache(
    context: &ExportContext,
    name: &Reference,
    blobs: &[Content],
    manifest: &Content,
    registry: &Registry,
    credentials: &Credentials,
) -> Result<()> {
    let push = Push { context, name, repository: Repository::from(name), registry, credentials };
    let bytes = blobs.iter().map(|c| c.descriptor.size).sum();
    let status = Arc::new(Mutex::new(Status::start(&context.progress, "pushing layers", bytes)));
    push.blobs(blobs, &[], &status).await?;
    push.manifests(std::slice::from_ref(manifest), manifest.descriptor.digest, false).await
}

struct Push<'a> {
    context: &'a ExportContext,
    name: &'a Reference,
    repository: Repository,
    registry: &'a Registry,
    credentials: &'a Credentials,
}

impl Push<'_> {
    async fn blobs(&self, blobs: &[Content], siblings: &[String], status: &Arc<Mutex<Status>>) -> Result<()> {
        // Boxed: the compiler cannot show that a stream of borrowing futures may change threads.
        let mut uploads: Vec<BoxFuture<'_, Result<()>>> = Vec::with_capacity(blobs.len());
        for content in blobs {
            let (cancel, status) = (self.context.cancel.clone(), status.clone());
            uploads.push(Box::pin(async move {
                tokio::select! {
                    () = cancel.cancelled() => Err(ExportError::Canceled),
                    done = self.blob(content, siblings, &status) => done,
                }
            }));
        }
        let uploads = futures::stream::iter(uploads);
        uploads.buffer_unordered(UPLOADS).try_collect::<Vec<()>>().await.map(drop)
    }

    async fn blob(&self, content: &Content, siblings: &[String], status: &Arc<Mutex<Status>>) -> Result<()> {
        let source = source(self.context, content, status);
        let origin = content.layer.as_ref().and_then(|layer| self.context.remote.repository(layer));
        let origin = origin.filter(|o| o.host == self.repository.host).map(|o| o.path);
        let from: Vec<String> = siblings.iter().cloned().chain(origin).collect();
        let pushed = self.registry.push_blob(&self.repository, &content.descriptor, source, &from, self.credentials);
        match pushed.await.map_err(|e| self.failed(e))? {
            Pushed::Uploaded => {}
            Pushed::Existed | Pushed::Mounted(_) => status.lock().add(content.descriptor.size),
        }
        Ok(())
    }

    /// Uploads manifests in their order; `root` gets the name. What the registry has under its name already is not sent.
    async fn manifests(&self, manifests: &[Content], root: Digest, by_digest: bool) -> Result<()> {
        let id = format!("pushing manifest for {}@{root}", self.name);
        let _status = Status::start(&self.context.progress, id, 0);
        for content in manifests {
            self.context.check_canceled()?;
            let Some(bytes) = content.document_bytes() else { continue };
            let digest = content.descriptor.digest;
            let is_root = digest == root;
            let untagged = || Reference::parse(&format!("{}@{digest}", self.repository));
            let target = match is_root && !by_digest && self.name.tag().is_some() {
                true => self.name.clone(),
                false => untagged().map_err(|e| ExportError::Unsupported(e.to_string()))?,
            };
            if self.registry.has_manifest(&target, &content.descriptor, self.credentials).await {
                continue;
            }
            let media_type = &content.descriptor.media_type;
            let pushed = self.registry.push_manifest(&target, media_type, bytes.clone(), self.credentials);
            tokio::select! {
                () = self.context.cancel.cancelled() => return Err(ExportError::Canceled),
                done = pushed => done.map_err(|e| self.failed(e))?,
            };
        }
        Ok(())
    }

    fn failed(&self, source: RegistryError) -> ExportError {
        ExportError::Push { name: self.name.to_string(), source: Box::new(source) }
    }
}

/// Returns the bytes of a piece, of which `status` is told as they leave; fetched when they are asked for.
pub(crate) fn source(context: &ExportContext, content: &Content, status: &Arc<Mutex<Status>>) -> Arc<dyn BlobSource> {
    let inner: Arc<dyn BlobSource> = match &content.data {
        Data::Bytes(bytes) => Arc::new(bytes.clone()),
        Data::Blob(blob) => Arc::new(FileBlob(blob.path().to_owned())),
        Data::Remote(layer) => {
            Arc::new(RemoteBlob { context: context.clone(), layer: layer.clone(), content: content.clone() })
        }
    };
    Arc::new(Counted { inner, status: status.clone(), counted: Arc::default() })
}

/// Tells a status of the bytes that leave; those of an attempt that failed are taken back.
struct Counted {
    inner: Arc<dyn BlobSource>,
    status: Arc<Mutex<Status>>,
    counted: Arc<Mutex<u64>>,
}

impl BlobSource for Counted {
    fn open(&self) -> BoxFuture<'_, io::Result<BoxStream<'static, io::Result<Bytes>>>> {
        let (status, counted) = (self.status.clone(), self.counted.clone());
        status.lock().take_back(std::mem::take(&mut *counted.lock()));
        let open = self.inner.open();
        async move {
            let count = move |piece: &Bytes| {
                *counted.lock() += piece.len() as u64;
                status.lock().add(piece.len() as u64);
            };
            Ok(open.await?.inspect_ok(count).boxed())
        }
        .boxed()
    }
}

/// A layer that is fetched only if the registry does not have it.
struct RemoteBlob {
    context: ExportContext,
    layer: kiln_store::Layer,
    content: Content,
}

impl BlobSource for RemoteBlob {
    fn open(&self) -> BoxFuture<'_, io::Result<BoxStream<'static, io::Result<Bytes>>>> {
        async move {
            let (remote, layer) = (self.context.remote.clone(), self.layer.clone());
            let digest = self.content.descriptor.digest;
            let fetched = tokio::task::spawn_blocking(move || remote.fetch(&layer, &digest)).await;
            let blob = joined(fetched).map_err(|e| io::Error::other(e.to_string()))?;
            let stream = FileBlob(blob.path().to_owned()).open().await?;
            // The guard lives as long as the stream.
            Ok(stream.inspect_ok(move |_| drop_guard(&blob)).boxed())
        }
        .boxed()
    }
}

/// Does nothing; it makes the stream's closure own its guard.
fn drop_guard(_: &kiln_store::Blob) {}

#[cfg(test)]
mod tests;
