//! Cuts a stream into units, compresses them on several threads, and writes the results in order.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// How units are compressed.
pub(super) trait Codec: Send + Sync + 'static {
    /// What a thread keeps between units.
    type State;

    /// Returns the size of a unit in bytes.
    fn unit(&self) -> usize;

    /// Returns how many bytes before a unit are given to it as dictionary.
    fn dictionary(&self) -> usize;

    /// Returns what a new thread starts with.
    fn state(&self) -> io::Result<Self::State>;

    /// Returns what comes before the first unit.
    fn header(&self) -> Vec<u8>;

    /// Takes note of input, in order.
    fn see(&mut self, data: &[u8]);

    /// Compresses one unit.
    fn compress(level: i32, state: &mut Self::State, unit: &Unit) -> io::Result<Vec<u8>>;

    /// Returns the level that [`compress`](Self::compress) gets.
    fn level(&self) -> i32;

    /// Returns what comes behind the last unit.
    fn trailer(&self) -> Vec<u8>;

    /// Tells whether a stream that ends at the end of a unit, or is empty, gets an empty last unit.
    fn ends_with_empty_unit(&self) -> bool;
}

/// A piece of input.
pub(super) struct Unit {
    pub(super) data: Vec<u8>,
    /// The input right before the unit.
    pub(super) before: Vec<u8>,
    pub(super) last: bool,
}

struct Job {
    unit: Unit,
    reply: SyncSender<io::Result<Vec<u8>>>,
}

/// The writing end; see [`Compressor`](super::Compressor).
pub(super) struct Pipeline<W: Write> {
    out: W,
    ends: Ends,
    data: Vec<u8>,
    before: Vec<u8>,
    pending: VecDeque<Receiver<io::Result<Vec<u8>>>>,
    pool: Pool,
    failed: bool,
}

/// The parts of a codec that run on the writer's thread, without its type of state.
struct Ends {
    unit: usize,
    dictionary: usize,
    header: Vec<u8>,
    see: Box<dyn FnMut(&[u8]) + Send>,
    trailer: Box<dyn FnOnce() -> Vec<u8> + Send>,
    empty_unit: bool,
}

struct Pool {
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
    ahead: usize,
}

impl<W: Write> Pipeline<W> {
    pub(super) fn new<C: Codec>(out: W, codec: C, workers: usize) -> Self {
        let workers = workers.clamp(1, 64);
        let ahead = workers * 2;
        let (jobs, queue) = sync_channel::<Job>(ahead);
        let queue = Arc::new(Mutex::new(queue));
        let shared = Arc::new(Mutex::new(codec));
        let (unit, dictionary, header, empty_unit) = {
            let codec = shared.lock().unwrap_or_else(PoisonError::into_inner);
            (codec.unit(), codec.dictionary(), codec.header(), codec.ends_with_empty_unit())
        };
        let threads = (0..workers)
            .map(|_| {
                let (queue, codec) = (Arc::clone(&queue), Arc::clone(&shared));
                std::thread::spawn(move || work::<C>(&queue, &codec))
            })
            .collect();
        let (seer, closer) = (Arc::clone(&shared), shared);
        let ends = Ends {
            unit,
            dictionary,
            header,
            see: Box::new(move |data| seer.lock().unwrap_or_else(PoisonError::into_inner).see(data)),
            trailer: Box::new(move || closer.lock().unwrap_or_else(PoisonError::into_inner).trailer()),
            empty_unit,
        };
        Self {
            out,
            data: Vec::with_capacity(unit),
            ends,
            before: Vec::new(),
            pending: VecDeque::new(),
            pool: Pool { jobs: Some(jobs), threads, ahead },
            failed: false,
        }
    }

    pub(super) fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.failed {
            return Err(io::Error::other("the compressor failed before"));
        }
        // A unit is sent when more comes, so that the last one is known to be the last.
        if self.data.len() == self.ends.unit {
            let sent = self.send(false);
            self.failed = sent.is_err();
            sent?;
        }
        let n = buf.len().min(self.ends.unit - self.data.len());
        self.data.extend_from_slice(&buf[..n]);
        Ok(n)
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        if self.failed {
            return Err(io::Error::other("the compressor failed before"));
        }
        if !self.data.is_empty() || self.ends.empty_unit {
            self.send(true)?;
        }
        while !self.pending.is_empty() {
            self.write_next()?;
        }
        self.write_header()?;
        let trailer = (self.ends.trailer)();
        self.out.write_all(&trailer)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn send(&mut self, last: bool) -> io::Result<()> {
        while self.pending.len() >= self.pool.ahead {
            self.write_next()?;
        }
        (self.ends.see)(&self.data);
        let data = std::mem::replace(&mut self.data, Vec::with_capacity(if last { 0 } else { self.ends.unit }));
        let next_before = data[data.len().saturating_sub(self.ends.dictionary)..].to_vec();
        let before = std::mem::replace(&mut self.before, next_before);
        let (reply, answer) = sync_channel(1);
        let job = Job { unit: Unit { data, before, last }, reply };
        self.pending.push_back(answer);
        let sent = self.pool.jobs.as_ref().map(|jobs| jobs.send(job).is_ok());
        if sent == Some(true) { Ok(()) } else { Err(died()) }
    }

    fn write_header(&mut self) -> io::Result<()> {
        self.out.write_all(&std::mem::take(&mut self.ends.header))
    }

    fn write_next(&mut self) -> io::Result<()> {
        let Some(answer) = self.pending.pop_front() else { return Ok(()) };
        let bytes = answer.recv().map_err(|_| died())??;
        self.write_header()?;
        self.out.write_all(&bytes)
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

fn work<C: Codec>(queue: &Mutex<Receiver<Job>>, codec: &Mutex<C>) {
    let (level, state) = {
        let codec = codec.lock().unwrap_or_else(PoisonError::into_inner);
        (codec.level(), codec.state())
    };
    let mut state = state;
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let result = match &mut state {
            Ok(state) => C::compress(level, state, &job.unit),
            Err(e) => Err(io::Error::new(e.kind(), e.to_string())),
        };
        // Nobody waits when the compressor was dropped.
        let _ = job.reply.send(result);
    }
}

fn died() -> io::Error {
    io::Error::other("a compressing thread died")
}
