//! Handing a directory to an engine on the same host: the client sends a descriptor of it over a socket of its own,
//! and the engine reads beneath that descriptor instead of syncing files. Only for a peer of the engine's own user.
//!
//! One request a connection: length (u32, little endian), JSON, the descriptor as ancillary data with the first byte.
//! The answer is one line of JSON.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_stdx::limits;
use rustix::fs::FileType;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::engine::SessionRegistry;
use crate::error::SessionError;

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest request in bytes.
const MAX_REQUEST: usize = 64 * 1024;
/// The version of the request.
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Offer {
    version: u32,
    session: String,
    name: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Answer {
    error: Option<String>,
}

/// Returns the path of the socket that belongs to an engine's main socket.
pub fn socket_path(engine_socket: &Path) -> PathBuf {
    engine_socket.with_file_name("direct.sock")
}

/// Hands the directory `dir` over as `name` of the session.
///
/// # Errors
/// Nobody listens there, or the engine refuses; the caller falls back to file sync.
pub async fn offer(socket: &Path, session: &str, name: &str, dir: OwnedFd) -> Result<(), SessionError> {
    let offer = Offer { version: VERSION, session: session.to_owned(), name: name.to_owned() };
    let socket = socket.to_owned();
    let what = || format!("handing a directory over at {}", socket.display());
    let target = socket.clone();
    let done = tokio::task::spawn_blocking(move || offer_blocking(&target, &offer, dir.as_fd())).await;
    match done {
        Ok(Ok(Answer { error: None })) => Ok(()),
        Ok(Ok(Answer { error: Some(error) })) => Err(SessionError::Input(error)),
        Ok(Err(error)) => Err(SessionError::io(what(), error)),
        Err(error) => Err(SessionError::io(what(), io::Error::other(error))),
    }
}

fn offer_blocking(socket: &Path, offer: &Offer, dir: BorrowedFd<'_>) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE + limits::SESSION_WAIT))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let body = serde_json::to_vec(offer)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let message = [&length.to_le_bytes()[..], &body].concat();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [dir];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let sent = rustix::net::sendmsg(&stream, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL)?;
    stream.write_all(&message[sent..])?;
    let mut line = String::new();
    BufReader::new((&stream).take(MAX_REQUEST as u64)).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// The engine's socket for directories; removed when dropped.
#[derive(Debug)]
pub struct DirectListener {
    listener: UnixListener,
    path: PathBuf,
}

impl DirectListener {
    /// Creates the socket, replacing a stale one.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn bind(path: &Path) -> Result<Self, SessionError> {
        let failed = |e| SessionError::io(format!("creating {}", path.display()), e);
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Takes directories for the sessions of `registry` until cancelled.
    pub async fn serve(self, registry: SessionRegistry, cancel: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = cancel.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted.and_then(|(stream, _)| stream.into_std()) {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accepting a directory");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (registry, cancel) = (registry.clone(), cancel.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = cancel.cancelled() => {}
                    () = answer(stream, registry) => {}
                }
            });
        }
    }
}

impl Drop for DirectListener {
    fn drop(&mut self) {
        // Somebody may have removed it.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn answer(stream: UnixStream, registry: SessionRegistry) {
    let taken = tokio::task::spawn_blocking(move || {
        let offer = take(&stream);
        (stream, offer)
    })
    .await;
    let Ok((mut stream, offer)) = taken else { return };
    let error = match offer {
        Ok((offer, dir)) => match registry.get(&offer.session, limits::SESSION_WAIT).await {
            Ok(session) => {
                session.put_direct_dir(&offer.name, dir);
                None
            }
            Err(error) => Some(error.to_string()),
        },
        Err(error) => Some(error.to_string()),
    };
    let reply = tokio::task::spawn_blocking(move || {
        let mut line = serde_json::to_vec(&Answer { error })?;
        line.push(b'\n');
        stream.write_all(&line)
    });
    if let Ok(Err(error)) = reply.await {
        tracing::debug!(%error, "answering an offered directory");
    }
}

/// Reads a request, checking who sends it and what.
fn take(stream: &UnixStream) -> io::Result<(Offer, OwnedFd)> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    if peer.uid != rustix::process::geteuid() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "only the engine's own user may hand over directories",
        ));
    }
    let mut head = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut head)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(list) = message {
            descriptors.extend(list);
        }
    }
    (&*stream).read_exact(&mut head[got.bytes..])?;
    let length = u32::from_le_bytes(head) as usize;
    if length > MAX_REQUEST {
        return Err(io::Error::other("the request is too large"));
    }
    let mut body = vec![0; length];
    (&*stream).read_exact(&mut body)?;
    let offer: Offer = serde_json::from_slice(&body)?;
    if offer.version != VERSION {
        return Err(io::Error::other(format!("unknown version {} of the request", offer.version)));
    }
    let dir = match (descriptors.pop(), descriptors.is_empty()) {
        (Some(dir), true) => dir,
        _ => return Err(io::Error::other("exactly one descriptor is expected")),
    };
    let stat = rustix::fs::fstat(&dir)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(io::Error::other("the descriptor is no directory"));
    }
    Ok((offer, dir))
}
