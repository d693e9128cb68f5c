//! Directories the engine may read.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::error::SessionError;
use crate::headers;
use crate::proto::filesync::file_sync_server::FileSync;
use crate::proto::fs::Packet;
use crate::transfer::{self, Ending, TransferOptions};
use crate::tree::{DirTree, TreeFilter};

/// Most packets waiting to be sent.
const QUEUE: usize = 128;

/// A directory to offer.
#[derive(Debug, Clone)]
pub struct LocalDir {
    pub path: PathBuf,
    /// Say that files belong to user and group 0, as clients of builds do.
    pub reset_owner: bool,
}

impl LocalDir {
    /// Returns the directory at `path` as builds offer it.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), reset_owner: true }
    }
}

/// Serves named directories; every other name is refused.
#[derive(Debug, Clone, Default)]
pub struct FileSyncProvider {
    dirs: Arc<BTreeMap<String, LocalDir>>,
}

impl FileSyncProvider {
    /// Makes a provider of these directories.
    pub fn new(dirs: impl IntoIterator<Item = (String, LocalDir)>) -> Self {
        Self { dirs: Arc::new(dirs.into_iter().collect()) }
    }
}

#[async_trait::async_trait]
impl FileSync for FileSyncProvider {
    type DiffCopyStream = BoxStream<'static, Result<Packet, Status>>;
    type TarStreamStream = BoxStream<'static, Result<Packet, Status>>;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<Self::DiffCopyStream>, Status> {
        let map = request.metadata();
        let name = headers::get_one(map, headers::DIR_NAME).unwrap_or_default();
        let filter = TreeFilter {
            include_patterns: headers::get_all(map, headers::INCLUDE_PATTERNS),
            exclude_patterns: headers::get_all(map, headers::EXCLUDE_PATTERNS),
            follow_paths: headers::get_all(map, headers::FOLLOW_PATHS),
        };
        let dir = self.dirs.get(&name);
        let dir = dir.cloned().ok_or_else(|| Status::not_found(format!("no access allowed to dir {name:?}")))?;
        let tree = tokio::task::spawn_blocking(move || {
            let failed = |e| SessionError::io(format!("opening {}", dir.path.display()), e);
            DirTree::open(&dir.path).map_err(failed)?.reset_owner(dir.reset_owner).filtered(&filter)
        });
        let tree = tree.await.map_err(|e| Status::internal(e.to_string()))?.map_err(|e| e.to_status())?;
        Ok(Response::new(serve(request.into_inner(), tree)))
    }

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<Self::TarStreamStream>, Status> {
        Err(Status::unimplemented("tarstream is not offered"))
    }
}

/// Runs the transfer beside the answer; its error ends the answer.
fn serve(incoming: Streaming<Packet>, tree: DirTree) -> BoxStream<'static, Result<Packet, Status>> {
    let (outgoing, packets) = mpsc::channel(QUEUE);
    let cancel = CancellationToken::new();
    let options = TransferOptions::cancelled_by(&cancel);
    // When the engine drops the call, so is the answer, and with it the transfer.
    let guard = cancel.drop_guard();
    let transfer =
        tokio::spawn(async move { transfer::send(incoming, outgoing, tree, Ending::Confirmed, &options).await });
    let tail = futures::stream::once(async move {
        let _guard = guard;
        match transfer.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(Err(error.to_status())),
            Err(error) => Some(Err(Status::internal(error.to_string()))),
        }
    });
    ReceiverStream::new(packets).map(Ok).chain(tail.filter_map(std::future::ready)).boxed()
}
