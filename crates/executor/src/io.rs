//! Standard streams of a process and how its output is moved.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};

use crate::TtySize;

/// The largest piece of output handed on at once, in bytes: a pipe's own size.
const CHUNK: usize = 64 << 10;
/// How long a stream may stay open without a byte once every process of the sandbox is gone. Only a descriptor that was
/// handed out of the sandbox (over a socket) can keep it open that long.
const LINGER: Duration = Duration::from_secs(1);

/// The streams of one process.
#[derive(Default)]
pub struct ProcessIo {
    /// What the process reads.
    pub stdin: Stdin,
    /// Where its output goes; with a terminal, all of its output.
    pub stdout: Output,
    /// Where its error output goes.
    pub stderr: Output,
    /// Signals and terminal sizes for the running process.
    pub control: Option<mpsc::Receiver<Control>>,
    /// Told when the process has become its command; dropped when it never did.
    pub started: Option<oneshot::Sender<()>>,
}

/// What a process reads.
#[derive(Default)]
pub enum Stdin {
    /// Nothing: `/dev/null`.
    #[default]
    Null,
    /// A stream; its end closes the process's input.
    Reader(Pin<Box<dyn AsyncRead + Send>>),
}

/// Where output goes.
#[derive(Default)]
pub enum Output {
    /// Nowhere: `/dev/null`.
    #[default]
    Null,
    /// Pieces of at most 64 KiB, in order. A full channel holds the process back; a closed one discards.
    Channel(mpsc::Sender<Bytes>),
}

/// Something done to a running process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Sends a signal to the process. As the first of its sandbox it does not feel one that it has no handler for.
    Signal(i32),
    /// As [`Control::Signal`], but one that the process has no handler for does to it what it does to any other.
    Felt(i32),
    /// Changes the size of its terminal.
    Resize(TtySize),
}

/// Copies `source` to `sink` until its end, or until it stays silent after `gone` became true.
pub(crate) async fn pump_output(source: OwnedFd, sink: Output, mut gone: watch::Receiver<bool>) -> io::Result<()> {
    let Output::Channel(sink) = sink else { return Ok(()) };
    let mut source = pipe::Receiver::from_owned_fd(source)?;
    let mut buffer = Vec::with_capacity(CHUNK);
    loop {
        buffer.clear();
        let read = if *gone.borrow() {
            match tokio::time::timeout(LINGER, source.read_buf(&mut buffer)).await {
                Ok(read) => read,
                Err(_) => return Ok(()),
            }
        } else {
            tokio::select! {
                read = source.read_buf(&mut buffer) => read,
                _ = gone.wait_for(|gone| *gone) => continue,
            }
        };
        if read? == 0 {
            return Ok(());
        }
        // A receiver that went away must not block the process or kill it with SIGPIPE: read on and discard.
        let _ = sink.send(Bytes::copy_from_slice(&buffer)).await;
    }
}

/// Copies a stream into the process's input until either end closes.
pub(crate) async fn pump_input(source: Stdin, sink: OwnedFd) {
    let Stdin::Reader(mut source) = source else { return };
    let Ok(mut sink) = pipe::Sender::from_owned_fd(sink) else { return };
    // An error means the process closed its input, which is its right.
    if tokio::io::copy(&mut source, &mut sink).await.is_ok() {
        let _ = sink.shutdown().await;
    }
}

/// Moves both directions of a terminal until the process is gone. `master` arrives when the process has opened it; it never
/// does when the process could not be started.
pub(crate) async fn pump_terminal(
    master: oneshot::Receiver<OwnedFd>,
    stdin: Stdin,
    stdout: Output,
    gone: watch::Receiver<bool>,
) {
    let mut never = gone.clone();
    let master = tokio::select! {
        master = master => master,
        _ = never.wait_for(|gone| *gone) => return,
    };
    let Some(master) = master.ok().and_then(|master| Terminal::new(master).ok()) else { return };
    let output = async {
        let mut buffer = vec![0u8; CHUNK];
        let mut over = gone.clone();
        loop {
            let read = tokio::select! {
                biased;
                read = master.read(&mut buffer) => read,
                // Everything it wrote was read before: a terminal whose last process is gone answers at once.
                _ = over.wait_for(|gone| *gone) => return,
            };
            match (read, &stdout) {
                // EIO: no process has the terminal open any more.
                (Ok(0) | Err(_), _) => return,
                (Ok(length), Output::Channel(sink)) => {
                    let _ = sink.send(Bytes::copy_from_slice(&buffer[..length])).await;
                }
                (Ok(_), Output::Null) => {}
            }
        }
    };
    let input = async {
        let Stdin::Reader(mut source) = stdin else { return };
        let mut buffer = vec![0u8; CHUNK];
        while let Ok(length @ 1..) = source.read(&mut buffer).await {
            if master.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    };
    let mut over = gone.clone();
    let input = async {
        tokio::select! {
            () = input => {}
            _ = over.wait_for(|gone| *gone) => {}
        }
    };
    tokio::join!(output, input);
}

/// The controlling end of a terminal, read and written without blocking.
struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    fn new(master: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&master, true)?;
        // SAFETY: an `OwnedFd` is open and the same for as long as it lives, and nobody closes it by number.
        Ok(Self(unsafe { AsyncFd::register(master) }?))
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.async_io(Interest::READABLE, |master| Ok(rustix::io::read(master, &mut *buffer)?)).await
    }

    async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let written = self.0.async_io(Interest::WRITABLE, |master| Ok(rustix::io::write(master, data)?)).await?;
            data = &data[written..];
        }
        Ok(())
    }
}
