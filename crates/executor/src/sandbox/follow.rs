//! Follows one step from the moment it was handed to the helper to its end.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::sys::fds::{self, Message};
use crate::sys::process;
use crate::wire::{Order, Report};
use crate::{Control, ExecError, Usage};

/// How long a sandbox that was killed may take to be gone; only a process stuck in the kernel takes longer.
const DEATH: Duration = Duration::from_secs(10);

/// What is done with the descriptor of a process that has become its command.
type OnStart = Box<dyn FnOnce(&OwnedFd) + Send + Sync>;

/// The engine's end of a step's socket. Dropping it kills the sandbox.
pub(super) struct Follower {
    socket: AsyncFd<OwnedFd>,
    pidfd: Option<OwnedFd>,
    terminal: Option<oneshot::Sender<OwnedFd>>,
    master: Option<OwnedFd>,
    started: Option<OnStart>,
}

impl Follower {
    /// Follows the step whose other end is `socket`.
    pub(super) fn new(socket: OwnedFd) -> Result<Self, ExecError> {
        let fail = |error: std::io::Error| ExecError::setup("watch the helper's socket", error);
        rustix::io::ioctl_fionbio(&socket, true).map_err(|errno| fail(errno.into()))?;
        // SAFETY: an `OwnedFd` is open and the same for as long as it lives, and nobody closes it by number.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        let socket = socket.map_err(|error| fail(error.into()))?;
        Ok(Self { socket, pidfd: None, terminal: None, master: None, started: None })
    }

    /// Sends the controlling end of the process's terminal to `terminal` when it is there.
    pub(super) fn with_terminal(mut self, terminal: Option<oneshot::Sender<OwnedFd>>) -> Self {
        self.terminal = terminal;
        self
    }

    /// Calls `started` with the descriptor of the process once it has become its command.
    pub(super) fn when_started(mut self, started: impl FnOnce(&OwnedFd) + Send + Sync + 'static) -> Self {
        self.started = Some(Box::new(started));
        self
    }

    /// Waits until a fork of the helper has the step. Returns false when the helper died first: the step was never begun.
    pub(super) async fn accepted(&self) -> bool {
        matches!(self.report().await, Ok((Report::Accepted, _)))
    }

    /// Returns the wait status of the process and what it used.
    pub(super) async fn follow(
        &mut self,
        mut control: Option<mpsc::Receiver<Control>>,
        cancel: &CancellationToken,
    ) -> Result<(i32, Usage), ExecError> {
        loop {
            tokio::select! {
                report = self.report() => {
                    if let Some(end) = self.take(report?)? {
                        return Ok(end);
                    }
                }
                () = cancel.cancelled() => return self.kill().await,
                order = next(&mut control) => match order {
                    Some(order) => self.order(order),
                    None => control = None,
                },
            }
        }
    }

    async fn report(&self) -> Result<(Report, Vec<OwnedFd>), ExecError> {
        let message = self.socket.async_io(Interest::READABLE, |socket| Ok(fds::receive(socket.as_fd())?)).await;
        let lost = |text: &str| ExecError::HelperLost(text.to_owned());
        match message {
            Ok(Message { data, fds }) if !data.is_empty() => {
                let report = serde_json::from_slice(&data).map_err(|_| lost("its report is not understood"))?;
                Ok((report, fds))
            }
            _ => {
                // Without its helper the process is being killed by the kernel; this is for one that could escape that.
                if let Some(pidfd) = &self.pidfd {
                    process::signal(pidfd.as_fd(), libc::SIGKILL);
                }
                Err(lost("its socket closed before the process ended"))
            }
        }
    }

    /// Takes note of a report; returns the end when it is that.
    fn take(&mut self, (report, fds): (Report, Vec<OwnedFd>)) -> Result<Option<(i32, Usage)>, ExecError> {
        let descriptor = fds.into_iter().next();
        match report {
            Report::Started => {
                self.pidfd = descriptor;
                if let (Some(started), Some(pidfd)) = (self.started.take(), &self.pidfd) {
                    started(pidfd);
                }
            }
            Report::Terminal => {
                self.master = descriptor.as_ref().and_then(|master| master.try_clone().ok());
                if let (Some(terminal), Some(master)) = (self.terminal.take(), descriptor) {
                    let _ = terminal.send(master);
                }
            }
            Report::Accepted => {}
            Report::Exited { status, usage } => return Ok(Some((status, usage))),
            Report::Failed(failure) => return Err(failure.into()),
        }
        Ok(None)
    }

    fn order(&self, order: Control) {
        match order {
            Control::Signal(number) => self.tell(&Order::Signal(number)),
            Control::Felt(number) => self.tell(&Order::Felt(number)),
            Control::Resize(size) => {
                if let Some(master) = &self.master {
                    let size =
                        rustix::termios::Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
                    let _ = rustix::termios::tcsetwinsize(master, size);
                }
            }
        }
    }

    fn tell(&self, order: &Order) {
        if let Ok(json) = serde_json::to_vec(order) {
            let _ = fds::send(self.socket.get_ref(), &json, &[]);
        }
    }

    /// Kills the sandbox and waits until it is gone.
    async fn kill(&mut self) -> Result<(i32, Usage), ExecError> {
        self.tell(&Order::Kill);
        if let Some(pidfd) = &self.pidfd {
            process::signal(pidfd.as_fd(), libc::SIGKILL);
        }
        let gone = async {
            loop {
                match self.report().await {
                    Ok((Report::Started, fds)) => {
                        fds.iter().for_each(|pidfd| process::signal(pidfd.as_fd(), libc::SIGKILL));
                    }
                    Ok((Report::Accepted | Report::Terminal, _)) => {}
                    Ok((Report::Exited { .. } | Report::Failed(_), _)) | Err(_) => return,
                }
            }
        };
        if tokio::time::timeout(DEATH, gone).await.is_err() {
            tracing::warn!("a canceled sandbox is still there after {DEATH:?}");
        }
        Err(ExecError::Canceled)
    }
}

async fn next(control: &mut Option<mpsc::Receiver<Control>>) -> Option<Control> {
    match control {
        Some(control) => control.recv().await,
        None => std::future::pending().await,
    }
}
