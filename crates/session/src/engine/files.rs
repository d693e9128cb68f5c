//! Directories from the client, results to the client, request bodies from the client.

use std::collections::BTreeMap;
use std::io;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, TryStreamExt};
use http::uri::PathAndQuery;
use kiln_stdx::limits;
use prost::Message;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::client::Grpc;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status};

use super::session::Session;
use crate::codec::{FileCodec, FileFrame};
use crate::error::SessionError;
use crate::headers;
use crate::proto::filesync::BytesMessage;
use crate::proto::filesync::file_send_client::FileSendClient;
use crate::proto::filesync::file_sync_client::FileSyncClient;
use crate::proto::fs::Packet;
use crate::proto::upload;
use crate::proto::upload::upload_client::UploadClient;
use crate::transfer::{self, Ending, SyncTarget, TransferOptions, TreeSource};

const DIFF_COPY: &str = "/moby.filesync.v1.FileSync/DiffCopy";
const FILE_SEND: &str = "/moby.filesync.v1.FileSend/DiffCopy";
/// What goes to the task that makes the call.
#[derive(Debug)]
enum Piece {
    Data(Bytes),
    End,
}

const UPLOAD_PULL: &str = "/moby.upload.v1.Upload/Pull";
/// Most packets waiting to be sent.
const QUEUE: usize = 32;
/// Largest piece of a file sent as one message: Go's servers take 4 MB by default.
const PIECE: usize = 1 << 20;
/// How long the client may take to say that it has all: it may sync a large file.
const CONFIRM: Duration = Duration::from_secs(600);

/// Which part of which directory is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SyncRequest {
    /// The name the client knows the directory by.
    pub name: String,
    pub include_patterns: Vec<String>,
    pub exclude_patterns: Vec<String>,
    pub follow_paths: Vec<String>,
}

impl SyncRequest {
    fn metadata(&self, map: &mut MetadataMap) {
        headers::put_one(map, headers::DIR_NAME, &self.name);
        headers::put(map, headers::INCLUDE_PATTERNS, &self.include_patterns);
        headers::put(map, headers::EXCLUDE_PATTERNS, &self.exclude_patterns);
        headers::put(map, headers::FOLLOW_PATHS, &self.follow_paths);
    }
}

/// What the client did with what it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendOutcome {
    /// It has it.
    Done,
    /// It has one already and wants no other.
    Skipped,
}

impl Session {
    /// Receives a directory of the client into `target`.
    ///
    /// # Errors
    /// The client has no such directory, fails, or is gone; the target fails; the transfer is cancelled.
    pub async fn sync<T: SyncTarget>(
        &self,
        request: &SyncRequest,
        target: T,
        options: &TransferOptions,
    ) -> Result<T, SessionError> {
        self.need(DIFF_COPY)?;
        let (outgoing, stream) = mpsc::channel(QUEUE);
        let mut call = Request::new(ReceiverStream::new(stream));
        request.metadata(call.metadata_mut());
        let mut client = FileSyncClient::new(self.channel()).max_decoding_message_size(limits::GRPC_MESSAGE);
        // The answer's headers may come as late as its first message.
        let incoming = futures::stream::once(async move { client.diff_copy(call).await.map(|r| r.into_inner()) });
        let asked = self.liveness.ask();
        let transfer = transfer::receive(incoming.try_flatten(), outgoing, target, options);
        tokio::select! {
            () = self.closed() => Err(self.gone()),
            done = transfer => {
                asked.answered();
                done.map_err(|e| self.explained(e))
            }
        }
    }

    /// Begins to send a file to the client's exporter `id`; `meta` is what the client names the file by.
    ///
    /// # Errors
    /// The client takes no results, or is gone.
    pub fn send_file(&self, id: u32, meta: &BTreeMap<String, String>) -> Result<FileSender, SessionError> {
        self.need(FILE_SEND)?;
        let (pieces, mut queue) = mpsc::channel::<Piece>(QUEUE);
        // When the sender is dropped before the end, the stream must not simply end.
        let mut over = false;
        let frames = futures::stream::poll_fn(move |cx| {
            if over {
                return Poll::Ready(None);
            }
            queue.poll_recv(cx).map(|piece| match piece {
                Some(Piece::Data(data)) => Some(FileFrame::Message(BytesMessage { data }.encode_to_vec().into())),
                Some(Piece::End) => {
                    over = true;
                    None
                }
                None => {
                    over = true;
                    Some(FileFrame::Abort)
                }
            })
        });
        let mut call = Request::new(frames);
        headers::put_one(call.metadata_mut(), headers::EXPORTER_ID, &id.to_string());
        for (key, value) in meta {
            headers::put_one(call.metadata_mut(), &format!("{}{key}", headers::EXPORTER_META_PREFIX), value);
        }
        let mut client = Grpc::new(self.channel()).max_decoding_message_size(limits::GRPC_MESSAGE);
        let (closed, asked) = (self.closed_token(), self.liveness.ask());
        let answer = tokio::spawn(async move {
            let call = async {
                client.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
                let path = PathAndQuery::from_static(FILE_SEND);
                let mut answer = client.streaming(call, path, FileCodec).await?.into_inner();
                while answer.message().await?.is_some() {}
                Ok(())
            };
            tokio::select! {
                () = closed.cancelled() => Err(SessionError::Closed { why: None }),
                done = call => {
                    asked.answered();
                    done.map_err(|s: Status| s.into())
                }
            }
        });
        Ok(FileSender { pieces: Some(pieces), answer, buffer: BytesMut::new() })
    }

    /// Sends a directory to the client's exporter `id`. `multi_platform` says that all platforms come in this one
    /// transfer, which a client that mirrors a directory must know.
    ///
    /// # Errors
    /// The client takes no results, fails, or is gone; the tree cannot be read; the transfer is cancelled.
    pub async fn send_dir<S: TreeSource>(
        &self,
        id: u32,
        source: S,
        multi_platform: bool,
        options: &TransferOptions,
    ) -> Result<SendOutcome, SessionError> {
        self.need(FILE_SEND)?;
        let (outgoing, stream) = mpsc::channel::<Packet>(QUEUE);
        let mut call = Request::new(ReceiverStream::new(stream).map(|p| Bytes::from(p.encode_to_vec())));
        headers::put_one(call.metadata_mut(), headers::EXPORTER_ID, &id.to_string());
        if multi_platform {
            headers::put_one(call.metadata_mut(), headers::EXPORTER_MULTI_PLATFORM, "1");
        }
        let mut client = FileSendClient::new(self.channel()).max_decoding_message_size(limits::GRPC_MESSAGE);
        let incoming = futures::stream::once(async move { client.diff_copy(call).await.map(|r| r.into_inner()) })
            .try_flatten()
            .map(|m| m.and_then(decode_packet));
        let asked = self.liveness.ask();
        let transfer = transfer::send(incoming, outgoing, source, Ending::Closed, options);
        let done = tokio::select! {
            () = self.closed() => Err(self.gone()),
            done = transfer => {
                asked.answered();
                done.map_err(|e| self.explained(e))
            }
        };
        skipped(done)
    }

    /// Streams the body that the client registered for `http://buildkit-session/<id>`.
    ///
    /// # Errors
    /// The client has no such upload, fails, or is gone; so does the stream.
    pub async fn upload(
        &self,
        path: &str,
        host: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, SessionError>> + Send + use<>, SessionError> {
        self.need(UPLOAD_PULL)?;
        let mut call = Request::new(futures::stream::pending::<upload::BytesMessage>());
        headers::put_one(call.metadata_mut(), headers::UPLOAD_PATH, path);
        headers::put_one(call.metadata_mut(), headers::UPLOAD_HOST, host);
        let mut client = UploadClient::new(self.channel()).max_decoding_message_size(limits::GRPC_MESSAGE);
        let stream = self.call("reading an upload", client.pull(call)).await?;
        let asked = self.liveness.ask();
        Ok(stream.map(move |m| {
            let _ = &asked;
            m.map(|m| m.data).map_err(SessionError::from)
        }))
    }
}

/// Decodes a packet that travels on the method of two message types.
pub(crate) fn decode_packet(data: Bytes) -> Result<Packet, Status> {
    Packet::decode(data).map_err(|e| Status::internal(format!("malformed packet: {e}")))
}

fn skipped(done: Result<(), SessionError>) -> Result<SendOutcome, SessionError> {
    match done {
        Ok(()) => Ok(SendOutcome::Done),
        Err(SessionError::Rejected(s)) if s.code() == Code::AlreadyExists => Ok(SendOutcome::Skipped),
        Err(error) => Err(error),
    }
}

/// A file on its way to the client. Dropped unfinished, the client gets an error and keeps nothing.
#[derive(Debug)]
pub struct FileSender {
    pieces: Option<mpsc::Sender<Piece>>,
    answer: JoinHandle<Result<(), SessionError>>,
    /// Small writes are put together.
    buffer: BytesMut,
}

impl FileSender {
    /// Sends more of the file.
    ///
    /// # Errors
    /// The client stopped taking it: `finish` says why.
    pub async fn write(&mut self, data: &[u8]) -> io::Result<()> {
        for piece in data.chunks(PIECE) {
            self.buffer.extend_from_slice(piece);
            if self.buffer.len() >= PIECE / 2 {
                self.flush().await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let data = self.buffer.split().freeze();
        let Some(pieces) = &self.pieces else { return Err(io::ErrorKind::BrokenPipe.into()) };
        pieces.send(Piece::Data(data)).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// Ends the file and waits for the client to have it.
    ///
    /// # Errors
    /// The client fails, does not confirm in time, or is gone; the wait is cancelled.
    pub async fn finish(mut self, cancel: &CancellationToken) -> Result<SendOutcome, SessionError> {
        // When the client does not take the rest, its answer says why.
        let _ = self.flush().await;
        if let Some(pieces) = self.pieces.take() {
            let _ = pieces.send(Piece::End).await;
        }
        let done = tokio::select! {
            () = cancel.cancelled() => {
                self.answer.abort();
                Err(SessionError::Canceled { what: "sending a file" })
            }
            done = tokio::time::timeout(CONFIRM, &mut self.answer) => match done {
                Err(_) => Err(SessionError::Deadline { what: "sending a file".into(), after: CONFIRM }),
                Ok(Err(error)) => Err(SessionError::io("sending a file", io::Error::other(error))),
                Ok(Ok(done)) => done,
            },
        };
        skipped(done)
    }

    /// Returns a writer for blocking threads.
    pub fn into_blocking(self) -> BlockingFileSender {
        BlockingFileSender { sender: self, runtime: tokio::runtime::Handle::current() }
    }
}

/// [`FileSender`] for threads that may block; never use it on a runtime's own thread.
#[derive(Debug)]
pub struct BlockingFileSender {
    sender: FileSender,
    runtime: tokio::runtime::Handle,
}

impl BlockingFileSender {
    /// Ends the file and waits for the client to have it.
    ///
    /// # Errors
    /// As [`FileSender::finish`].
    pub fn finish(self, cancel: &CancellationToken) -> Result<SendOutcome, SessionError> {
        self.runtime.block_on(self.sender.finish(cancel))
    }

    /// Returns the writer for asynchronous code.
    pub fn into_async(self) -> FileSender {
        self.sender
    }
}

impl io::Write for BlockingFileSender {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let len = data.len().min(PIECE);
        self.runtime.block_on(self.sender.write(&data[..len]))?;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.runtime.block_on(self.sender.flush())
    }
}
