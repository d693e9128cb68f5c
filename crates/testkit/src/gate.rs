//! A gate that a step of a build stops at: the test sees that the step runs, decides when it goes on, and notices when
//! it dies. It is a web server on loopback, so a step needs no more than `wget` and the host's network.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// How long a step may take to come to the gate.
const ARRIVAL: Duration = Duration::from_secs(120);
/// How often a gate looks whether somebody came.
const GLANCE: Duration = Duration::from_millis(5);

/// A place where steps wait to be let through.
pub struct Gate {
    listener: TcpListener,
}

/// A step that waits at a gate; it goes on when this is released and fails when it is dropped.
pub struct Held {
    stream: TcpStream,
}

impl Gate {
    /// Opens a gate on loopback.
    ///
    /// # Panics
    /// There is no loopback.
    pub fn new() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap_or_else(|e| panic!("loopback: {e}"));
        listener.set_nonblocking(true).unwrap_or_else(|e| panic!("loopback: {e}"));
        Self { listener }
    }

    /// Returns the shell command that waits at the gate.
    pub fn command(&self) -> String {
        let port = self.listener.local_addr().map(|a| a.port()).unwrap_or_default();
        format!("wget -q -O - http://127.0.0.1:{port}/")
    }

    /// Waits for a step.
    ///
    /// # Panics
    /// None comes in two minutes.
    #[track_caller]
    pub fn wait(&self) -> Held {
        let start = Instant::now();
        loop {
            if let Some(held) = self.poll() {
                return held;
            }
            assert!(start.elapsed() < ARRIVAL, "no step came to the gate");
            std::thread::sleep(GLANCE);
        }
    }

    /// Returns a step that has come meanwhile, if any.
    pub fn poll(&self) -> Option<Held> {
        let (mut stream, _) = self.listener.accept().ok()?;
        stream.set_nonblocking(false).ok()?;
        let mut request = [0; 1024];
        // What it asks for does not matter, only that it asks.
        stream.read(&mut request).ok().filter(|n| *n > 0)?;
        Some(Held { stream })
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Held {
    /// Lets the step go on.
    ///
    /// # Panics
    /// The step has died.
    #[track_caller]
    pub fn release(mut self) {
        let answer = b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n";
        self.stream.write_all(answer).unwrap_or_else(|e| panic!("the step at the gate has died: {e}"));
    }

    /// Tells whether the step dies within `time`.
    pub fn dies_within(&mut self, time: Duration) -> bool {
        let _ = self.stream.set_read_timeout(Some(time));
        let mut rest = [0; 1];
        match self.stream.read(&mut rest) {
            Ok(0) => true,
            Ok(_) => false,
            Err(e) => !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }
}
