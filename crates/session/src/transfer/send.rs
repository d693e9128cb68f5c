//! The sending side of a transfer.

use std::collections::HashMap;
use std::io::{self, Read};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::mpsc;
use tonic::Status;

use super::TransferOptions;
use crate::error::SessionError;
use crate::proto::fs::packet::PacketType;
use crate::proto::fs::{Packet, Stat};

/// Threads that read contents.
const READERS: usize = 4;
/// Largest piece of a content, in bytes.
const PIECE: usize = 64 * 1024;
/// How long a receiver that takes nothing more has to say why.
const LAST_WORD: Duration = Duration::from_secs(10);

/// A tree to send.
pub trait TreeSource: Send + Sync + 'static {
    /// Hands every entry to `emit`, in component order, directories before what is in them.
    ///
    /// # Errors
    /// The tree cannot be read, or what `emit` returns.
    fn walk(&self, emit: &mut dyn FnMut(Stat) -> io::Result<()>) -> io::Result<()>;

    /// Opens the content of a regular file that was listed.
    ///
    /// # Errors
    /// The file cannot be opened; the receiver then gets an empty one, as when it vanished after it was listed.
    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>>;
}

impl<S: TreeSource + ?Sized> TreeSource for Arc<S> {
    fn walk(&self, emit: &mut dyn FnMut(Stat) -> io::Result<()>) -> io::Result<()> {
        (**self).walk(emit)
    }

    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        (**self).open(path)
    }
}

struct Shared<S> {
    source: S,
    outgoing: mpsc::Sender<Packet>,
    /// Paths of files whose content can still be asked for.
    paths: Mutex<HashMap<u32, Vec<u8>>>,
    bytes: AtomicU64,
    options: TransferOptions,
}

type Requests = Arc<Mutex<mpsc::UnboundedReceiver<(u32, Vec<u8>)>>>;

/// When a transfer is over for the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// When both sides have said that it is: a server must, since the caller waits for it.
    Confirmed,
    /// When the peer has ended its stream as well, which tells whether it could keep what it got: for a caller.
    Closed,
}

/// Sends a tree and whatever contents the receiver asks for. Returns when the receiver has all it wants.
///
/// # Errors
/// The tree cannot be read, the receiver fails or falls silent, or the transfer is cancelled.
pub async fn send<S: TreeSource>(
    incoming: impl Stream<Item = Result<Packet, Status>> + Send,
    outgoing: mpsc::Sender<Packet>,
    source: S,
    ending: Ending,
    options: &TransferOptions,
) -> Result<(), SessionError> {
    let mut incoming = std::pin::pin!(incoming);
    let shared = Arc::new(Shared {
        source,
        outgoing,
        paths: Mutex::default(),
        bytes: AtomicU64::new(0),
        options: options.clone(),
    });
    // Not bounded by itself: each listed file can be asked for once, and the list is in memory anyway. Blocking here
    // could lock up both sides, each waiting for the other to read.
    let (requests, queue) = mpsc::unbounded_channel();
    let queue = Arc::new(Mutex::new(queue));
    let mut threads = tokio::task::JoinSet::new();
    let walker = shared.clone();
    threads.spawn_blocking(move || walker.list());
    for _ in 0..READERS {
        let (shared, queue) = (shared.clone(), queue.clone());
        threads.spawn_blocking(move || shared.serve(&queue));
    }
    let result = converse(incoming.as_mut(), &shared, requests, &mut threads).await;
    if let Err(error) = &result {
        let packet =
            Packet { r#type: PacketType::PacketErr.into(), data: error.to_string().into(), ..Packet::default() };
        // The receiver may be gone; it is told if it listens.
        let _ = shared.outgoing.try_send(packet);
    }
    if result.is_err() || ending == Ending::Confirmed {
        // Threads still at work find the channel closed; nobody waits for them.
        threads.detach_all();
        return result;
    }
    while threads.join_next().await.is_some() {}
    // The last sender: the peer sees the end of our stream.
    drop(shared);
    loop {
        let packet = tokio::select! {
            () = options.cancel.cancelled() => return Err(SessionError::Canceled { what: "sending files" }),
            packet = tokio::time::timeout(options.idle, incoming.next()) => packet,
        };
        match packet {
            Err(_) => return Err(SessionError::Deadline { what: "sending files".into(), after: options.idle }),
            Ok(None) => return Ok(()),
            Ok(Some(packet)) => drop(packet?),
        }
    }
}

async fn converse<S: TreeSource>(
    mut incoming: Pin<&mut (impl Stream<Item = Result<Packet, Status>> + Send)>,
    shared: &Arc<Shared<S>>,
    requests: mpsc::UnboundedSender<(u32, Vec<u8>)>,
    threads: &mut tokio::task::JoinSet<Result<(), SessionError>>,
) -> Result<(), SessionError> {
    let options = &shared.options;
    let (mut seen, mut broken) = (0, None);
    loop {
        let idle = if broken.is_some() { options.idle.min(LAST_WORD) } else { options.idle };
        let packet = tokio::select! {
            () = options.cancel.cancelled() => return Err(SessionError::Canceled { what: "sending files" }),
            Some(done) = threads.join_next() => {
                match done.map_err(|e| SessionError::io("sending files", io::Error::other(e)))? {
                    // The receiver takes nothing any more: its own stream says why.
                    Err(error) if error.is_broken_pipe() => broken = broken.or(Some(error)),
                    done => done?,
                }
                continue;
            }
            packet = tokio::time::timeout(idle, incoming.next()) => packet,
        };
        let packet = match packet {
            Err(_) | Ok(None) if broken.is_some() => return broken.map_or(Ok(()), Err),
            Err(_) => {
                // A receiver that takes what it is sent has no need to speak.
                let bytes = shared.bytes.load(Ordering::Relaxed);
                if bytes == seen {
                    return Err(SessionError::Deadline { what: "sending files".into(), after: options.idle });
                }
                seen = bytes;
                continue;
            }
            Ok(None) => return Err(SessionError::Protocol("the receiver ended the transfer early".into())),
            Ok(Some(packet)) => packet?,
        };
        match packet.r#type() {
            PacketType::PacketErr => {
                let text = String::from_utf8_lossy(&packet.data);
                return Err(Status::unknown(format!("error from receiver: {text}")).into());
            }
            PacketType::PacketReq => {
                let path = shared.paths.lock().remove(&packet.id);
                let path = path.ok_or_else(|| SessionError::Protocol(format!("invalid file id {}", packet.id)))?;
                // The readers end only with this function.
                let _ = requests.send((packet.id, path));
            }
            PacketType::PacketFin => {
                let fin = Packet { r#type: PacketType::PacketFin.into(), ..Packet::default() };
                let _ = shared.outgoing.send(fin).await;
                return Ok(());
            }
            PacketType::PacketStat | PacketType::PacketData => {
                return Err(SessionError::Protocol(format!("a receiver must not send {:?}", packet.r#type())));
            }
        }
    }
}

impl<S: TreeSource> Shared<S> {
    fn put(&self, packet: Packet) -> io::Result<()> {
        let bytes = packet.encoded_len() as u64;
        self.outgoing.blocking_send(packet).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        let total = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(progress) = &self.options.progress {
            progress(total);
        }
        Ok(())
    }

    fn list(&self) -> Result<(), SessionError> {
        let mut id = 0u32;
        let stat = |stat| Packet { r#type: PacketType::PacketStat.into(), stat, ..Packet::default() };
        let listed = self.source.walk(&mut |entry| {
            if entry.has_content() {
                self.paths.lock().insert(id, entry.path.clone());
            }
            id = id.checked_add(1).ok_or_else(|| io::Error::other("too many files"))?;
            self.put(stat(Some(entry)))
        });
        listed.and_then(|()| self.put(stat(None))).map_err(|e| SessionError::io("reading the files to send", e))
    }

    fn serve(&self, queue: &Requests) -> Result<(), SessionError> {
        let mut buffer = vec![0; PIECE];
        loop {
            let next = queue.lock().blocking_recv();
            let Some((id, path)) = next else { return Ok(()) };
            self.send_content(id, &path, &mut buffer)
                .map_err(|e| SessionError::io(format!("sending {}", String::from_utf8_lossy(&path)), e))?;
        }
    }

    fn send_content(&self, id: u32, path: &[u8], buffer: &mut [u8]) -> io::Result<()> {
        let data = |data| Packet { r#type: PacketType::PacketData.into(), id, data, ..Packet::default() };
        if let Ok(mut file) = self.source.open(path) {
            loop {
                match file.read(buffer) {
                    Ok(0) => break,
                    Ok(n) => self.put(data(Bytes::copy_from_slice(&buffer[..n])))?,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
        }
        self.put(data(Bytes::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists one file, and says when nobody took it.
    struct Refused(Mutex<Option<tokio::sync::oneshot::Sender<()>>>);

    impl TreeSource for Refused {
        fn walk(&self, emit: &mut dyn FnMut(Stat) -> io::Result<()>) -> io::Result<()> {
            let taken = emit(Stat { path: "a".into(), ..Stat::default() });
            let told = self.0.lock().take();
            let _ = told.map(|told| told.send(()));
            taken
        }

        fn open(&self, _: &[u8]) -> io::Result<Box<dyn Read + Send>> {
            Ok(Box::new(io::empty()))
        }
    }

    #[tokio::test]
    async fn a_receiver_that_takes_nothing_more_has_the_last_word() {
        for last in [Some(Status::unknown("no space left on device")), None] {
            let (told, refused) = tokio::sync::oneshot::channel();
            let (outgoing, gone) = mpsc::channel(1);
            drop(gone);
            let answer = last.clone();
            let incoming = futures::stream::once(async move {
                let _ = refused.await;
                answer.map(Err::<Packet, _>)
            });
            let incoming = Box::pin(incoming.filter_map(futures::future::ready));
            let source = Refused(Mutex::new(Some(told)));
            let sent = send(incoming, outgoing, source, Ending::Closed, &TransferOptions::default()).await;
            let text = sent.unwrap_err().to_string();
            match last {
                Some(_) => assert!(text.contains("no space left on device"), "{text}"),
                None => assert!(text.contains("broken pipe") || text.contains("ended the transfer early"), "{text}"),
            }
        }
    }
}
