//! The engine's blobs, read-only, for clients that look at records of past builds.

use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;
use kiln_engine::Engine;
use kiln_session::proto::content::content_server::Content;
use kiln_session::proto::content::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, InfoResponse, ListContentRequest, ListContentResponse,
    ListStatusesRequest, ListStatusesResponse, ReadContentRequest, ReadContentResponse, StatusRequest, StatusResponse,
    UpdateRequest, UpdateResponse, WriteContentRequest, WriteContentResponse,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt};
use tonic::{Request, Response, Status, Streaming};

/// Bytes per message.
const PIECE: usize = 256 << 10;

/// Serves blobs of the store.
pub struct BlobService {
    pub engine: Engine,
}

/// Where bytes are.
enum Found {
    Blob(kiln_store::Blob),
    /// Kept beside a record of the history.
    Attachment(Vec<u8>),
}

impl Found {
    fn size(&self) -> u64 {
        match self {
            Self::Blob(blob) => blob.size(),
            Self::Attachment(bytes) => bytes.len() as u64,
        }
    }

    async fn open(self, offset: u64) -> std::io::Result<Pin<Box<dyn AsyncRead + Send>>> {
        Ok(match self {
            Self::Blob(blob) => {
                let mut file = tokio::fs::File::open(blob.path()).await?;
                file.seek(std::io::SeekFrom::Start(offset)).await?;
                Box::pin(file)
            }
            Self::Attachment(bytes) => {
                let mut cursor = std::io::Cursor::new(bytes);
                cursor.set_position(offset);
                Box::pin(cursor)
            }
        })
    }
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn read_only<T>() -> Result<T, Status> {
    Err(Status::unimplemented("the engine's content is read-only"))
}

impl BlobService {
    fn found(&self, digest: &str) -> Result<Found, Status> {
        let digest = digest.parse().map_err(|e| Status::invalid_argument(format!("{e}")))?;
        let blob = self.engine.parts().store.blob(&digest).map(Found::Blob);
        let found = blob.or_else(|| self.engine.history().attachment(&digest).map(Found::Attachment));
        found.ok_or_else(|| Status::not_found(format!("content {digest}: not found")))
    }
}

#[tonic::async_trait]
impl Content for BlobService {
    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let digest = request.into_inner().digest;
        let size = i64::try_from(self.found(&digest)?.size()).unwrap_or(i64::MAX);
        let info = Info { digest, size, ..Info::default() };
        Ok(Response::new(InfoResponse { info: Some(info) }))
    }

    type ReadStream = BoxStream<ReadContentResponse>;

    async fn read(&self, request: Request<ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let found = self.found(&request.digest)?;
        let offset = u64::try_from(request.offset).map_err(|_| Status::out_of_range("negative offset"))?;
        let whole = found.size().saturating_sub(offset);
        let left = if request.size > 0 { whole.min(request.size.unsigned_abs()) } else { whole };
        let file = found.open(offset).await.map_err(|e| Status::unknown(e.to_string()))?;
        let pieces = futures::stream::try_unfold((file, offset, left), |(mut file, offset, left)| async move {
            if left == 0 {
                return Ok(None);
            }
            let mut data = vec![0; usize::try_from(left).unwrap_or(PIECE).min(PIECE)];
            let n = file.read(&mut data).await.map_err(|e| Status::unknown(e.to_string()))?;
            if n == 0 {
                return Err(Status::data_loss("the blob is shorter than it was"));
            }
            data.truncate(n);
            let at = i64::try_from(offset).unwrap_or(i64::MAX);
            let response = ReadContentResponse { offset: at, data: Bytes::from(data) };
            Ok(Some((response, (file, offset + n as u64, left - n as u64))))
        });
        Ok(Response::new(Box::pin(pieces)))
    }

    type ListStream = BoxStream<ListContentResponse>;

    async fn list(&self, _: Request<ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        Ok(Response::new(Box::pin(futures::stream::empty())))
    }

    async fn update(&self, _: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        read_only()
    }

    async fn delete(&self, _: Request<DeleteContentRequest>) -> Result<Response<()>, Status> {
        read_only()
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        read_only()
    }

    async fn list_statuses(&self, _: Request<ListStatusesRequest>) -> Result<Response<ListStatusesResponse>, Status> {
        read_only()
    }

    type WriteStream = BoxStream<WriteContentResponse>;

    async fn write(&self, _: Request<Streaming<WriteContentRequest>>) -> Result<Response<Self::WriteStream>, Status> {
        read_only()
    }

    async fn abort(&self, _: Request<AbortRequest>) -> Result<Response<()>, Status> {
        read_only()
    }
}
