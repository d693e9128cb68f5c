//! Blobs on their way in: verified, and taken up again where the connection broke.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use kiln_registry::ErrorKind;
use kiln_registry::transfer::backoff;
use kiln_stdx::{Digest, DigestHasher};
use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;
use tokio::time::Instant;

use crate::client::Opened;
use crate::error::protocol;
use crate::{ObjectError, ObjectStore};

/// Progress that makes up for earlier failures, in bytes.
const PROGRESS: u64 = 64 << 10;
/// Fewest bytes that have to come in the time in which something has to.
const LEAST: u64 = 4 << 10;

/// The bytes of one blob. The last piece is handed out only when length and digest are right.
pub struct ObjectStream(BoxStream<'static, Result<Bytes, ObjectError>>);

impl Stream for ObjectStream {
    type Item = Result<Bytes, ObjectError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

/// Returns the bytes of a blob.
pub fn fetch(store: Arc<dyn ObjectStore>, digest: Digest, size: u64) -> ObjectStream {
    let download =
        Download { store, digest, size, offset: 0, hasher: DigestHasher::new(), open: None, failures: 0, failed_at: 0 };
    ObjectStream(stream::try_unfold(Some(download), step).boxed())
}

/// Yields the next piece; the state is gone once the last one was handed out.
async fn step(state: Option<Download>) -> Result<Option<(Bytes, Option<Download>)>, ObjectError> {
    let Some(mut download) = state else { return Ok(None) };
    match download.next().await {
        Ok(piece) => {
            let more = (download.offset < download.size).then_some(download);
            Ok(Some((piece, more)))
        }
        Err(kind) => {
            let object = format!("blob {}", download.digest);
            Err(ObjectError::of(download.store.name(), object, kind))
        }
    }
}

struct Open {
    body: Opened,
    /// Bytes to drop first: the server sent the blob from its start again.
    skip: u64,
    /// Since when bytes are counted, and how many came.
    window: (Instant, u64),
}

struct Download {
    store: Arc<dyn ObjectStore>,
    digest: Digest,
    size: u64,
    offset: u64,
    hasher: DigestHasher,
    open: Option<Open>,
    failures: u32,
    failed_at: u64,
}

impl Download {
    /// Returns the next piece that is not empty; an empty one only for an empty blob.
    async fn next(&mut self) -> Result<Bytes, ErrorKind> {
        if self.size == 0 {
            return self.verify(Bytes::new());
        }
        loop {
            let Some(open) = &mut self.open else {
                self.open = Some(self.begin().await?);
                continue;
            };
            let came = open.body.piece(self.store.limits()).await;
            match came {
                Ok(Some(piece)) if open.is_slow(piece.len(), self.store.limits().timeouts.stall) => {
                    self.broken(ErrorKind::Timeout("next to no data came")).await?;
                }
                Ok(Some(mut piece)) => {
                    let drop = open.skip.min(piece.len() as u64);
                    open.skip -= drop;
                    // A piece's length fits `usize`, so the part to drop does.
                    let piece = piece.split_off(drop as usize);
                    if !piece.is_empty() {
                        return self.take(piece);
                    }
                }
                Ok(None) => self.broken(ErrorKind::Interrupted("the body ended early".to_owned())).await?,
                Err(kind) => self.broken(kind).await?,
            }
        }
    }

    async fn begin(&self) -> Result<Open, ErrorKind> {
        let body = self.store.open(&self.digest, self.offset).await?;
        let skip = if body.0.status() == StatusCode::PARTIAL_CONTENT {
            let range = body.0.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok());
            let start = range.and_then(|r| r.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
            match start {
                Some(start) if start <= self.offset => self.offset - start,
                _ => return Err(protocol("a range came that was not asked for")),
            }
        } else {
            match body.0.content_length() {
                Some(actual) if actual != self.size => {
                    return Err(ErrorKind::LengthMismatch { expected: self.size, actual });
                }
                _ => self.offset,
            }
        };
        Ok(Open { body, skip, window: (Instant::now(), 0) })
    }

    fn take(&mut self, piece: Bytes) -> Result<Bytes, ErrorKind> {
        let end = self.offset + piece.len() as u64;
        if end > self.size {
            return Err(ErrorKind::LengthMismatch { expected: self.size, actual: end });
        }
        self.hasher.update(&piece);
        self.offset = end;
        if end < self.size { Ok(piece) } else { self.verify(piece) }
    }

    /// Lets the last piece through if everything adds up.
    fn verify(&mut self, last: Bytes) -> Result<Bytes, ErrorKind> {
        let actual = std::mem::take(&mut self.hasher).finish();
        if actual == self.digest { Ok(last) } else { Err(ErrorKind::DigestMismatch { expected: self.digest, actual }) }
    }

    /// Notes a broken body and waits; the next piece is asked for where it broke.
    async fn broken(&mut self, kind: ErrorKind) -> Result<(), ErrorKind> {
        self.open = None;
        if self.offset >= self.failed_at + PROGRESS {
            self.failures = 0;
        }
        self.failed_at = self.offset;
        self.failures += 1;
        let limits = self.store.limits();
        if !kind.is_transient() || self.failures >= limits.retry.attempts {
            return Err(kind);
        }
        (limits.pause)(backoff(&limits.retry, self.failures)).await;
        Ok(())
    }
}

impl Open {
    /// Counts bytes that came, and tells whether those of the last while are too few.
    fn is_slow(&mut self, count: usize, period: std::time::Duration) -> bool {
        self.window.1 += count as u64;
        if self.window.0.elapsed() < period {
            return false;
        }
        let (_, came) = std::mem::replace(&mut self.window, (Instant::now(), 0));
        came < LEAST
    }
}
