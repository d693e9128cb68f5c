//! Cuts a stream into units, compresses them on several threads, and writes the results in order.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::output::{Output, Piece};

/// How units are compressed.
pub(super) trait Codec: 'static {
    /// Size of a unit in bytes.
    const UNIT: usize;

    /// Returns what a thread starts with.
    fn new(level: i32) -> io::Result<Self>
    where
        Self: Sized;

    /// Compresses one unit.
    fn compress(&mut self, unit: &[u8]) -> io::Result<Vec<u8>>;
}

struct Job {
    unit: Vec<u8>,
    reply: SyncSender<io::Result<Vec<u8>>>,
}

/// Compresses what is written to it; see [`Compressor`](super::Compressor).
pub(super) struct Pipeline<W> {
    output: Output<W>,
    unit: usize,
    data: Vec<u8>,
    pool: Pool,
}

impl<W: Write + Send + 'static> Pipeline<W> {
    pub(super) fn new<C: Codec>(out: W, level: i32, workers: usize) -> Self {
        let workers = workers.clamp(1, 64);
        // Each worker has a unit and finds another one waiting.
        let ahead = workers * 2;
        Self {
            output: Output::new(out, ahead),
            unit: C::UNIT,
            data: Vec::with_capacity(C::UNIT),
            pool: Pool::new::<C>(level, workers, ahead),
        }
    }

    pub(super) fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        // A full unit is sent when more comes, so that the last one is known to be the last.
        if self.data.len() == self.unit && !buf.is_empty() {
            self.send(self.unit)?;
        }
        let n = buf.len().min(self.unit - self.data.len());
        self.data.extend_from_slice(&buf[..n]);
        Ok(n)
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        self.send(0)?;
        self.output.finish()
    }

    /// Hands over what there is and begins a unit of at most `next` bytes.
    fn send(&mut self, next: usize) -> io::Result<()> {
        let (reply, answer) = sync_channel(1);
        // First in the order of the output, which also bounds how many units are under way.
        self.output.send(Piece::Later(answer))?;
        let unit = std::mem::replace(&mut self.data, Vec::with_capacity(next));
        self.pool.submit(Job { unit, reply })
    }
}

/// The threads.
struct Pool {
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    fn new<C: Codec>(level: i32, workers: usize, ahead: usize) -> Self {
        let (jobs, queue) = sync_channel::<Job>(ahead);
        let queue = Arc::new(Mutex::new(queue));
        let threads = (0..workers)
            .map(|_| {
                let queue = Arc::clone(&queue);
                std::thread::spawn(move || work::<C>(level, &queue))
            })
            .collect();
        Self { jobs: Some(jobs), threads }
    }

    fn submit(&self, job: Job) -> io::Result<()> {
        self.jobs.as_ref().ok_or_else(died)?.send(job).map_err(|_| died())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Without a sender the threads run out of jobs; they never block on replies, which have room for one.
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn work<C: Codec>(level: i32, queue: &Mutex<Receiver<Job>>) {
    let mut codec = C::new(level);
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let result = match &mut codec {
            Ok(codec) => codec.compress(&job.unit),
            Err(e) => Err(io::Error::new(e.kind(), e.to_string())),
        };
        // Nobody waits when the compressor was dropped.
        let _ = job.reply.send(result);
    }
}

fn died() -> io::Error {
    io::Error::other("a compressing thread died")
}
