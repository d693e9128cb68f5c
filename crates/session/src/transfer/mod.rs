//! The protocol that moves file trees in either direction (features 3.6): the sender lists, the receiver asks for the
//! contents it wants, the sender sends them in any order.
//!
//! Files are read and written by blocking threads; channels between them and the connection are bounded.

mod receive;
mod send;

use std::sync::Arc;
use std::time::Duration;

use kiln_stdx::limits;
use tokio_util::sync::CancellationToken;

pub use receive::{SyncTarget, receive};
pub use send::{Ending, TreeSource, send};

/// Longest silence of the peer; it may walk a large cold tree before it says anything.
const IDLE: Duration = Duration::from_secs(600);
/// Most packets waiting between the connection and a thread.
const QUEUE: usize = 128;

/// Told the bytes moved so far.
pub type ProgressFn = Arc<dyn Fn(u64) + Send + Sync>;

/// How a transfer is watched and called off.
#[derive(Clone)]
pub struct TransferOptions {
    /// Ends the transfer.
    pub cancel: CancellationToken,
    /// Called with the bytes of all packets so far.
    pub progress: Option<ProgressFn>,
    /// Longest silence of the peer.
    pub idle: Duration,
    /// Largest listing that is taken, as `limits::LISTING` counts it.
    pub listing: u64,
}

impl Default for TransferOptions {
    fn default() -> Self {
        Self { cancel: CancellationToken::new(), progress: None, idle: IDLE, listing: limits::LISTING }
    }
}

impl TransferOptions {
    /// Returns options that end with `cancel`.
    pub fn cancelled_by(cancel: &CancellationToken) -> Self {
        Self { cancel: cancel.clone(), ..Self::default() }
    }
}
