//! Images on their way to a registry: blobs side by side, then manifests, the root last.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use kiln_oci::Reference;
use kiln_registry::{BlobSource, Credentials, FileBlob, Registry, RegistryError, Repository};
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

/// Uploads `image` under each of its names.
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
    for name in &image.names {
        let lenient = options.insecure.then(|| registry.allowing_insecure(name.host()));
        let registry = lenient.as_ref().unwrap_or(registry);
        let push = Push { context, name, repository: Repository::from(name), registry, credentials };
        push.blobs(&image.blobs).await?;
        push.manifests(&image.manifests, image.descriptor.digest, options.push_by_digest).await?;
    }
    Ok(())
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
    push.blobs(blobs).await?;
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
    async fn blobs(&self, blobs: &[Content]) -> Result<()> {
        let total = blobs.iter().map(|c| c.descriptor.size).sum();
        let status = Arc::new(Mutex::new(Status::start(&self.context.progress, "pushing layers", total)));
        // Boxed: the compiler cannot show that a stream of borrowing futures may change threads.
        let mut uploads: Vec<BoxFuture<'_, Result<()>>> = Vec::with_capacity(blobs.len());
        for content in blobs {
            let (cancel, status) = (self.context.cancel.clone(), status.clone());
            uploads.push(Box::pin(async move {
                tokio::select! {
                    () = cancel.cancelled() => Err(ExportError::Canceled),
                    done = self.blob(content, &status) => done,
                }
            }));
        }
        let uploads = futures::stream::iter(uploads);
        uploads.buffer_unordered(UPLOADS).try_collect::<Vec<()>>().await.map(drop)
    }

    async fn blob(&self, content: &Content, status: &Arc<Mutex<Status>>) -> Result<()> {
        let inner: Arc<dyn BlobSource> = match &content.data {
            Data::Bytes(bytes) => Arc::new(bytes.clone()),
            Data::Blob(blob) => Arc::new(FileBlob(blob.path().to_owned())),
            Data::Remote(layer) => {
                Arc::new(RemoteBlob { context: self.context.clone(), layer: layer.clone(), content: content.clone() })
            }
        };
        let source = Arc::new(Counted { inner, status: status.clone() });
        let from: Vec<String> = match &content.data {
            Data::Remote(layer) => {
                let origin = self.context.remote.repository(layer);
                origin.filter(|o| o.host == self.repository.host).map(|o| o.path).into_iter().collect()
            }
            _ => Vec::new(),
        };
        let pushed = self.registry.push_blob(&self.repository, &content.descriptor, source, &from, self.credentials);
        pushed.await.map(drop).map_err(|e| self.failed(e))
    }

    /// Uploads manifests in their order; `root` gets the name.
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
            let media_type = &content.descriptor.media_type;
            let pushed = self.registry.push_manifest(&target, media_type, bytes.clone(), self.credentials);
            pushed.await.map_err(|e| self.failed(e))?;
        }
        Ok(())
    }

    fn failed(&self, source: RegistryError) -> ExportError {
        ExportError::Push { name: self.name.to_string(), source: Box::new(source) }
    }
}

/// Tells a status of the bytes that leave.
struct Counted {
    inner: Arc<dyn BlobSource>,
    status: Arc<Mutex<Status>>,
}

impl BlobSource for Counted {
    fn open(&self) -> BoxFuture<'_, io::Result<BoxStream<'static, io::Result<Bytes>>>> {
        let status = self.status.clone();
        let open = self.inner.open();
        async move {
            let count = move |piece: &Bytes| status.lock().add(piece.len() as u64);
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
