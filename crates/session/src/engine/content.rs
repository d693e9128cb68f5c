//! Blob stores of the client: OCI layouts to read images from, cache directories, an export directory.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use kiln_stdx::{Digest, limits};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Streaming};

use super::session::Session;
use crate::error::SessionError;
use crate::headers;
use crate::proto::content::content_client::ContentClient;
use crate::proto::content::{
    Info, InfoRequest, ListContentRequest, ReadContentRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};

const READ: &str = "/containerd.services.content.v1.Content/Read";
const WRITE: &str = "/containerd.services.content.v1.Content/Write";
/// Largest piece written as one message, in bytes.
const PIECE: usize = 1 << 20;

/// What a store says of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentInfo {
    pub digest: Digest,
    pub size: u64,
    pub labels: BTreeMap<String, String>,
}

impl TryFrom<Info> for ContentInfo {
    type Error = SessionError;

    fn try_from(info: Info) -> Result<Self, SessionError> {
        let digest = info.digest.parse();
        let digest = digest.map_err(|e| SessionError::Protocol(format!("{:?}: {e}", info.digest)))?;
        Ok(Self { digest, size: u64::try_from(info.size).unwrap_or(0), labels: info.labels })
    }
}

/// One store of a client. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ContentStore {
    session: Arc<Session>,
    store: String,
}

impl Session {
    /// Returns the store `id` of this client: `oci:<name>`, `local:<dir>` or `export`.
    pub fn content(self: &Arc<Self>, id: &str) -> ContentStore {
        ContentStore { session: self.clone(), store: id.to_owned() }
    }
}

impl ContentStore {
    fn client(&self) -> ContentClient<Channel> {
        ContentClient::new(self.session.channel()).max_decoding_message_size(limits::GRPC_MESSAGE)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        headers::put_one(request.metadata_mut(), headers::STORE_ID, &self.store);
        request
    }

    /// Returns size and labels of a blob; none when the store does not have it.
    ///
    /// # Errors
    /// The client has no such store, fails, or is gone.
    pub async fn info(&self, digest: &Digest) -> Result<Option<ContentInfo>, SessionError> {
        self.session.need("/containerd.services.content.v1.Content/Info")?;
        let request = self.request(InfoRequest { digest: digest.to_string() });
        match self.session.call("looking up a blob", self.client().info(request)).await {
            Ok(answer) => answer.info.map(TryInto::try_into).transpose(),
            Err(SessionError::Rejected(s)) if s.code() == Code::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Streams a blob from `offset`, `size` bytes or all of it. The bytes are not verified.
    ///
    /// # Errors
    /// The store does not have the blob; the client fails or is gone; so does the stream.
    pub async fn read(
        &self,
        digest: &Digest,
        offset: u64,
        size: Option<u64>,
    ) -> Result<impl Stream<Item = Result<Bytes, SessionError>> + Send + Unpin + use<>, SessionError> {
        self.session.need(READ)?;
        let number = |n: u64| i64::try_from(n).map_err(|_| SessionError::Input("offset too large".into()));
        let message = ReadContentRequest {
            digest: digest.to_string(),
            offset: number(offset)?,
            size: number(size.unwrap_or(0))?,
        };
        let request = self.request(message);
        let stream = self.session.call("reading a blob", self.client().read(request)).await?;
        let session = self.session.clone();
        Ok(stream.map(move |m| m.map(|m| m.data).map_err(|s| session.rejected(s))))
    }

    /// Reads a whole small blob and verifies it.
    ///
    /// # Errors
    /// As [`Self::read`], or the blob is larger than `limit` or not what its digest says.
    pub async fn read_all(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, SessionError> {
        let mut stream = self.read(digest, 0, None).await?;
        let mut out = Vec::new();
        while let Some(piece) = stream.try_next().await? {
            out.extend_from_slice(&piece);
            if out.len() as u64 > limit {
                return Err(SessionError::Input(format!("blob {digest} is larger than {limit} bytes")));
            }
        }
        if Digest::of(&out) == *digest {
            Ok(out)
        } else {
            Err(SessionError::Protocol(format!("the client sent other bytes than {digest}")))
        }
    }

    /// Lists the blobs of the store.
    ///
    /// # Errors
    /// The client has no such store, fails, or is gone.
    pub async fn list(&self) -> Result<Vec<ContentInfo>, SessionError> {
        self.session.need("/containerd.services.content.v1.Content/List")?;
        let request = self.request(ListContentRequest::default());
        let mut stream = self.session.call("listing blobs", self.client().list(request)).await?;
        let mut out = Vec::new();
        while let Some(answer) = stream.message().await.map_err(|s| self.session.rejected(s))? {
            for info in answer.info {
                out.push(info.try_into()?);
            }
        }
        Ok(out)
    }

    /// Begins to write a blob; none when the store has it already.
    ///
    /// # Errors
    /// The store cannot be written, the client fails, or is gone.
    pub async fn write(&self, digest: &Digest, size: u64) -> Result<Option<ContentWriter>, SessionError> {
        self.session.need(WRITE)?;
        let total = i64::try_from(size).map_err(|_| SessionError::Input("blob too large".into()))?;
        let (requests, stream) = mpsc::channel(4);
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: format!("kiln-{}", digest.hex()),
            total,
            expected: digest.to_string(),
            ..WriteContentRequest::default()
        };
        // The channel is empty and open.
        let _ = requests.try_send(first.clone());
        let call = self.request(ReceiverStream::new(stream));
        let answers = match self.session.call("writing a blob", self.client().write(call)).await {
            Err(SessionError::Rejected(s)) if s.code() == Code::AlreadyExists => return Ok(None),
            other => other?,
        };
        let mut writer = ContentWriter { session: self.session.clone(), requests, answers, template: first, offset: 0 };
        match writer.answer().await {
            Err(SessionError::Rejected(s)) if s.code() == Code::AlreadyExists => Ok(None),
            Ok(answer) if answer.offset > 0 => Err(SessionError::Protocol(
                "the client holds an unfinished copy of the blob that cannot be continued".into(),
            )),
            Ok(_) => Ok(Some(writer)),
            Err(error) => Err(error),
        }
    }
}

/// A blob on its way into a client's store. Dropped uncommitted, nothing becomes visible.
#[derive(Debug)]
pub struct ContentWriter {
    session: Arc<Session>,
    requests: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
    template: WriteContentRequest,
    offset: i64,
}

impl ContentWriter {
    async fn answer(&mut self) -> Result<WriteContentResponse, SessionError> {
        let patience = self.session.liveness.patience();
        let answer = tokio::select! {
            () = self.session.closed() => return Err(self.session.gone()),
            answer = tokio::time::timeout(patience, self.answers.message()) => answer,
        };
        let what = || format!("writing a blob to session {}", self.session.id());
        match answer {
            Err(_) => Err(SessionError::Deadline { what: what(), after: patience }),
            Ok(Ok(Some(answer))) => Ok(answer),
            Ok(Ok(None)) => Err(SessionError::Protocol("the client stopped taking the blob".into())),
            Ok(Err(status)) => Err(self.session.rejected(status)),
        }
    }

    async fn step(&mut self, action: WriteAction, data: Bytes) -> Result<WriteContentResponse, SessionError> {
        let len = i64::try_from(data.len()).unwrap_or(0);
        let message = WriteContentRequest { action: action.into(), offset: self.offset, data, ..self.template.clone() };
        let asked = self.session.liveness.ask();
        // A closed channel shows in the answer.
        let _ = self.requests.send(message).await;
        let answer = self.answer().await?;
        asked.answered();
        self.offset += len;
        Ok(answer)
    }

    /// Writes more of the blob.
    ///
    /// # Errors
    /// The client fails or is gone.
    pub async fn write(&mut self, mut data: Bytes) -> Result<(), SessionError> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE));
            self.step(WriteAction::Write, piece).await?;
        }
        Ok(())
    }

    /// Makes the blob visible; the store verifies its digest.
    ///
    /// # Errors
    /// The client fails, refuses the bytes, or is gone.
    pub async fn commit(mut self) -> Result<(), SessionError> {
        match self.step(WriteAction::Commit, Bytes::new()).await {
            Ok(_) => Ok(()),
            Err(SessionError::Rejected(s)) if s.code() == Code::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }
}
