//! Blobs read while they come in: a layer is unpacked beside its download.
//!
//! What such a reader hands out has not been verified. Its end is told only when the whole was found right and published, so
//! whoever reads to the end has read a good blob, and whoever gets an error throws away what was made of it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use kiln_stdx::Digest;
use parking_lot::{Condvar, Mutex};

use crate::store::Store;

/// How far a blob has come. Shared by the one that writes it and those that read it.
#[derive(Default)]
pub(crate) struct Arrival {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    written: u64,
    end: Option<End>,
}

#[derive(Clone, Copy)]
enum End {
    Published,
    Broken,
}

impl Arrival {
    /// Notes that so many bytes stand in the file, counted from its start.
    pub fn written(&self, bytes: u64) {
        self.state.lock().written = bytes;
        self.changed.notify_all();
    }

    /// Notes that the whole was published.
    pub fn published(&self) {
        self.end(End::Published);
    }

    /// Notes that no more bytes come, unless it was published.
    pub fn over(&self) {
        self.end(End::Broken);
    }

    fn end(&self, end: End) {
        self.state.lock().end.get_or_insert(end);
        self.changed.notify_all();
    }

    /// Waits until more than `at` bytes stand there, and returns how many; `at` itself at the end of a published blob. Its
    /// writer ends this wait by going on or going away.
    fn beyond(&self, at: u64) -> io::Result<u64> {
        let mut state = self.state.lock();
        loop {
            match state.end {
                Some(End::Broken) => return Err(io::Error::other("the blob broke off on its way")),
                _ if state.written > at => return Ok(state.written),
                Some(End::Published) => return Ok(at),
                None => self.changed.wait(&mut state),
            }
        }
    }
}

/// Reads a blob that is still on its way.
pub struct ArrivingReader {
    digest: Digest,
    file: File,
    at: u64,
    arrival: Arc<Arrival>,
}

impl ArrivingReader {
    /// The digest that the blob is to have.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

impl Read for ArrivingReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let there = self.arrival.beyond(self.at)?.saturating_sub(self.at);
        if there == 0 {
            return Ok(0);
        }
        let most = usize::try_from(there).unwrap_or(usize::MAX).min(buf.len());
        let n = self.file.read_at(&mut buf[..most], self.at)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += n as u64;
        Ok(n)
    }
}

impl Store {
    /// Returns a reader of a blob that somebody is just bringing in by [`Store::resume`], from its start; none if nobody is.
    pub fn arriving(&self, digest: &Digest) -> Option<ArrivingReader> {
        let partials = self.0.partials.lock();
        let arrival = partials.get(digest)?.clone();
        // Opened below the lock: the file cannot have been replaced by a later attempt's.
        let file = File::open(self.0.layout.partial(digest)).ok()?;
        Some(ArrivingReader { digest: *digest, file, at: 0, arrival })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc;

    use super::*;
    use crate::{Ingest, StoreConfig};

    const SIZE: usize = 3 << 20;

    fn data() -> Vec<u8> {
        (0..SIZE).map(|i| (i * 13 % 251) as u8).collect()
    }

    /// Reads in a thread of its own; tells each piece's length, and at the end everything.
    fn reading(mut reader: ArrivingReader) -> (mpsc::Receiver<usize>, std::thread::JoinHandle<io::Result<Vec<u8>>>) {
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let (mut all, mut piece) = (Vec::new(), vec![0; 1 << 16]);
            loop {
                let n = reader.read(&mut piece)?;
                if n == 0 {
                    return Ok(all);
                }
                all.extend_from_slice(&piece[..n]);
                let _ = tell.send(n);
            }
        });
        (told, thread)
    }

    fn begin(store: &Store, digest: Digest) -> Ingest {
        let mut ingest = store.resume(digest, SIZE as u64).unwrap();
        if ingest.written() == 0 {
            ingest.write_all(&data()[..SIZE / 2]).unwrap();
        }
        ingest
    }

    #[test]
    fn what_came_is_read_before_the_rest_comes_and_the_end_is_told_when_it_is_published() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(StoreConfig::new(dir.path())).unwrap();
        let digest = Digest::of(data());
        assert!(store.arriving(&digest).is_none());
        let mut ingest = begin(&store, digest);
        let (told, thread) = reading(store.arriving(&digest).unwrap());
        let mut come = 0;
        while come < SIZE / 2 {
            come += told.recv().unwrap();
        }
        ingest.write_all(&data()[SIZE / 2..]).unwrap();
        while come < SIZE {
            come += told.recv().unwrap();
        }
        assert!(!thread.is_finished(), "not verified yet");
        ingest.commit().unwrap();
        assert_eq!(thread.join().unwrap().unwrap(), data());
        assert!(store.arriving(&digest).is_none());
    }

    #[test]
    fn readers_fail_when_it_breaks_off_or_is_wrong_and_the_next_attempt_is_read_from_its_start() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(StoreConfig::new(dir.path())).unwrap();
        let digest = Digest::of(data());
        let ingest = begin(&store, digest);
        let (_told, thread) = reading(store.arriving(&digest).unwrap());
        drop(ingest);
        assert!(thread.join().unwrap().is_err());

        // Gone on with: what was there before is read too.
        let mut ingest = begin(&store, digest);
        assert_eq!(ingest.written(), SIZE as u64 / 2);
        let (_told, thread) = reading(store.arriving(&digest).unwrap());
        ingest.write_all(&vec![7; SIZE / 2]).unwrap();
        assert!(ingest.commit().is_err(), "of another digest");
        assert!(thread.join().unwrap().is_err());
    }
}
