//! Results of a build: files, streams, directories, by the id of the exporter that sends them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use kiln_stdx::Defer;
use parking_lot::Mutex;
use prost::Message;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::dir_writer::DirWriter;
use crate::headers;
use crate::proto::filesync::BytesMessage;
use crate::proto::filesync::file_send_server::FileSend;
use crate::proto::fs::Packet;
use crate::transfer::{self, TransferOptions};

/// Most packets waiting to be sent.
const QUEUE: usize = 128;

type Writer = Box<dyn AsyncWrite + Send + Unpin>;
/// Decides where a file goes by what the exporter says of it; none wants it not.
type Chooser = Box<dyn Fn(&BTreeMap<String, String>) -> io::Result<Option<Writer>> + Send + Sync>;

/// Where a result goes.
pub enum ReceiveTarget {
    /// A file, written aside and renamed when it is complete.
    File(PathBuf),
    /// A stream such as standard output, once.
    Stream(Mutex<Option<Writer>>),
    /// Whatever the function says.
    Chosen(Chooser),
    /// A directory: a new one appears when it is complete, in an existing one files are replaced one by one.
    Dir {
        path: PathBuf,
        /// Remove what was not sent.
        delete: bool,
    },
}

impl ReceiveTarget {
    /// Returns a target that writes to `writer`.
    pub fn stream(writer: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        Self::Stream(Mutex::new(Some(Box::new(writer))))
    }
}

/// Takes results by exporter id.
#[derive(Clone, Default)]
pub struct FileReceivers {
    targets: Arc<BTreeMap<u32, ReceiveTarget>>,
}

impl FileReceivers {
    /// Makes receivers; the id is the exporter's position in the request.
    pub fn new(targets: impl IntoIterator<Item = (u32, ReceiveTarget)>) -> Self {
        Self { targets: Arc::new(targets.into_iter().collect()) }
    }
}

type Answer = BoxStream<'static, Result<Bytes, Status>>;

#[async_trait::async_trait]
impl FileSend for FileReceivers {
    type DiffCopyStream = Answer;

    async fn diff_copy(&self, request: Request<Streaming<Bytes>>) -> Result<Response<Answer>, Status> {
        let id =
            headers::get_one(request.metadata(), headers::EXPORTER_ID).and_then(|v| v.parse::<u32>().ok()).unwrap_or(0);
        let meta = exporter_meta(request.metadata());
        let multi = headers::get_all(request.metadata(), headers::EXPORTER_MULTI_PLATFORM).iter().any(|v| v == "1");
        let incoming = request.into_inner();
        let target = self.targets.get(&id).ok_or_else(|| Status::not_found(format!("exporter {id} not found")))?;
        match target {
            ReceiveTarget::Dir { delete: true, .. } if !multi => Err(Status::failed_precondition(
                "local exporter mode=delete requires an engine that sends all platforms in one transfer",
            )),
            ReceiveTarget::Dir { path, delete } => Ok(Response::new(receive_dir(incoming, path, *delete)?)),
            ReceiveTarget::File(path) => write_file(incoming, path).await.map(done),
            ReceiveTarget::Stream(writer) => {
                let writer = writer.lock().take();
                let writer = writer.ok_or_else(|| Status::already_exists("the stream was written already"))?;
                copy(incoming, writer).await.map(done)
            }
            ReceiveTarget::Chosen(choose) => match choose(&meta) {
                Ok(Some(writer)) => copy(incoming, writer).await.map(done),
                Ok(None) => Err(Status::already_exists("target already exists")),
                Err(error) => Err(unwritten("opening the result", &error)),
            },
        }
    }
}

fn done(_: ()) -> Response<Answer> {
    Response::new(futures::stream::empty().boxed())
}

fn exporter_meta(map: &MetadataMap) -> BTreeMap<String, String> {
    map.keys()
        .filter_map(|key| match key {
            tonic::metadata::KeyRef::Ascii(key) => Some(key.as_str().to_owned()),
            tonic::metadata::KeyRef::Binary(_) => None,
        })
        .filter_map(|key| {
            let name = key.strip_prefix(headers::EXPORTER_META_PREFIX)?;
            (!name.ends_with("-encoded")).then(|| (name.to_owned(), headers::get_all(map, &key).join(",")))
        })
        .collect()
}

/// Copies messages to a writer until the sender ends the file; a broken call is an error.
async fn copy(mut incoming: Streaming<Bytes>, mut writer: impl AsyncWrite + Unpin) -> Result<(), Status> {
    let failed = |e: io::Error| unwritten("writing the result", &e);
    while let Some(message) = incoming.message().await? {
        let message = BytesMessage::decode(message).map_err(|e| Status::internal(format!("malformed message: {e}")))?;
        writer.write_all(&message.data).await.map_err(failed)?;
    }
    writer.flush().await.map_err(failed)?;
    writer.shutdown().await.map_err(failed)
}

/// The error of a result that this side cannot write, which is not the engine's business but the user's.
fn unwritten(what: &str, error: &io::Error) -> Status {
    let hint = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "\nhint: free space at the destination, or choose another one with -o"
        }
        _ => "",
    };
    Status::unknown(format!("{what}: {error}{hint}"))
}

/// Writes a file aside and renames it; pipes and devices are written as they are.
async fn write_file(incoming: Streaming<Bytes>, path: &Path) -> Result<(), Status> {
    let failed = |what: &str, e: io::Error| unwritten(&format!("{what} {}", path.display()), &e);
    // A link stays a link.
    let path = tokio::fs::canonicalize(path).await.unwrap_or_else(|_| path.to_owned());
    let special = tokio::fs::metadata(&path).await.is_ok_and(|m| !m.is_file() && !m.is_dir());
    if special {
        let file = tokio::fs::OpenOptions::new().write(true).open(&path).await;
        return copy(incoming, file.map_err(|e| failed("opening", e))?).await;
    }
    let name = path.file_name().ok_or_else(|| Status::invalid_argument(format!("{} is no file", path.display())))?;
    let mut aside = std::ffi::OsString::from(".");
    aside.push(name);
    aside.push(format!(".{}.tmp", kiln_stdx::rand_id()));
    let aside = path.with_file_name(aside);
    let file = tokio::fs::OpenOptions::new().write(true).create_new(true).open(&aside).await;
    let file = file.map_err(|e| failed("creating", e))?;
    let leftover = aside.clone();
    let remove = Defer::new(move || {
        // It may be gone already.
        let _ = std::fs::remove_file(leftover);
    });
    copy(incoming, file).await?;
    tokio::fs::rename(&aside, &path).await.map_err(|e| failed("renaming to", e))?;
    remove.disarm();
    Ok(())
}

/// Receives a directory beside the answer; an error ends the answer.
fn receive_dir(incoming: Streaming<Bytes>, path: &Path, delete: bool) -> Result<Answer, Status> {
    let writer = DirWriter::new(path, delete)
        .map_err(|e| Status::internal(format!("preparing the directory {}: {e}", path.display())))?;
    let (outgoing, packets) = mpsc::channel::<Packet>(QUEUE);
    let cancel = CancellationToken::new();
    let options = TransferOptions::cancelled_by(&cancel);
    let guard = cancel.drop_guard();
    let incoming = incoming.map(|m| m.and_then(crate::engine::decode_packet));
    let transfer = tokio::spawn(async move { transfer::receive(incoming, outgoing, writer, &options).await });
    let tail = futures::stream::once(async move {
        let _guard = guard;
        match transfer.await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(Err(error.to_status())),
            Err(error) => Some(Err(Status::internal(error.to_string()))),
        }
    });
    let packets = ReceiverStream::new(packets).map(|p| Ok(Bytes::from(p.encode_to_vec())));
    Ok(packets.chain(tail.filter_map(std::future::ready)).boxed())
}
