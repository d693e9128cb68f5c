//! Blobs: streamed, verified, resumed where the connection broke.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use kiln_oci::Descriptor;
use kiln_stdx::{Digest, DigestHasher};
use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::Registry;
use crate::credentials::{Anonymous, Credentials};
use crate::error::{ErrorKind, RegistryError};
use crate::host::Endpoint;
use crate::repository::Repository;
use crate::resolve::pull_scope;
use crate::retry::backoff;
use crate::transport::{Body, Call, Target};

/// Progress that makes up for earlier failures, in bytes.
const PROGRESS: u64 = 64 << 10;
/// Fewest bytes that have to come in the time in which something has to: whoever sends less, a byte now and then, would keep
/// a build waiting for days.
const LEAST: u64 = 4 << 10;
const OPERATION: &str = "fetch blob";

/// The bytes of one blob. The last piece is handed out only when length and digest are right.
///
/// While it lives it holds one of its host's transfer permits.
pub struct BlobStream(BoxStream<'static, Result<Bytes, RegistryError>>);

impl Stream for BlobStream {
    type Item = Result<Bytes, RegistryError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

/// Where a fetch begins and whom it leaves out.
#[derive(Clone, Default)]
pub struct FetchStart {
    /// Bytes that are here already; less than the blob's size.
    pub offset: u64,
    /// The digest's state over them.
    pub hasher: DigestHasher,
    /// Hosts not to be asked, as [`RegistryError::host`] names them: they gave wrong bytes.
    pub avoid: Vec<String>,
}

impl Registry {
    /// Opens the blob that `descriptor` names. Mirrors are asked first, then the registry, then the descriptor's `urls`.
    ///
    /// A broken connection is resumed where it broke. Waits while the host's transfer permits are all taken, so a
    /// caller must not hold several unread streams of one host.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], refusals, what is left after the retries; in the stream also content of another
    /// length or digest.
    pub async fn fetch_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        credentials: &Credentials,
    ) -> Result<BlobStream, RegistryError> {
        self.fetch_blob_from(repository, descriptor, FetchStart::default(), credentials).await
    }

    /// As [`Self::fetch_blob`], from what is here already. The digest is that of the whole, so bytes that were wrong
    /// before are found at the end.
    ///
    /// # Errors
    /// As [`Self::fetch_blob`]; no host is left to ask.
    pub async fn fetch_blob_from(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        start: FetchStart,
        credentials: &Credentials,
    ) -> Result<BlobStream, RegistryError> {
        let subject = format!("{repository}@{}", descriptor.digest);
        let mut endpoints = self.endpoints(OPERATION, &subject, repository)?;
        endpoints.retain(|endpoint| !start.avoid.contains(&endpoint.host.authority));
        let mut places: VecDeque<Place> = endpoints.into_iter().map(Place::Registry).collect();
        places.extend(descriptor.urls.iter().filter_map(|u| Url::parse(u).ok()).map(Place::Elsewhere));
        let mut download = Download {
            registry: self.clone(),
            credentials: credentials.clone(),
            subject,
            digest: descriptor.digest,
            size: descriptor.size,
            places,
            open: None,
            offset: start.offset,
            hasher: start.hasher,
            failures: 0,
            failed_at: start.offset,
            ranges: true,
        };
        if download.size > 0 {
            download.open().await?;
        }
        Ok(BlobStream(stream::try_unfold(Some(download), step).boxed()))
    }
}

/// Yields the next piece; the state is gone once the last one was handed out.
async fn step(state: Option<Download>) -> Result<Option<(Bytes, Option<Download>)>, RegistryError> {
    let Some(mut download) = state else { return Ok(None) };
    if download.size == 0 {
        download.verify(Bytes::new())?;
        return Ok(None);
    }
    let piece = download.next().await?;
    let more = (download.offset < download.size).then_some(download);
    Ok(Some((piece, more)))
}

/// Where a blob may be had.
#[derive(Clone)]
enum Place {
    Registry(Endpoint),
    /// A foreign layer's own address; nobody's credentials go there.
    Elsewhere(Url),
}

struct Open {
    response: Response,
    /// Bytes to drop first: the server sent the blob from its start again.
    skip: u64,
    /// Since when bytes are counted, and how many came.
    window: (Instant, u64),
    _permit: OwnedSemaphorePermit,
}

impl Open {
    /// Counts bytes that came, and tells whether those of the last while are too few.
    fn is_slow(&mut self, count: usize, period: Duration) -> bool {
        self.window.1 += count as u64;
        if self.window.0.elapsed() < period {
            return false;
        }
        let (_, came) = std::mem::replace(&mut self.window, (Instant::now(), 0));
        came < LEAST
    }
}

struct Download {
    registry: Registry,
    credentials: Credentials,
    subject: String,
    digest: Digest,
    size: u64,
    /// Places not given up yet, the current one first.
    places: VecDeque<Place>,
    open: Option<Open>,
    offset: u64,
    hasher: DigestHasher,
    failures: u32,
    failed_at: u64,
    /// Whether the server is still believed to serve ranges.
    ranges: bool,
}

impl Download {
    /// Opens the current place at `offset`; goes on to the next place when it has nothing.
    async fn open(&mut self) -> Result<(), RegistryError> {
        loop {
            let Some(place) = self.places.front().cloned() else {
                return Err(self.error("", ErrorKind::NotFound));
            };
            match self.open_at(&place).await {
                Ok(open) => {
                    self.open = Some(open);
                    return Ok(());
                }
                // A server may know ranges and refuse this one.
                Err(error) if error.status() == Some(416) && self.ranges && self.offset > 0 => self.ranges = false,
                Err(error) if self.places.len() == 1 => return Err(error),
                Err(_) => {
                    self.places.pop_front();
                    self.ranges = true;
                }
            }
        }
    }

    async fn open_at(&self, place: &Place) -> Result<Open, RegistryError> {
        let anonymous: Credentials = Arc::new(Anonymous);
        let mut headers = HeaderMap::new();
        if self.offset > 0 && self.ranges {
            let range = HeaderValue::from_str(&format!("bytes={}-", self.offset));
            headers.extend(range.map(|range| (RANGE, range)));
        }
        let (host, target, scopes, credentials) = match place {
            Place::Registry(endpoint) => {
                let path = endpoint.path(&format!("blobs/{}", self.digest));
                (endpoint.host.clone(), Target::Path(path), vec![pull_scope(&endpoint.path)], &self.credentials)
            }
            Place::Elsewhere(url) => {
                let host = self.registry.inner.hosts.of_url(url).map_err(|kind| self.error("", kind))?;
                (host, Target::Url(url.clone()), Vec::new(), &anonymous)
            }
        };
        let permit = host.permits.clone().acquire_owned().await;
        let permit = permit.map_err(|_| self.error(&host.authority, ErrorKind::Interrupted("client closed".into())))?;
        let call = Call {
            operation: OPERATION,
            subject: self.subject.clone(),
            host,
            method: Method::GET,
            target,
            headers,
            body: Body::Empty,
            scopes,
            credentials,
        };
        let response = self.registry.inner.send(&call).await?;
        let skip = self.starts_at(&response).map_err(|kind| call.error(kind))?;
        Ok(Open { response, skip, window: (Instant::now(), 0), _permit: permit })
    }

    /// Returns how many bytes of this answer to drop.
    fn starts_at(&self, response: &Response) -> Result<u64, ErrorKind> {
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok());
            let start = range.and_then(|r| r.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
            return match start {
                Some(start) if start <= self.offset => Ok(self.offset - start),
                _ => Err(ErrorKind::Protocol("a range came that was not asked for".to_owned())),
            };
        }
        match response.content_length() {
            Some(length) if length != self.size => {
                Err(ErrorKind::LengthMismatch { expected: self.size, actual: length })
            }
            _ => Ok(self.offset),
        }
    }

    /// Returns the next piece that is not empty.
    async fn next(&mut self) -> Result<Bytes, RegistryError> {
        loop {
            if self.open.is_none() {
                self.open().await?;
            }
            let Some(open) = &mut self.open else { continue };
            match self.registry.inner.chunk(&mut open.response).await {
                Ok(Some(chunk)) if open.is_slow(chunk.len(), self.registry.inner.config.timeouts.stall) => {
                    self.broken(ErrorKind::Timeout("next to no data came")).await?;
                }
                Ok(Some(mut chunk)) => {
                    let drop = open.skip.min(chunk.len() as u64);
                    open.skip -= drop;
                    // A chunk's length fits `usize`, so the part to drop does.
                    let chunk = chunk.split_off(drop as usize);
                    if !chunk.is_empty() {
                        return self.take(chunk);
                    }
                }
                Ok(None) => self.broken(ErrorKind::Interrupted("the body ended early".to_owned())).await?,
                Err(kind) => self.broken(kind).await?,
            }
        }
    }

    fn take(&mut self, chunk: Bytes) -> Result<Bytes, RegistryError> {
        let end = self.offset + chunk.len() as u64;
        if end > self.size {
            let kind = ErrorKind::LengthMismatch { expected: self.size, actual: end };
            return Err(self.error(&self.host(), kind));
        }
        self.hasher.update(&chunk);
        self.offset = end;
        if end < self.size { Ok(chunk) } else { self.verify(chunk) }
    }

    /// Lets the last piece through if everything adds up.
    fn verify(&mut self, last: Bytes) -> Result<Bytes, RegistryError> {
        let actual = std::mem::take(&mut self.hasher).finish();
        if actual == self.digest {
            return Ok(last);
        }
        let kind = ErrorKind::DigestMismatch { expected: self.digest, actual };
        Err(self.error(&self.host(), kind))
    }

    /// Notes a broken body and waits; the next open resumes.
    async fn broken(&mut self, kind: ErrorKind) -> Result<(), RegistryError> {
        self.open = None;
        if self.offset >= self.failed_at + PROGRESS {
            self.failures = 0;
        }
        self.failed_at = self.offset;
        self.failures += 1;
        let policy = &self.registry.inner.config.retry;
        if !kind.is_transient() || self.failures >= policy.attempts {
            if self.places.len() > 1 {
                self.places.pop_front();
                self.failures = 0;
                return Ok(());
            }
            return Err(self.error(&self.host(), kind));
        }
        // Every other try without a range, in case the server's ranges are what is broken.
        self.ranges = self.failures % 2 == 1 || self.failures == 0;
        (self.registry.inner.config.pause)(backoff(policy, self.failures)).await;
        Ok(())
    }

    fn host(&self) -> String {
        match self.places.front() {
            Some(Place::Registry(endpoint)) => endpoint.host.authority.clone(),
            Some(Place::Elsewhere(url)) => url.host_str().unwrap_or_default().to_owned(),
            None => String::new(),
        }
    }

    fn error(&self, host: &str, kind: ErrorKind) -> RegistryError {
        RegistryError { operation: OPERATION, target: self.subject.as_str().into(), host: host.into(), kind }
    }
}
