//! What an export works with.

use std::sync::Arc;

use kiln_store::Store;
use tokio_util::sync::CancellationToken;

use crate::error::{ExportError, Result};
use crate::progress::ExportProgress;
use crate::source::RemoteLayers;

/// What an export works with.
#[derive(Clone)]
pub struct ExportContext {
    pub store: Store,
    pub remote: Arc<dyn RemoteLayers>,
    pub progress: Arc<dyn ExportProgress>,
    /// The compatibility level of the request: 10, 20 or 30.
    pub compatibility: u32,
    pub cancel: CancellationToken,
}

impl ExportContext {
    pub(crate) fn check_canceled(&self) -> Result<()> {
        if self.cancel.is_cancelled() { Err(ExportError::Canceled) } else { Ok(()) }
    }
}
