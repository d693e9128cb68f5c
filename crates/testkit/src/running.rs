//! A program that runs while the test does something else: what it has printed so far, signals, its end.

use std::io::Read;
use std::process::Child;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::process::Finished;

/// A running program; dropping it kills it.
pub struct Running {
    child: Child,
    command: String,
    deadline: Duration,
    stdout: Stream,
    stderr: Stream,
}

struct Stream {
    said: Arc<(Mutex<Said>, Condvar)>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Said {
    data: Vec<u8>,
    ended: bool,
}

impl Stream {
    fn new(source: Option<impl Read + Send + 'static>) -> Self {
        let said = Arc::<(Mutex<Said>, Condvar)>::default();
        let shared = said.clone();
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            let Some(mut source) = source else { return };
            loop {
                let read = source.read(&mut buffer).unwrap_or(0);
                let mut said = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                said.data.extend_from_slice(&buffer[..read]);
                said.ended = read == 0;
                shared.1.notify_all();
                if read == 0 {
                    return;
                }
            }
        });
        Self { said, reader: Some(reader) }
    }

    /// Waits until `done` likes what was printed; false at the end of the stream or the deadline.
    fn wait(&self, deadline: Duration, done: impl Fn(&[u8]) -> bool) -> bool {
        let said = self.said.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |said: &mut Said| !done(&said.data) && !said.ended;
        let (said, _) = self.said.1.wait_timeout_while(said, deadline, waiting).unwrap_or_else(PoisonError::into_inner);
        done(&said.data)
    }

    fn data(&self) -> Vec<u8> {
        self.said.0.lock().unwrap_or_else(PoisonError::into_inner).data.clone()
    }
}

impl Running {
    /// Takes over a program whose output is piped.
    pub(crate) fn new(mut child: Child, command: String, deadline: Duration) -> Self {
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        Self { child, command, deadline, stdout: Stream::new(stdout), stderr: Stream::new(stderr) }
    }

    /// Returns its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `text` is on standard error.
    ///
    /// # Panics
    /// The program ends without, or its time is over.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        let holds = |data: &[u8]| data.windows(text.len()).any(|w| w == text.as_bytes());
        assert!(self.stderr.wait(self.deadline, holds), "no `{text}` in\n{}", self.err());
    }

    /// Returns standard error so far.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr.data()).into_owned()
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// The program has ended.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap_or_else(|e| panic!("{}: {e}", self.command));
    }

    /// Waits for its end, or its deadline.
    pub fn finish(mut self) -> Finished {
        let start = Instant::now();
        let left = || self.deadline.saturating_sub(start.elapsed());
        self.stderr.wait(left(), |_| false);
        self.stdout.wait(left(), |_| false);
        let timed_out = left().is_zero();
        if timed_out {
            let _ = self.child.kill();
        }
        let code = self.child.wait().ok().and_then(|status| status.code());
        for stream in [&mut self.stdout, &mut self.stderr] {
            if let Some(reader) = stream.reader.take().filter(|_| !timed_out) {
                let _ = reader.join();
            }
        }
        Finished {
            code,
            stdout: self.stdout.data(),
            stderr: self.stderr.data(),
            timed_out,
            command: std::mem::take(&mut self.command),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
