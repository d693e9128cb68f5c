//! Where layers are, and how they get from there into the store.

use std::io::Write;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use kiln_oci::Descriptor;
use kiln_stdx::ErrorClass;
use kiln_store::{Ingest, Store};
use tokio::sync::mpsc;

use crate::error::EngineError;

/// Pieces of a layer that may wait for the disk; each is some ten kilobytes.
const AHEAD: usize = 32;

/// A place that has layers.
#[async_trait]
pub trait StackSource: Send + Sync {
    /// Returns a name for messages: a reference, a layout's or a directory's name, an address without secrets.
    fn name(&self) -> String;

    /// Returns where it is, in words that [`super::fetch`] understands when a layer is fetched later.
    fn locator(&self) -> String {
        self.name()
    }

    /// Tells whether it has a layer, without fetching it.
    ///
    /// # Errors
    /// It cannot be reached, or refuses to tell.
    async fn has(&self, descriptor: &Descriptor) -> Result<bool, EngineError>;

    /// Brings a layer into the store's content, verified, and shows progress in bytes.
    ///
    /// # Errors
    /// It cannot be had, or is not what the descriptor says.
    async fn layer(
        &self,
        descriptor: &Descriptor,
        store: &Store,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), EngineError>;
}

/// Receives a blob, or the rest of it, while what came before is being written on a thread. Returns what the stream failed
/// with, all that came before that being written.
///
/// # Errors
/// The disk is full.
pub async fn receive<E>(
    mut ingest: Ingest,
    mut stream: impl Stream<Item = Result<Bytes, E>> + Unpin,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<(Ingest, Option<E>), EngineError> {
    let mut received = ingest.written();
    let (pieces, mut queue) = mpsc::channel::<Bytes>(AHEAD);
    let writing = tokio::task::spawn_blocking(move || {
        while let Some(piece) = queue.blocking_recv() {
            ingest.write_all(&piece)?;
        }
        Ok::<_, std::io::Error>(ingest)
    });
    let mut failure = None;
    while let Some(piece) = stream.next().await {
        match piece {
            Ok(piece) => {
                received += piece.len() as u64;
                // The writer ends early only with an error of its own.
                if pieces.send(piece).await.is_err() {
                    break;
                }
                progress(received);
            }
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    drop(pieces);
    let written = writing.await;
    Ok((written.map_err(|e| EngineError::new(ErrorClass::Bug, format!("a task panicked: {e}")))??, failure))
}

/// Receives a whole blob that a descriptor announces and adds it to the store.
///
/// # Errors
/// What the stream fails with, as `failed` puts it; other bytes than the descriptor says; a full disk.
pub async fn take<E>(
    store: &Store,
    descriptor: &Descriptor,
    stream: impl Stream<Item = Result<Bytes, E>> + Unpin,
    progress: &(dyn Fn(u64) + Send + Sync),
    failed: impl FnOnce(E) -> EngineError,
) -> Result<(), EngineError> {
    let ingest = store.ingest(Some(descriptor.digest), Some(descriptor.size))?;
    match receive(ingest, stream, progress).await? {
        (ingest, None) => Ok(ingest.commit().map(drop)?),
        (_, Some(error)) => Err(failed(error)),
    }
}
