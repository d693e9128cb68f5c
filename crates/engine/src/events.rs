//! The event log of one build: everything a client is shown, in order, from the first event to the last.
//!
//! Events are small and stay in memory; what steps print goes to a spool file, so a build's memory does not grow
//! with its output. Readers start at the first event whenever they come, so a late one misses nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::SystemTime;

use kiln_stdx::Digest;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::why::StepReason;

/// Most bytes of output that are kept in memory when the disk is full.
const KEPT: usize = 256 << 10;

/// State of one vertex as a client sees it.
#[derive(Debug, Clone, Default)]
pub struct VertexEvent {
    pub digest: Option<Digest>,
    pub inputs: Vec<Digest>,
    pub name: String,
    pub cached: bool,
    pub started: Option<SystemTime>,
    pub completed: Option<SystemTime>,
    pub error: String,
    pub progress_group: Option<ProgressGroup>,
}

/// Vertices that are shown together (LLB `ProgressGroup`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgressGroup {
    pub id: String,
    pub name: String,
    pub weak: bool,
}

/// Progress of one part of a vertex: bytes, or a timer when `total` is 0.
#[derive(Debug, Clone)]
pub struct StatusEvent {
    pub vertex: Digest,
    pub id: String,
    pub name: String,
    pub current: i64,
    pub total: i64,
    pub timestamp: SystemTime,
    pub started: Option<SystemTime>,
    pub completed: Option<SystemTime>,
}

/// A piece of what a step printed; the bytes lie in the spool file.
#[derive(Debug, Clone)]
pub struct LogEvent {
    pub vertex: Digest,
    /// 1 is standard output, 2 standard error.
    pub stream: i32,
    pub timestamp: SystemTime,
    place: Place,
}

/// Where the bytes of a log event lie.
#[derive(Debug, Clone)]
enum Place {
    Spooled {
        offset: u64,
        length: usize,
    },
    /// In memory, since the spool file could not be written.
    Kept(Arc<[u8]>),
}

/// A lint finding or another warning, with the place in the source it is about.
#[derive(Debug, Clone)]
pub struct WarningEvent {
    pub vertex: Digest,
    pub level: i64,
    pub short: Vec<u8>,
    pub detail: Vec<Vec<u8>>,
    pub url: String,
    pub source: Option<kiln_llb::pb::SourceInfo>,
    pub ranges: Vec<kiln_llb::pb::Range>,
}

/// One entry of the log.
#[derive(Debug, Clone)]
pub enum Event {
    Vertex(VertexEvent),
    Status(StatusEvent),
    Log(LogEvent),
    Warning(WarningEvent),
    /// Why a step runs.
    Reason(Box<StepReason>),
}

/// The events of one build. Cloning gives another handle on the same log.
#[derive(Clone)]
pub struct EventLog {
    shared: Arc<Shared>,
}

struct Shared {
    events: Mutex<Vec<Arc<Event>>>,
    length: watch::Sender<usize>,
    closed: AtomicBool,
    spool: File,
    spooled: Mutex<u64>,
    /// Bytes kept in memory.
    kept: AtomicUsize,
    warnings: AtomicUsize,
}

impl EventLog {
    /// Returns an empty log that spools to `spool`, a file of its own that nobody else writes.
    pub fn new(spool: File) -> Self {
        Self {
            shared: Arc::new(Shared {
                events: Mutex::new(Vec::new()),
                length: watch::Sender::new(0),
                closed: AtomicBool::new(false),
                spool,
                spooled: Mutex::new(0),
                kept: AtomicUsize::new(0),
                warnings: AtomicUsize::new(0),
            }),
        }
    }

    /// Adds an event; after [`EventLog::close`] it is dropped, since nobody would see it.
    pub fn push(&self, event: Event) {
        if self.shared.closed.load(Ordering::SeqCst) {
            return;
        }
        if matches!(event, Event::Warning(_)) {
            self.shared.warnings.fetch_add(1, Ordering::Relaxed);
        }
        let length = {
            let mut events = self.shared.events.lock();
            events.push(Arc::new(event));
            events.len()
        };
        self.shared.length.send_replace(length);
    }

    /// Spools `data` and adds the event that points to it.
    ///
    /// On a full disk the first [`KEPT`] bytes are kept in memory instead: they are most likely about just that.
    ///
    /// # Errors
    /// The spool file cannot be written, and enough is kept in memory.
    pub fn log(&self, vertex: Digest, stream: i32, timestamp: SystemTime, data: &[u8]) -> io::Result<()> {
        let spooled = {
            let mut spooled = self.shared.spooled.lock();
            let offset = *spooled;
            self.shared.spool.write_all_at(data, offset).map(|()| {
                *spooled += data.len() as u64;
                Place::Spooled { offset, length: data.len() }
            })
        };
        let place = match spooled {
            Err(_) if self.shared.kept.fetch_add(data.len(), Ordering::Relaxed) < KEPT => Place::Kept(data.into()),
            spooled => spooled?,
        };
        self.push(Event::Log(LogEvent { vertex, stream, timestamp, place }));
        Ok(())
    }

    /// Returns the bytes of a log event.
    ///
    /// # Errors
    /// The spool file cannot be read.
    pub fn data(&self, event: &LogEvent) -> io::Result<Vec<u8>> {
        match &event.place {
            Place::Kept(data) => Ok(data.to_vec()),
            Place::Spooled { offset, length } => {
                let mut data = vec![0; *length];
                self.shared.spool.read_exact_at(&mut data, *offset)?;
                Ok(data)
            }
        }
    }

    /// Returns the last `limit` bytes that `vertex` printed.
    pub fn tail(&self, vertex: Digest, limit: usize) -> Vec<u8> {
        let events: Vec<Arc<Event>> = self.shared.events.lock().clone();
        let mut pieces = Vec::new();
        let mut size = 0;
        for event in events.iter().rev() {
            if let Event::Log(log) = event.as_ref()
                && log.vertex == vertex
                && let Ok(data) = self.data(log)
            {
                size += data.len();
                pieces.push(data);
                if size >= limit {
                    break;
                }
            }
        }
        let all: Vec<u8> = pieces.into_iter().rev().flatten().collect();
        all[all.len().saturating_sub(limit)..].to_vec()
    }

    /// Ends the log: readers come to its end once they have seen everything.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.shared.length.send_modify(|_| {});
    }

    /// Tells whether the log has ended.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::SeqCst)
    }

    /// Returns a reader from the first event on.
    pub fn reader(&self) -> EventReader {
        EventReader { log: self.clone(), next: 0, length: self.shared.length.subscribe() }
    }

    /// Returns all events so far.
    pub fn snapshot(&self) -> Vec<Arc<Event>> {
        self.shared.events.lock().clone()
    }

    /// Returns how many warnings were added.
    pub fn warnings(&self) -> usize {
        self.shared.warnings.load(Ordering::Relaxed)
    }
}

/// Reads a log in order.
pub struct EventReader {
    log: EventLog,
    next: usize,
    length: watch::Receiver<usize>,
}

impl EventReader {
    /// Returns the events since the last call, waiting for at least one; none at the end of a closed log.
    ///
    /// The wait is owned by whoever polls it: dropping the future ends it.
    pub async fn next(&mut self) -> Option<Vec<Arc<Event>>> {
        loop {
            self.length.borrow_and_update();
            let closed = self.log.shared.closed.load(Ordering::SeqCst);
            let batch: Vec<_> = self.log.shared.events.lock()[self.next..].to_vec();
            if !batch.is_empty() {
                self.next += batch.len();
                return Some(batch);
            }
            if closed || self.length.changed().await.is_err() {
                return None;
            }
        }
    }

    /// Returns the log that is read.
    pub fn log(&self) -> &EventLog {
        &self.log
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> EventLog {
        EventLog::new(tempfile::tempfile().unwrap())
    }

    #[tokio::test]
    async fn a_late_reader_sees_everything_and_the_end() {
        let log = log();
        let vertex = Digest::of("v");
        log.log(vertex, 1, SystemTime::UNIX_EPOCH, b"one ").unwrap();
        let mut reader = log.reader();
        log.log(vertex, 2, SystemTime::UNIX_EPOCH, b"two").unwrap();
        log.close();
        log.push(Event::Vertex(VertexEvent::default()));
        let batch = reader.next().await.unwrap();
        let text: Vec<u8> = batch
            .iter()
            .flat_map(|e| match e.as_ref() {
                Event::Log(l) => log.data(l).unwrap(),
                _ => panic!("an event after the end"),
            })
            .collect();
        assert_eq!(text, b"one two");
        assert!(reader.next().await.is_none());
        assert_eq!(log.tail(vertex, 5), b"e two");
    }

    #[test]
    fn on_a_full_disk_the_beginning_is_kept() {
        // A file that may only be read stands for a disk that takes nothing.
        let spool = File::open("/dev/null").unwrap();
        let log = EventLog::new(spool);
        let vertex = Digest::of("v");
        log.log(vertex, 2, SystemTime::UNIX_EPOCH, b"no space left").unwrap();
        assert_eq!(log.tail(vertex, 100), b"no space left");
        log.log(vertex, 2, SystemTime::UNIX_EPOCH, &[b'x'; KEPT]).unwrap();
        assert!(log.log(vertex, 2, SystemTime::UNIX_EPOCH, b"too much").is_err());
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken() {
        let log = log();
        let mut reader = log.reader();
        let (batch, ()) = tokio::join!(reader.next(), async { log.push(Event::Vertex(VertexEvent::default())) });
        assert_eq!(batch.unwrap().len(), 1);
    }
}
