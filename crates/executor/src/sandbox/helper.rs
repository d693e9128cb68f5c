//! The helper process as the engine sees it: a socket that takes steps.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::sync::Mutex;

use crate::sys::fds;
use crate::{ExecError, init};

/// How often a full socket is tried again, and how long.
const RETRY: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a helper that did not take a step is watched for its end.
const DYING: Duration = Duration::from_millis(200);

/// The running helper; it is started again when it is found dead.
pub(super) struct HelperProcess {
    program: PathBuf,
    process: Mutex<Running>,
}

struct Running {
    socket: Option<OwnedFd>,
    child: Child,
}

impl HelperProcess {
    pub(super) fn start(program: PathBuf) -> Result<Self, ExecError> {
        let process = Mutex::new(Running::start(&program)?);
        Ok(Self { program, process })
    }

    /// Hands a step's descriptors to the helper.
    pub(super) async fn send(&self, descriptors: &[BorrowedFd<'_>]) -> Result<(), ExecError> {
        let mut running = self.process.lock().await;
        let mut restarted = false;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let socket = running.socket.as_ref().map(AsFd::as_fd);
            let sent = socket.map_or(Err(rustix::io::Errno::PIPE), |socket| fds::send(socket, b"step", descriptors));
            match sent {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::AGAIN) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(RETRY).await;
                }
                Err(rustix::io::Errno::AGAIN) => {
                    return Err(ExecError::TimedOut { what: "handing a step to the helper", limit: PATIENCE });
                }
                Err(errno) if restarted => return Err(ExecError::setup("send to the helper", errno)),
                Err(_) => {
                    tracing::warn!("the sandbox helper died and is started again");
                    *running = Running::start(&self.program)?;
                    restarted = true;
                }
            }
        }
    }

    /// Waits until a helper that let a step go unanswered is known to be dead, or lives on.
    ///
    /// A dying process closes its descriptors one after the other: its socket may still take packets, which nobody
    /// will read, when those of the last packet are closed already.
    pub(super) async fn settle(&self) {
        let mut running = self.process.lock().await;
        let deadline = tokio::time::Instant::now() + DYING;
        while tokio::time::Instant::now() < deadline {
            if matches!(running.child.try_wait(), Ok(Some(_))) {
                running.socket = None;
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

impl Running {
    fn start(program: &PathBuf) -> Result<Self, ExecError> {
        let fail = |error| ExecError::setup(format!("start the sandbox helper {}", program.display()), error);
        let (ours, theirs) = fds::pair().map_err(fail)?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(|errno| fail(errno.into()))?;
        // Without a pre_exec hook this is posix_spawn: no copy of the engine's memory, no fork of a threaded process.
        let child = Command::new(program)
            .arg0(init::NAME)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(fail)?;
        Ok(Self { socket: Some(ours), child })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The end of the socket ends the helper at once; waiting only keeps it from staying a zombie.
        self.socket = None;
        let _ = self.child.wait();
    }
}
