//! Request bodies the engine may pull: what `http://buildkit-session/<id>` stands for.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;
use tonic::{Request, Response, Status, Streaming};

use crate::headers;
use crate::proto::upload::BytesMessage;
use crate::proto::upload::upload_server::Upload;

/// Size of the pieces sent, in bytes.
const PIECE: usize = 64 * 1024;

/// A body.
pub enum UploadSource {
    /// Bytes in memory, as often as they are asked for.
    Bytes(Bytes),
    /// A file, as often as it is asked for.
    File(PathBuf),
    /// A stream such as standard input, once.
    Stream(Box<dyn AsyncRead + Send + Unpin>),
}

/// Serves bodies by id.
#[derive(Clone, Default)]
pub struct UploadProvider {
    sources: Arc<Mutex<BTreeMap<String, UploadSource>>>,
}

impl UploadProvider {
    /// Makes a provider without bodies.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a body and returns the address that stands for it.
    pub fn add(&self, source: UploadSource) -> String {
        let id = kiln_stdx::rand_id();
        self.sources.lock().insert(id.clone(), source);
        format!("http://buildkit-session/{id}")
    }
}

#[async_trait::async_trait]
impl Upload for UploadProvider {
    type PullStream = BoxStream<'static, Result<BytesMessage, Status>>;

    async fn pull(&self, request: Request<Streaming<BytesMessage>>) -> Result<Response<Self::PullStream>, Status> {
        let path = headers::get_one(request.metadata(), headers::UPLOAD_PATH).unwrap_or_default();
        let id = path.rsplit('/').next().unwrap_or_default().to_owned();
        enum Found {
            Bytes(Bytes),
            File(PathBuf),
            Stream(Box<dyn AsyncRead + Send + Unpin>),
        }
        let found = {
            let mut sources = self.sources.lock();
            match sources.remove(&id) {
                None => return Err(Status::not_found(format!("no http response for {path}"))),
                Some(UploadSource::Bytes(data)) => {
                    sources.insert(id, UploadSource::Bytes(data.clone()));
                    Found::Bytes(data)
                }
                Some(UploadSource::File(path)) => {
                    sources.insert(id, UploadSource::File(path.clone()));
                    Found::File(path)
                }
                Some(UploadSource::Stream(stream)) => Found::Stream(stream),
            }
        };
        let stream: BoxStream<'static, std::io::Result<Bytes>> = match found {
            Found::Bytes(mut data) => {
                let mut pieces = Vec::new();
                while !data.is_empty() {
                    pieces.push(Ok(data.split_to(data.len().min(PIECE))));
                }
                futures::stream::iter(pieces).boxed()
            }
            Found::File(path) => {
                let file = tokio::fs::File::open(&path).await;
                let file = file.map_err(|e| Status::internal(format!("{}: {e}", path.display())))?;
                ReaderStream::with_capacity(file, PIECE).boxed()
            }
            Found::Stream(stream) => ReaderStream::with_capacity(stream, PIECE).boxed(),
        };
        let messages = stream.map_ok(|data| BytesMessage { data }).map_err(|e| Status::internal(e.to_string()));
        Ok(Response::new(messages.boxed()))
    }
}
