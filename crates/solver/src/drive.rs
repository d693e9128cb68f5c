//! The only async file: turns the core's effects into futures and feeds events back.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::job::{Command, Limits};
use crate::keystore::KeyStore;

pub(crate) async fn run<R: Clone + Send + Sync + 'static>(
    main: Arc<dyn KeyStore<R>>,
    limits: Limits,
    mut inbox: mpsc::Receiver<Command<R>>,
) {
    let _ = (main, limits);
    while inbox.recv().await.is_some() {}
}
