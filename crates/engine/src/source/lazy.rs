//! Layers that nobody has read yet: fetched and unpacked when somebody needs their bytes, once for all who ask at a time.
//!
//! A pull notes an image's layers without fetching them. What only passes them on (labels, a merge, a push to the registry
//! they came from) never needs more than their descriptors.

use futures::{FutureExt, StreamExt, TryStreamExt};
use kiln_solver::OpContext;
use kiln_stdx::Digest;
use kiln_store::{ArrivingReader, Blob, ImmutableRef, Layer};
use tokio::sync::mpsc;

use super::fetch::any_blob;
use crate::build::Progress;
use crate::error::EngineError;
use crate::parts::Parts;

/// How many layers of one chain are fetched at once.
const PARALLEL: usize = 4;

/// Makes the files of all layers of `references` available.
///
/// # Errors
/// A layer cannot be had from where it came, or is not what was announced.
pub async fn unpack<'a>(
    parts: &Parts,
    progress: &Progress,
    references: impl IntoIterator<Item = &'a ImmutableRef>,
) -> Result<(), EngineError> {
    for reference in references {
        if !reference.is_unpacked() {
            unpack_one(parts, progress, reference).await?;
        }
    }
    Ok(())
}

/// Makes the files of an operation's inputs available, unless the call is called off.
///
/// # Errors
/// As [`unpack`].
pub async fn unpack_inputs<'a>(
    parts: &Parts,
    cx: &OpContext,
    inputs: impl IntoIterator<Item = &'a ImmutableRef>,
) -> Result<(), EngineError> {
    let progress = Progress::new(cx);
    tokio::select! {
        unpacked = unpack(parts, &progress, inputs) => unpacked,
        () = cx.cancel().cancelled() => Err(EngineError::canceled()),
    }
}

/// Some form of a layer, as its unpacking gets it.
enum Form {
    /// On its way; it may break off, and another attempt be made.
    Arriving(ArrivingReader),
    Here(Blob),
}

impl Form {
    fn digest(&self) -> Digest {
        match self {
            Self::Arriving(reader) => reader.digest(),
            Self::Here(blob) => blob.digest(),
        }
    }
}

/// Layers are unpacked bottom up, each while it comes, and later ones are on their way meanwhile.
async fn unpack_one(parts: &Parts, progress: &Progress, reference: &ImmutableRef) -> Result<(), EngineError> {
    let lazy = reference.lazy_layers();
    let (ready, mut forms): (Vec<_>, Vec<_>) = lazy.iter().map(|_| mpsc::unbounded_channel()).unzip();
    let fetches: Vec<_> =
        lazy.iter().zip(ready).map(|((_, layer), ready)| deliver(parts, progress, layer, ready).boxed()).collect();
    let fetching = futures::stream::iter(fetches).buffered(PARALLEL).try_for_each(|()| async { Ok(()) });
    // Beside the fetches, so that bytes go on coming while a layer is unpacked.
    let unpacking = async {
        for ((place, layer), forms) in lazy.iter().zip(&mut forms) {
            unpack_layer(parts, progress, (layer, reference.prefix(*place)), forms).await?;
        }
        Ok(())
    };
    tokio::try_join!(fetching, unpacking).map(drop)
}

/// Fetches a layer for the one who unpacks it.
async fn deliver(
    parts: &Parts,
    progress: &Progress,
    layer: &Layer,
    ready: mpsc::UnboundedSender<Form>,
) -> Result<(), EngineError> {
    // Whoever unpacks goes away early only when the layer is unpacked, or with an error of its own.
    let begun = |reader| drop(ready.send(Form::Arriving(reader)));
    let blob = any_blob(parts, progress, layer, &begun).await?;
    let _ = ready.send(Form::Here(blob));
    Ok(())
}

/// Unpacks a layer from the first form that gives it. Where none does for lack of one, its fetch says why.
async fn unpack_layer(
    parts: &Parts,
    progress: &Progress,
    (layer, below): (&Layer, ImmutableRef),
    forms: &mut mpsc::UnboundedReceiver<Form>,
) -> Result<(), EngineError> {
    while let Some(form) = forms.recv().await {
        if layer.is_unpacked() {
            return Ok(());
        }
        let label = format!("extracting {}", form.digest());
        let (store, layer, below) = (parts.store.clone(), layer.clone(), below.clone());
        match form {
            // No turn of unpacking is taken: this waits for a peer most of the time, and others have work.
            Form::Arriving(reader) => {
                let work = crate::parts::unbounded(move || Ok(store.unpack(&layer, &below, reader)?));
                match progress.timed(&label, work).await {
                    Ok(()) => return Ok(()),
                    // If it was not the transfer that failed, the blob that comes will tell.
                    Err(error) => tracing::debug!(%error, "not unpacked on its way"),
                }
            }
            Form::Here(blob) => {
                let work = parts.unpacking(move || {
                    let reader = std::io::BufReader::new(blob.open()?);
                    Ok(store.unpack(&layer, &below, reader)?)
                });
                return progress.timed(&label, work).await;
            }
        }
    }
    Ok(())
}

/// Brings some form of every layer that has neither files nor a form here, so that each can be put out.
///
/// # Errors
/// As [`unpack`].
pub async fn fetch_missing(
    parts: &Parts,
    progress: &Progress,
    reference: &ImmutableRef,
) -> Result<Vec<Blob>, EngineError> {
    let lazy = reference.lazy_layers();
    let fetches: Vec<_> = lazy.iter().map(|(_, layer)| any_blob(parts, progress, layer, &|_| ()).boxed()).collect();
    futures::stream::iter(fetches).buffered(PARALLEL).collect::<Vec<_>>().await.into_iter().collect()
}
