//! A client that runs beside the test: what it prints is read as it comes.

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use kiln_testkit::Run;
use rustix::process::{Pid, Signal, kill_process};

use crate::project::DEADLINE;

/// How long one look takes.
const LOOK: Duration = Duration::from_millis(20);

/// A running client, and what it has printed so far.
pub struct Client {
    child: Child,
    lines: Receiver<String>,
    pub said: Vec<String>,
    /// The exit code, once it has ended; none in it when a signal did that.
    pub code: Option<Option<i32>>,
}

impl Client {
    /// Starts it.
    pub fn start(run: Run) -> Self {
        let mut child = run.spawn();
        let (sender, lines) = channel();
        let streams: [Option<Box<dyn std::io::Read + Send>>; 2] =
            [child.stdout.take().map(|s| Box::new(s) as _), child.stderr.take().map(|s| Box::new(s) as _)];
        for stream in streams.into_iter().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        Self { child, lines, said: Vec::new(), code: None }
    }

    /// Takes what has been printed, waiting at most for `limit` for something.
    pub fn read(&mut self, limit: Duration) {
        match self.lines.recv_timeout(limit) {
            Ok(line) => {
                self.said.push(line);
                self.said.extend(self.lines.try_iter());
            }
            // The streams are closed: there is only the end to wait for.
            Err(RecvTimeoutError::Disconnected) if !self.ended() => std::thread::sleep(limit),
            Err(_) => {}
        }
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Tells whether a line ends with `mark`.
    pub fn said(&self, mark: &str) -> bool {
        self.said.iter().any(|line| line.ends_with(mark))
    }

    /// Tells whether it has ended.
    pub fn ended(&mut self) -> bool {
        if self.code.is_none() {
            self.code = self.child.try_wait().ok().flatten().map(|status| status.code());
        }
        self.code.is_some()
    }

    /// Returns all it has printed.
    pub fn text(&self) -> String {
        self.said.join("\n")
    }

    /// Reads until it has come to something, or has ended.
    ///
    /// # Errors
    /// Neither happens.
    pub fn wait(&mut self, there: impl Fn(&Self) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + DEADLINE;
        while !there(self) && !self.ended() {
            if Instant::now() > deadline {
                return Err(format!("the client hangs\n{}", self.text()));
            }
            self.read(LOOK);
        }
        Ok(())
    }

    /// Reads to its end.
    ///
    /// # Errors
    /// It hangs.
    pub fn finish(&mut self) -> Result<(), String> {
        self.wait(|_| false)?;
        let deadline = Instant::now() + DEADLINE;
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.said.push(line);
        }
        Ok(())
    }

    /// Checks that the client failed and said why.
    ///
    /// # Errors
    /// It did not.
    pub fn check(&mut self) -> Result<(), String> {
        self.said.extend(self.lines.iter());
        let failed = self.code.flatten().is_some_and(|code| code != 0);
        let told = self.said.iter().any(|line| line.starts_with("ERROR: "));
        if failed && told { Ok(()) } else { Err(format!("the client ends with {:?}\n{}", self.code, self.text())) }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
