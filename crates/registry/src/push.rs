//! Pushing: blobs are looked up, mounted from a sibling repository, or uploaded; manifests come last.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use kiln_oci::{Descriptor, Reference};
use kiln_stdx::{Digest, DigestHasher};
use parking_lot::Mutex;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use tokio_util::io::ReaderStream;

use crate::Registry;
use crate::credentials::Credentials;
use crate::error::{ErrorKind, RegistryError};
use crate::host::Endpoint;
use crate::repository::Repository;
use crate::resolve::{ACCEPTED, pull_scope};
use crate::retry::Retries;
use crate::transport::{Body, Call, Target, location};

/// Size of the pieces in which files are read, in bytes.
const PIECE: usize = 128 << 10;
const PUSH_BLOB: &str = "push blob";
const PUSH_MANIFEST: &str = "push manifest";

/// Content that can be read from its start any number of times.
pub trait BlobSource: Send + Sync {
    /// Opens the content.
    fn open(&self) -> BoxFuture<'_, io::Result<BoxStream<'static, io::Result<Bytes>>>>;
}

impl BlobSource for Bytes {
    fn open(&self) -> BoxFuture<'_, io::Result<BoxStream<'static, io::Result<Bytes>>>> {
        let piece = self.clone();
        async move { Ok(stream::iter([Ok(piece)]).boxed()) }.boxed()
    }
}

/// A file as the content of a blob.
#[derive(Debug, Clone)]
pub struct FileBlob(pub PathBuf);

impl BlobSource for FileBlob {
    fn open(&self) -> BoxFuture<'_, io::Result<BoxStream<'static, io::Result<Bytes>>>> {
        async move {
            let file = tokio::fs::File::open(&self.0).await?;
            Ok(ReaderStream::with_capacity(file, PIECE).boxed())
        }
        .boxed()
    }
}

/// How a blob came to be in the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// The registry took it from this repository path.
    Mounted(String),
    /// It was sent.
    Uploaded,
}

impl Registry {
    /// Puts a blob into `repository`, verifying the source's bytes on the way.
    ///
    /// `mount_from` are paths of repositories on the same host that may hold the blob.
    ///
    /// # Errors
    /// Refusals, what is left after the retries, and a source that cannot be read or does not match.
    pub async fn push_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        source: Arc<dyn BlobSource>,
        mount_from: &[String],
        credentials: &Credentials,
    ) -> Result<Pushed, RegistryError> {
        let push = self.push_to(repository, descriptor.digest, credentials)?;
        if push.exists().await? {
            return Ok(Pushed::Existed);
        }
        let mut session = None;
        for from in mount_from.iter().filter(|from| **from != repository.path) {
            match push.start(Some(from)).await {
                Ok(Started::Done) => return Ok(Pushed::Mounted(from.clone())),
                // The registry will not mount but has opened an upload; one is enough.
                Ok(Started::Session(url)) => {
                    session = Some(url);
                    break;
                }
                // No right to read the sibling is no reason to fail: the content is at hand.
                Err(error) if error.status().is_some_and(|s| matches!(s, 400..=404)) => {}
                Err(error) => return Err(error),
            }
        }
        let _permit = push.endpoint.host.permits.clone().acquire_owned().await;
        push.upload(session, descriptor.size, source).await
    }

    /// Tells whether the registry has this very manifest under the tag of `reference`, or under its digest where there is
    /// no tag. A registry that does not say counts as one that does not have it.
    pub async fn has_manifest(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        credentials: &Credentials,
    ) -> bool {
        let Ok(push) = self.push_to(&Repository::from(reference), descriptor.digest, credentials) else { return false };
        let name = reference.tag().map_or_else(|| descriptor.digest.to_string(), str::to_owned);
        let target = Target::Path(push.endpoint.path(&format!("manifests/{name}")));
        let mut call = push.call(PUSH_MANIFEST, Method::HEAD, target);
        call.headers.insert(ACCEPT, HeaderValue::from_static(ACCEPTED));
        let Ok(response) = self.inner.send(&call).await else { return false };
        let stored = response.headers().get("docker-content-digest").and_then(|v| v.to_str().ok());
        stored.and_then(|text| text.parse::<Digest>().ok()) == Some(descriptor.digest)
    }

    /// Puts a manifest or index under the tag of `reference`, or under its own digest where there is no tag.
    ///
    /// Its blobs and children must have been pushed before. Returns its descriptor.
    ///
    /// # Errors
    /// Refusals, what is left after the retries, and a registry that reports another digest.
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: Bytes,
        credentials: &Credentials,
    ) -> Result<Descriptor, RegistryError> {
        let descriptor = Descriptor::of(media_type, &bytes);
        let push = self.push_to(&Repository::from(reference), descriptor.digest, credentials)?;
        let name = reference.tag().map_or_else(|| descriptor.digest.to_string(), str::to_owned);
        let mut call =
            push.call(PUSH_MANIFEST, Method::PUT, Target::Path(push.endpoint.path(&format!("manifests/{name}"))));
        call.subject = reference.to_string();
        let bad_type = |_| call.error(ErrorKind::Protocol(format!("`{media_type}` is no media type")));
        let media_type = HeaderValue::from_str(media_type).map_err(bad_type)?;
        call.headers.insert(CONTENT_TYPE, media_type);
        call.body = Body::Bytes(bytes);
        let response = self.inner.send(&call).await?;
        let stored =
            response.headers().get("docker-content-digest").and_then(|v| v.to_str().ok()?.parse::<Digest>().ok());
        match stored {
            Some(actual) if actual != descriptor.digest => {
                Err(call.error(ErrorKind::DigestMismatch { expected: descriptor.digest, actual }))
            }
            _ => Ok(descriptor),
        }
    }

    fn push_to<'a>(
        &'a self,
        repository: &Repository,
        digest: Digest,
        credentials: &'a Credentials,
    ) -> Result<Push<'a>, RegistryError> {
        let subject = format!("{repository}@{digest}");
        match self.inner.hosts.push(repository) {
            Ok(endpoint) => Ok(Push { registry: self, endpoint, subject, digest, credentials }),
            Err(kind) => Err(RegistryError {
                operation: PUSH_BLOB,
                target: subject.into(),
                host: repository.host.as_str().into(),
                kind,
            }),
        }
    }
}

/// One blob or manifest on its way to one repository.
struct Push<'a> {
    registry: &'a Registry,
    endpoint: Endpoint,
    subject: String,
    digest: Digest,
    credentials: &'a Credentials,
}

enum Started {
    /// The blob was mounted.
    Done,
    Session(Url),
}

impl Push<'_> {
    fn call(&self, operation: &'static str, method: Method, target: Target) -> Call<'_> {
        Call {
            operation,
            subject: self.subject.clone(),
            host: self.endpoint.host.clone(),
            method,
            target,
            headers: HeaderMap::new(),
            body: Body::Empty,
            scopes: vec![format!("repository:{}:pull,push", self.endpoint.path)],
            credentials: self.credentials,
        }
    }

    async fn exists(&self) -> Result<bool, RegistryError> {
        let target = Target::Path(self.endpoint.path(&format!("blobs/{}", self.digest)));
        match self.registry.inner.send(&self.call(PUSH_BLOB, Method::HEAD, target)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Opens an upload, or mounts the blob from the repository at path `from`.
    async fn start(&self, from: Option<&str>) -> Result<Started, RegistryError> {
        let mut rest = "blobs/uploads/".to_owned();
        if let Some(from) = from {
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            query.append_pair("mount", &self.digest.to_string()).append_pair("from", from);
            rest = format!("{rest}?{}", query.finish());
        }
        let mut call = self.call(PUSH_BLOB, Method::POST, Target::Path(self.endpoint.path(&rest)));
        call.scopes.extend(from.map(pull_scope));
        let response = self.registry.inner.send(&call).await?;
        match response.status() {
            StatusCode::CREATED if from.is_some() => Ok(Started::Done),
            _ => match location(&response) {
                Some(url) => Ok(Started::Session(url)),
                None => Err(call.error(ErrorKind::Protocol("an upload was opened without a location".to_owned()))),
            },
        }
    }

    /// Sends the content in one piece; a failed attempt starts over with an upload of its own.
    async fn upload(
        &self,
        mut session: Option<Url>,
        size: u64,
        source: Arc<dyn BlobSource>,
    ) -> Result<Pushed, RegistryError> {
        let mut retries = Retries::new(&self.registry.inner.config.retry);
        loop {
            let mut url = match session.take() {
                Some(url) => url,
                None => match self.start(None).await? {
                    Started::Session(url) => url,
                    Started::Done => return Ok(Pushed::Uploaded),
                },
            };
            url.query_pairs_mut().append_pair("digest", &self.digest.to_string());
            let mut call = self.call(PUSH_BLOB, Method::PUT, Target::Url(url));
            call.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            call.body = Body::Upload(Upload { source: source.clone(), digest: self.digest, size });
            let error = match self.registry.inner.send_upload(&call).await {
                Ok(()) => return Ok(Pushed::Uploaded),
                Err(error) => error,
            };
            // The answer to a finished upload may have been lost on its way.
            if error.kind.is_transient() && self.exists().await.unwrap_or(false) {
                return Ok(Pushed::Uploaded);
            }
            // 404 and 416: the session is gone or out of step; a new one may do.
            let stale = matches!(error.kind, ErrorKind::NotFound | ErrorKind::Status { status: 416, .. });
            let kind = if stale { &ErrorKind::Interrupted(String::new()) } else { &error.kind };
            match retries.after(kind) {
                Some(wait) => (self.registry.inner.config.pause)(wait).await,
                None => return Err(error),
            }
        }
    }
}

/// The body of an upload, compared with its length and digest on the way.
pub struct Upload {
    source: Arc<dyn BlobSource>,
    digest: Digest,
    size: u64,
}

/// An upload that is being sent.
pub struct Sending {
    pub body: reqwest::Body,
    pub state: Arc<UploadState>,
}

/// How far an upload has come, seen from outside its body.
#[derive(Default)]
pub struct UploadState {
    sent: AtomicU64,
    complete: AtomicBool,
    fault: Mutex<Option<ErrorKind>>,
}

impl UploadState {
    /// Returns how many bytes have left.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Tells whether all have.
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Relaxed)
    }

    /// Returns why the source broke off, if it did.
    pub fn take_fault(&self) -> Option<ErrorKind> {
        self.fault.lock().take()
    }

    fn fail(&self, kind: ErrorKind) -> io::Error {
        *self.fault.lock() = Some(kind);
        io::Error::other("source broke off")
    }
}

impl Upload {
    /// Returns the body that `source` gives.
    pub fn new(source: Arc<dyn BlobSource>, digest: Digest, size: u64) -> Self {
        Self { source, digest, size }
    }

    /// Returns its length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Opens the source; the body can be sent once.
    ///
    /// # Errors
    /// [`ErrorKind::Source`].
    pub async fn open(&self) -> Result<Sending, ErrorKind> {
        let stream = self.source.open().await.map_err(ErrorKind::Source)?;
        let state = Arc::new(UploadState::default());
        let check =
            Check { stream, state: state.clone(), hasher: DigestHasher::new(), digest: self.digest, left: self.size };
        let pieces = stream::try_unfold(check, Check::next);
        Ok(Sending { body: reqwest::Body::wrap_stream(pieces), state })
    }
}

/// Passes a source's bytes on, the last piece only when all of them match.
struct Check {
    stream: BoxStream<'static, io::Result<Bytes>>,
    state: Arc<UploadState>,
    hasher: DigestHasher,
    digest: Digest,
    left: u64,
}

impl Check {
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        if self.left == 0 {
            return Ok(None);
        }
        let piece = match self.stream.next().await {
            Some(Ok(piece)) => piece,
            Some(Err(error)) => return Err(self.state.fail(ErrorKind::Source(error))),
            None => return Err(self.state.fail(ErrorKind::SourceDamaged)),
        };
        let length = piece.len() as u64;
        if length > self.left {
            return Err(self.state.fail(ErrorKind::SourceDamaged));
        }
        self.hasher.update(&piece);
        self.left -= length;
        if self.left == 0 && std::mem::take(&mut self.hasher).finish() != self.digest {
            return Err(self.state.fail(ErrorKind::SourceDamaged));
        }
        self.state.sent.fetch_add(length, Ordering::Relaxed);
        self.state.complete.store(self.left == 0, Ordering::Relaxed);
        Ok(Some((piece, self)))
    }
}
