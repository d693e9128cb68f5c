//! The receiving side of a transfer.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use kiln_stdx::limits;
use prost::Message;
use tokio::sync::mpsc;
use tonic::Status;

use super::{QUEUE, TransferOptions};
use crate::error::SessionError;
use crate::proto::fs::packet::PacketType;
use crate::proto::fs::{Packet, Stat};
use crate::stat::ListValidator;

/// Most contents asked for and not yet complete. Keeps requests from filling the connection's window.
const IN_FLIGHT: usize = 512;

/// How long a failed transfer waits for its target to tidy up.
const TIDY: Duration = Duration::from_secs(5);

/// What becomes of the files. Called from one blocking thread, in the order things arrive; entries are validated.
pub trait SyncTarget: Send + 'static {
    /// Takes the next entry of the listing; true asks for its content, which only regular files have.
    ///
    /// # Errors
    /// Ends the transfer.
    fn entry(&mut self, id: u32, stat: Stat) -> io::Result<bool>;

    /// Takes a piece of a content that was asked for.
    ///
    /// # Errors
    /// Ends the transfer.
    fn data(&mut self, id: u32, data: Bytes) -> io::Result<()>;

    /// Learns that a content is complete. It may be shorter than the entry said: the file may have changed since.
    ///
    /// # Errors
    /// Ends the transfer.
    fn end(&mut self, id: u32) -> io::Result<()>;

    /// Learns that there are no more entries; contents may still be on their way.
    ///
    /// # Errors
    /// Ends the transfer.
    fn listed(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Learns that everything is there. The sender is told of success only after this.
    ///
    /// # Errors
    /// Ends the transfer.
    fn complete(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Event {
    Entry(u32, Stat),
    Listed,
    Data(u32, Bytes),
}

/// Receives a tree. Returns the target when the listing and everything asked for is there.
///
/// # Errors
/// The peer breaks the protocol, fails or falls silent, the target fails, or the transfer is cancelled.
pub async fn receive<T: SyncTarget>(
    incoming: impl Stream<Item = Result<Packet, Status>> + Send,
    outgoing: mpsc::Sender<Packet>,
    target: T,
    options: &TransferOptions,
) -> Result<T, SessionError> {
    let (events, feed) = mpsc::channel(QUEUE);
    let requests = outgoing.clone();
    let mut worker = tokio::task::spawn_blocking(move || Worker::new(requests, target).run(feed));
    let mut incoming = std::pin::pin!(incoming);
    let mut reader =
        Reader { next_id: 0, listed: false, bytes: 0, listing: 0, list: ListValidator::default(), options };
    let mut working = true;
    let failure = loop {
        let packet = tokio::select! {
            () = options.cancel.cancelled() => break SessionError::Canceled { what: "receiving files" },
            done = &mut worker => {
                working = false;
                match done {
                    Ok(Ok(target)) => return finish(incoming, outgoing, target, options).await,
                    Ok(Err(error)) => break error,
                    Err(error) => break SessionError::io("receiving files", io::Error::other(error)),
                }
            }
            packet = tokio::time::timeout(options.idle, incoming.next()) => packet,
        };
        let event = match packet {
            Err(_) => break SessionError::Deadline { what: "receiving files".into(), after: options.idle },
            Ok(None) => break SessionError::Protocol("the sender ended the transfer early".into()),
            Ok(Some(Err(status))) => break status.into(),
            Ok(Some(Ok(packet))) => match reader.event(packet) {
                Ok(event) => event,
                Err(error) => break error,
            },
        };
        // A failed send means that the worker is done; the next turn of the loop sees why.
        let _ = events.send(event).await;
    };
    drop(events);
    let error = Packet { r#type: PacketType::PacketErr.into(), data: failure.to_string().into(), ..Packet::default() };
    // The peer may be gone; it is told if it listens.
    let _ = outgoing.try_send(error);
    if working {
        // What the target has made is gone when the caller learns of the failure; a peer that does not read cannot
        // hold it up for long.
        let _ = tokio::time::timeout(TIDY, worker).await;
    }
    Err(failure)
}

/// Says that everything is there and waits for the sender's answer.
async fn finish<T>(
    mut incoming: std::pin::Pin<&mut (impl Stream<Item = Result<Packet, Status>> + Send)>,
    outgoing: mpsc::Sender<Packet>,
    target: T,
    options: &TransferOptions,
) -> Result<T, SessionError> {
    let fin = Packet { r#type: PacketType::PacketFin.into(), ..Packet::default() };
    if outgoing.send(fin).await.is_err() {
        return Err(SessionError::Closed { why: Some("the stream ended before the transfer was confirmed".into()) });
    }
    drop(outgoing);
    loop {
        let packet = tokio::select! {
            () = options.cancel.cancelled() => return Err(SessionError::Canceled { what: "receiving files" }),
            packet = tokio::time::timeout(options.idle, incoming.next()) => packet,
        };
        match packet {
            Err(_) => return Err(SessionError::Deadline { what: "receiving files".into(), after: options.idle }),
            Ok(None) => return Ok(target),
            Ok(Some(Ok(packet))) if packet.r#type() == PacketType::PacketFin => {}
            Ok(Some(Ok(packet))) if packet.r#type() == PacketType::PacketErr => return Err(sender_error(&packet)),
            Ok(Some(Ok(_))) => {}
            Ok(Some(Err(status))) => return Err(status.into()),
        }
    }
}

fn sender_error(packet: &Packet) -> SessionError {
    // The peer kept to the protocol; what it could not do is its own to tell.
    Status::unknown(format!("error from sender: {}", String::from_utf8_lossy(&packet.data))).into()
}

/// Turns packets into events, checking the listing.
struct Reader<'a> {
    next_id: u32,
    listed: bool,
    bytes: u64,
    /// What the listing counts so far.
    listing: u64,
    list: ListValidator,
    options: &'a TransferOptions,
}

impl Reader<'_> {
    fn event(&mut self, packet: Packet) -> Result<Event, SessionError> {
        self.bytes += packet.encoded_len() as u64;
        if let Some(progress) = &self.options.progress {
            progress(self.bytes);
        }
        match packet.r#type() {
            PacketType::PacketErr => Err(sender_error(&packet)),
            PacketType::PacketData => Ok(Event::Data(packet.id, packet.data)),
            PacketType::PacketStat if self.listed => {
                Err(SessionError::Protocol("an entry after the end of the listing".into()))
            }
            PacketType::PacketStat => match packet.stat {
                None => {
                    self.listed = true;
                    Ok(Event::Listed)
                }
                Some(stat) => {
                    self.listing += stat.encoded_len() as u64 + limits::LISTED;
                    if self.listing > self.options.listing {
                        return Err(SessionError::Protocol(format!("a listing of more than {} files", self.next_id)));
                    }
                    self.list.check(&stat)?;
                    let id = self.next_id;
                    self.next_id = id.checked_add(1).ok_or_else(|| SessionError::Protocol("too many files".into()))?;
                    Ok(Event::Entry(id, stat))
                }
            },
            PacketType::PacketReq | PacketType::PacketFin => {
                Err(SessionError::Protocol(format!("a sender must not send {:?}", packet.r#type())))
            }
        }
    }
}

/// Calls the target and asks for contents, on a thread of its own.
struct Worker<T> {
    target: T,
    requests: mpsc::Sender<Packet>,
    /// Asked for and not complete.
    in_flight: HashSet<u32>,
    /// To be asked for when there is room.
    queue: VecDeque<u32>,
    listed: bool,
}

impl<T: SyncTarget> Worker<T> {
    fn new(requests: mpsc::Sender<Packet>, target: T) -> Self {
        Self { target, requests, in_flight: HashSet::new(), queue: VecDeque::new(), listed: false }
    }

    fn run(mut self, mut feed: mpsc::Receiver<Event>) -> Result<T, SessionError> {
        while !(self.listed && self.in_flight.is_empty() && self.queue.is_empty()) {
            let Some(event) = feed.blocking_recv() else {
                return Err(SessionError::Canceled { what: "receiving files" });
            };
            self.step(event)?;
            self.ask()?;
        }
        self.target.complete().map_err(|e| SessionError::io("keeping the received files", e))?;
        Ok(self.target)
    }

    fn step(&mut self, event: Event) -> Result<(), SessionError> {
        let failed = |e| SessionError::io("receiving files", e);
        match event {
            Event::Entry(id, stat) => {
                let has_content = stat.has_content();
                if self.target.entry(id, stat).map_err(failed)? && has_content {
                    self.queue.push_back(id);
                }
            }
            Event::Listed => {
                self.listed = true;
                self.target.listed().map_err(failed)?;
            }
            Event::Data(id, _) if !self.in_flight.contains(&id) => {
                return Err(SessionError::Protocol(format!("content of file {id}, which was not asked for")));
            }
            Event::Data(id, data) if data.is_empty() => {
                self.in_flight.remove(&id);
                self.target.end(id).map_err(failed)?;
            }
            Event::Data(id, data) => self.target.data(id, data).map_err(failed)?,
        }
        Ok(())
    }

    fn ask(&mut self) -> Result<(), SessionError> {
        while self.in_flight.len() < IN_FLIGHT {
            let Some(id) = self.queue.pop_front() else { break };
            let packet = Packet { r#type: PacketType::PacketReq.into(), id, ..Packet::default() };
            if self.requests.blocking_send(packet).is_err() {
                return Err(SessionError::Closed { why: None });
            }
            self.in_flight.insert(id);
        }
        Ok(())
    }
}
