//! The writing end of a compressor, on a thread of its own: what the output does with the bytes (hash, write) goes on beside
//! what makes them.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// What is to be written next.
pub(super) enum Piece {
    /// These bytes.
    Ready(Vec<u8>),
    /// Bytes that are still being made.
    Later(Receiver<io::Result<Vec<u8>>>),
}

/// Writes pieces in the order in which they are sent.
pub(super) struct Output<W> {
    pieces: Option<SyncSender<Piece>>,
    thread: Option<JoinHandle<io::Result<W>>>,
}

impl<W: Write + Send + 'static> Output<W> {
    /// Writes to `out`; at most `ahead` pieces wait.
    pub(super) fn new(out: W, ahead: usize) -> Self {
        let (pieces, queue) = sync_channel(ahead);
        Self { pieces: Some(pieces), thread: Some(std::thread::spawn(move || write(out, &queue))) }
    }

    /// Adds a piece; waits while too many wait.
    ///
    /// # Errors
    /// What writing an earlier one failed with, once.
    pub(super) fn send(&mut self, piece: Piece) -> io::Result<()> {
        match &self.pieces {
            Some(pieces) if pieces.send(piece).is_ok() => Ok(()),
            _ => Err(self.end().err().unwrap_or_else(failed_before)),
        }
    }

    /// Writes what is left and returns the output.
    ///
    /// # Errors
    /// What writing failed with.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.end()
    }

    fn end(&mut self) -> io::Result<W> {
        self.pieces = None;
        let thread = self.thread.take().ok_or_else(failed_before)?;
        thread.join().map_err(|_| io::Error::other("a writing thread died"))?
    }
}

impl<W> Drop for Output<W> {
    fn drop(&mut self) {
        // The output is gone when this returns, with what it leaves or removes.
        self.pieces = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn write<W: Write>(mut out: W, queue: &Receiver<Piece>) -> io::Result<W> {
    for piece in queue {
        let bytes = match piece {
            Piece::Ready(bytes) => bytes,
            Piece::Later(answer) => answer.recv().map_err(|_| io::Error::other("a compressing thread died"))??,
        };
        out.write_all(&bytes)?;
    }
    out.flush()?;
    Ok(out)
}

fn failed_before() -> io::Error {
    io::Error::other("the compressor failed before")
}
