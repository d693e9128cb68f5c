//! Blob stores for the engine, by id: `oci:<name>`, `local:<dir>`, `export`.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use kiln_stdx::Digest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::layout::{Ingest, LayoutStore};
use crate::headers;
use crate::proto::content::content_server::Content;
use crate::proto::content::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, InfoResponse, ListContentRequest, ListContentResponse,
    ListStatusesRequest, ListStatusesResponse, ReadContentRequest, ReadContentResponse, StatusRequest, StatusResponse,
    UpdateRequest, UpdateResponse, WriteAction, WriteContentRequest, WriteContentResponse,
};

/// Size of the pieces read, in bytes.
const PIECE: usize = 256 * 1024;
/// Blobs a message lists.
const LISTED: usize = 100;

/// Serves stores by id.
#[derive(Debug, Clone, Default)]
pub struct ContentProvider {
    stores: Arc<BTreeMap<String, LayoutStore>>,
}

impl ContentProvider {
    /// Makes a provider of these stores.
    pub fn new(stores: impl IntoIterator<Item = (String, LayoutStore)>) -> Self {
        Self { stores: Arc::new(stores.into_iter().collect()) }
    }

    fn store<T>(&self, request: &Request<T>) -> Result<LayoutStore, Status> {
        let id = headers::get_one(request.metadata(), headers::STORE_ID)
            .ok_or_else(|| Status::invalid_argument(format!("request lacks metadata {:?}", headers::STORE_ID)))?;
        self.stores.get(&id).cloned().ok_or_else(|| Status::not_found(format!("unknown store {id}")))
    }
}

fn digest(text: &str) -> Result<Digest, Status> {
    text.parse().map_err(|e| Status::invalid_argument(format!("{text:?}: {e}")))
}

fn failed(error: io::Error) -> Status {
    match error.kind() {
        io::ErrorKind::NotFound => Status::not_found(error.to_string()),
        io::ErrorKind::InvalidData => Status::failed_precondition(error.to_string()),
        io::ErrorKind::ReadOnlyFilesystem => Status::permission_denied(error.to_string()),
        _ => Status::internal(error.to_string()),
    }
}

fn info(digest: &Digest, size: u64) -> Info {
    Info { digest: digest.to_string(), size: size.cast_signed(), ..Info::default() }
}

/// Runs file work on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Status::internal(e.to_string()))?.map_err(failed)
}

#[async_trait::async_trait]
impl Content for ContentProvider {
    type ListStream = BoxStream<'static, Result<ListContentResponse, Status>>;
    type ReadStream = BoxStream<'static, Result<ReadContentResponse, Status>>;
    type WriteStream = BoxStream<'static, Result<WriteContentResponse, Status>>;

    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let store = self.store(&request)?;
        let digest = digest(&request.get_ref().digest)?;
        let size = blocking(move || store.size(&digest)).await?;
        let size = size.ok_or_else(|| Status::not_found(format!("content {digest}: not found")))?;
        Ok(Response::new(InfoResponse { info: Some(info(&digest, size)) }))
    }

    /// Labels are not kept; what is asked for is answered as if they were, since they steer only a garbage collector.
    async fn update(&self, request: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        let store = self.store(&request)?;
        let wanted = request.into_inner().info.unwrap_or_default();
        let digest = digest(&wanted.digest)?;
        let size = blocking(move || store.size(&digest)).await?;
        let size = size.ok_or_else(|| Status::not_found(format!("content {digest}: not found")))?;
        let info = Info { labels: wanted.labels, ..info(&digest, size) };
        Ok(Response::new(UpdateResponse { info: Some(info) }))
    }

    async fn list(&self, request: Request<ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        let store = self.store(&request)?;
        let all = blocking(move || store.list()).await?;
        let pages: Vec<_> = all
            .chunks(LISTED)
            .map(|page| Ok(ListContentResponse { info: page.iter().map(|(d, s)| info(d, *s)).collect() }))
            .collect();
        Ok(Response::new(futures::stream::iter(pages).boxed()))
    }

    async fn delete(&self, _: Request<DeleteContentRequest>) -> Result<Response<()>, Status> {
        Err(Status::permission_denied("blobs of a client are not removed by an engine"))
    }

    async fn read(&self, request: Request<ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let store = self.store(&request)?;
        let wanted = request.into_inner();
        let digest = digest(&wanted.digest)?;
        let (Ok(offset), Ok(size)) = (u64::try_from(wanted.offset), u64::try_from(wanted.size)) else {
            return Err(Status::out_of_range("negative offset or size"));
        };
        let path = store.blob_path(&digest);
        let (mut file, length) = blocking(move || {
            let mut file = std::fs::File::open(path)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(offset))?;
            Ok((file, length))
        })
        .await?;
        let end = if size == 0 { length } else { offset.saturating_add(size) };
        if offset > length || end > length {
            return Err(Status::out_of_range(format!("{digest} has {length} bytes, {offset}..{end} were asked for")));
        }
        let (sender, pieces) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            let mut at = offset;
            while at < end {
                let want = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
                let mut data = vec![0; want];
                let piece = file
                    .read_exact(&mut data)
                    .map_err(failed)
                    .map(|()| ReadContentResponse { offset: at.cast_signed(), data: data.into() });
                let over = piece.is_err();
                // The engine may have seen enough.
                if sender.blocking_send(piece).is_err() || over {
                    return;
                }
                at += want as u64;
            }
        });
        Ok(Response::new(ReceiverStream::new(pieces).boxed()))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.store(&request)?;
        Err(Status::not_found(format!("ref {}: not found", request.get_ref().r#ref)))
    }

    async fn list_statuses(
        &self,
        request: Request<ListStatusesRequest>,
    ) -> Result<Response<ListStatusesResponse>, Status> {
        self.store(&request)?;
        Ok(Response::new(ListStatusesResponse::default()))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let store = self.store(&request)?;
        let incoming = request.into_inner();
        let state = Some((incoming, Writing { store, ingest: None, total: 0, expected: None }));
        let answers = futures::stream::try_unfold(state, |state| async move {
            let Some((mut incoming, writing)) = state else { return Ok(None) };
            let Some(request) = incoming.message().await? else { return Ok(None) };
            let (answer, writing) = writing.step(request).await?;
            Ok(Some((answer, writing.map(|w| (incoming, w)))))
        });
        Ok(Response::new(answers.into_stream().boxed()))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<()>, Status> {
        self.store(&request)?;
        // Unfinished blobs end with the call that writes them.
        Ok(Response::new(()))
    }
}

/// One blob on its way in.
struct Writing {
    store: LayoutStore,
    ingest: Option<Ingest>,
    total: i64,
    expected: Option<Digest>,
}

impl Writing {
    /// Answers one message; after a commit there is nothing more to write to.
    async fn step(mut self, request: WriteContentRequest) -> Result<(WriteContentResponse, Option<Self>), Status> {
        if !request.expected.is_empty() {
            self.expected = Some(digest(&request.expected)?);
        }
        if request.total > 0 {
            self.total = request.total;
        }
        let (store, expected) = (self.store.clone(), self.expected);
        let mut ingest = match self.ingest.take() {
            Some(ingest) => ingest,
            None => {
                let ingest = blocking(move || match expected.map(|e| store.size(&e)).transpose()?.flatten() {
                    Some(_) => Ok(None),
                    None => store.ingest().map(Some),
                });
                ingest.await?.ok_or_else(|| {
                    let digest = expected.map(|e| e.to_string()).unwrap_or_default();
                    Status::already_exists(format!("content {digest}: already exists"))
                })?
            }
        };
        let action = request.action();
        let mut answer = WriteContentResponse {
            action: request.action,
            total: self.total,
            digest: expected.map(|e| e.to_string()).unwrap_or_default(),
            ..WriteContentResponse::default()
        };
        if action != WriteAction::Stat && !request.data.is_empty() {
            let at = ingest.size().cast_signed();
            if request.offset != at && request.offset != 0 {
                return Err(Status::out_of_range(format!("write at {} of a blob of {at} bytes", request.offset)));
            }
            ingest = write(ingest, request.data).await?;
        }
        answer.offset = ingest.size().cast_signed();
        if action != WriteAction::Commit {
            self.ingest = Some(ingest);
            return Ok((answer, Some(self)));
        }
        let total = u64::try_from(self.total).ok().filter(|&t| t > 0);
        answer.digest = blocking(move || ingest.commit(expected, total)).await?.to_string();
        Ok((answer, None))
    }
}

async fn write(mut ingest: Ingest, data: Bytes) -> Result<Ingest, Status> {
    blocking(move || ingest.write_all(&data).map(|()| ingest)).await
}
