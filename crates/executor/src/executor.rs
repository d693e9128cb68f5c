//! The seam between the engine and whatever runs processes.

use std::os::fd::OwnedFd;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::{ExecError, Exit, ProcessIo, ProcessSpec};

/// Runs one process at a time in a sandbox of its own; many may run at once.
#[async_trait]
pub trait Executor: Send + Sync {
    /// Returns a name for messages (`sandbox`, `runc`).
    fn name(&self) -> &str;

    /// Runs `spec` to its end.
    ///
    /// Returns when every process of the sandbox is gone, its output is delivered and its mounts are taken down, so
    /// that the directories of `spec` may be read at once. When `cancel` fires or the future is dropped, everything in
    /// the sandbox is killed; with `cancel` the answer comes once it is gone.
    ///
    /// # Errors
    /// See [`ExecError`]; a process that started and failed is an [`Exit`].
    async fn run(&self, spec: ProcessSpec, io: ProcessIo, cancel: CancellationToken) -> Result<Exit, ExecError>;

    /// Runs a further process in the sandbox of the run `inside`, to its end or that of the sandbox.
    ///
    /// Of `spec` only the command, its environment, user, directory, security mode, limits and terminal count.
    ///
    /// # Errors
    /// There is no such run, or this executor cannot do it; otherwise as [`Executor::run`].
    async fn exec(
        &self,
        inside: &str,
        spec: ProcessSpec,
        io: ProcessIo,
        cancel: CancellationToken,
    ) -> Result<Exit, ExecError> {
        let (_, _, _) = (spec, io, cancel);
        Err(ExecError::InvalidSpec(format!("{} cannot run a second process in sandbox {inside}", self.name())))
    }
    /// Connects to a port of the loopback interface that the sandbox of the run `inside` has, from within its network.
    ///
    /// # Errors
    /// There is no such run, nobody listens there, or this executor cannot do it.
    async fn connect(&self, inside: &str, port: u16) -> Result<tokio::net::TcpStream, ExecError> {
        Err(ExecError::InvalidSpec(format!("{} cannot connect to port {port} of sandbox {inside}", self.name())))
    }

    /// Opens the directory `dest` of the sandbox of the run `inside`, to look things up in (`O_PATH`).
    ///
    /// # Errors
    /// There is no such run or directory, or this executor cannot do it.
    fn open(&self, inside: &str, dest: &str) -> Result<OwnedFd, ExecError> {
        Err(ExecError::InvalidSpec(format!("{} cannot open {dest} of sandbox {inside}", self.name())))
    }
}
