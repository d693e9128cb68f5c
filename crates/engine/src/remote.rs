//! What exports ask for when a layer is not here: fetched from where it came, by the same way as for steps.

use std::sync::Arc;

use kiln_exporter::{ExportError, RemoteLayers};
use kiln_registry::Repository;
use kiln_stdx::{Digest, ErrorClass};
use kiln_store::{Blob, ImmutableRef, Layer};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::build::Progress;
use crate::error::EngineError;
use crate::parts::Parts;
use crate::source::{fetch, lazy};

/// Fetches layers for one export. Its calls block; they come from threads that may wait.
pub struct Origins {
    parts: Arc<Parts>,
    progress: Progress,
    runtime: Handle,
    cancel: CancellationToken,
}

impl Origins {
    /// Returns the origins for an export of a build, until `cancel` fires. Must be called within a tokio runtime.
    pub fn new(parts: &Arc<Parts>, progress: Progress, cancel: &CancellationToken) -> Arc<Self> {
        Arc::new(Self { parts: parts.clone(), progress, runtime: Handle::current(), cancel: cancel.clone() })
    }

    fn wait<T>(&self, work: impl Future<Output = Result<T, EngineError>>) -> Result<T, EngineError> {
        self.runtime.block_on(async {
            tokio::select! {
                done = work => done,
                () = self.cancel.cancelled() => Err(EngineError::canceled()),
            }
        })
    }
}

fn failed(layer: String, error: EngineError) -> ExportError {
    match error.class() {
        ErrorClass::Canceled => ExportError::Canceled,
        class => ExportError::Fetch { layer, why: error.to_string(), class, hint: error.hint },
    }
}

impl RemoteLayers for Origins {
    fn fetch(&self, layer: &Layer, digest: &Digest) -> Result<Blob, ExportError> {
        let fetched = self.wait(fetch::blob(&self.parts, &self.progress, layer, digest));
        fetched.map_err(|error| failed(digest.to_string(), error))
    }

    fn unpack(&self, reference: &ImmutableRef) -> Result<(), ExportError> {
        let unpacked = self.wait(lazy::unpack(&self.parts, &self.progress, [reference]));
        unpacked.map_err(|error| failed(reference.id().to_string(), error))
    }

    fn repository(&self, layer: &Layer) -> Option<Repository> {
        fetch::registry_of(layer).map(|reference| Repository::from(&reference))
    }
}
