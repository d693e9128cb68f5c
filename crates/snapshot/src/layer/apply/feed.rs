//! Reads an input on one thread and hashes it on another, a few pieces ahead of who takes them: decompressing and hashing
//! take as long as all the rest.

use std::io::{self, BufRead, ErrorKind, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use kiln_stdx::{Digest, DigestHasher};

/// Bytes of one piece.
pub(super) const PIECE: usize = 256 * 1024;
/// How many pieces may wait.
const AHEAD: usize = 4;

/// Reads the first piece of an input: all of it where that is less than [`PIECE`].
pub(super) fn first(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut piece = Vec::new();
    input.take(PIECE as u64).read_to_end(&mut piece)?;
    Ok(piece)
}

/// The taking end.
pub(super) struct Feed {
    pieces: Receiver<io::Result<Vec<u8>>>,
    used: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    ended: bool,
}

/// Starts reading `input` to its end. The thread returns digest and size of what was read; it ends early when the
/// [`Feed`] is dropped, at the latest after the read that is going on then.
pub(super) fn start<'scope, R: Read + Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    input: R,
) -> (Feed, ScopedJoinHandle<'scope, (Digest, u64)>) {
    let (read, unhashed) = sync_channel(AHEAD);
    let (send, pieces) = sync_channel(AHEAD);
    let (used, free) = sync_channel(2 * AHEAD + 3);
    scope.spawn(move || read_all(input, &read, &free));
    let thread = scope.spawn(move || hash_all(&unhashed, &send));
    (Feed { pieces, used, piece: Vec::new(), at: 0, ended: false }, thread)
}

/// Returns the error for a reading thread that is gone without a word.
pub(super) fn gone() -> io::Error {
    io::Error::other("the reading thread ended early")
}

/// Reads pieces up to an error or the end, which is an empty piece.
fn read_all(mut input: impl Read, send: &SyncSender<io::Result<Vec<u8>>>, free: &Receiver<Vec<u8>>) {
    loop {
        let mut piece = free.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        let piece = fill(&mut input, &mut piece).map(|n| {
            piece.truncate(n);
            piece
        });
        let last = piece.as_ref().map_or(true, Vec::is_empty);
        // Nobody waits for it when the taker has given up.
        if send.send(piece).is_err() || last {
            return;
        }
    }
}

/// Hashes pieces and hands them on.
fn hash_all(pieces: &Receiver<io::Result<Vec<u8>>>, send: &SyncSender<io::Result<Vec<u8>>>) -> (Digest, u64) {
    let mut hasher = DigestHasher::new();
    let mut total = 0;
    for piece in pieces {
        if let Ok(piece) = &piece {
            hasher.update(piece);
            total += piece.len() as u64;
        }
        if send.send(piece).is_err() {
            break;
        }
    }
    (hasher.finish(), total)
}

fn fill(input: &mut impl Read, piece: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < piece.len() {
        match input.read(&mut piece[have..]) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(have)
}

impl Feed {
    /// Takes and drops everything up to the end of the input.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        loop {
            let n = self.fill_buf()?.len();
            if n == 0 {
                return Ok(());
            }
            self.consume(n);
        }
    }
}

impl BufRead for Feed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.piece.len() && !self.ended {
            let next = self.pieces.recv().map_err(|_| gone())??;
            self.ended = next.is_empty();
            // A full channel only means that this buffer is not used again.
            let _ = self.used.try_send(std::mem::replace(&mut self.piece, next));
            self.at = 0;
        }
        Ok(&self.piece[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at = (self.at + n).min(self.piece.len());
    }
}

impl Read for Feed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let piece = self.fill_buf()?;
        let n = piece.len().min(buf.len());
        buf[..n].copy_from_slice(&piece[..n]);
        self.consume(n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_piece_is_all_of_a_short_input_and_the_rest_is_left() {
        for (length, first_length) in [(0, 0), (10, 10), (PIECE - 1, PIECE - 1), (PIECE, PIECE), (PIECE + 7, PIECE)] {
            let bytes: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let mut input = bytes.as_slice();
            let piece = first(&mut input).unwrap();
            assert_eq!(piece.len(), first_length);
            assert_eq!([&piece, input].concat(), bytes, "{length}");
        }
    }

    #[test]
    fn an_input_that_breaks_off_is_no_short_one() {
        struct Broken(usize);
        impl Read for Broken {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                let n = buf.len().min(self.0);
                self.0 -= n;
                if n == 0 { Err(ErrorKind::ConnectionReset.into()) } else { Ok(n) }
            }
        }
        assert_eq!(first(&mut Broken(100)).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}
