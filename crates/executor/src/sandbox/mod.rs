//! The engine's side of a sandbox.

mod connect;
mod follow;
mod helper;
mod prepare;
mod root;
mod runner;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::{ExecError, Executor, Exit, Networks, ProcessIo, ProcessSpec};

pub(crate) use runner::Runner;

/// How a [`SandboxExecutor`] works.
#[derive(Clone)]
pub struct SandboxConfig {
    /// The program that is started as the helper. Its `main` must call [`crate::sandbox_init_main`] when
    /// [`crate::is_sandbox_init`] says so. The default is this program itself.
    pub helper: PathBuf,
    /// The control group under which the executor keeps its own.
    pub cgroup_parent: String,
    /// Who gives networks.
    pub networks: Networks,
}

impl Default for SandboxConfig {
    fn default() -> Self {
        Self { helper: "/proc/self/exe".into(), cgroup_parent: "kiln".to_owned(), networks: Networks::default() }
    }
}

/// Runs processes in sandboxes of kiln's own making.
///
/// The helper lives in the mount namespace this process has when the executor is made.
pub struct SandboxExecutor {
    runner: Runner,
}

impl SandboxExecutor {
    /// Starts the helper.
    ///
    /// # Errors
    /// [`ExecError::Setup`] when the helper cannot be started.
    pub fn new(config: SandboxConfig) -> Result<Self, ExecError> {
        Ok(Self { runner: Runner::new(&config)? })
    }
}

#[async_trait]
impl Executor for SandboxExecutor {
    fn name(&self) -> &str {
        "sandbox"
    }

    async fn run(&self, spec: ProcessSpec, io: ProcessIo, cancel: CancellationToken) -> Result<Exit, ExecError> {
        self.runner.run(spec, io, cancel, None).await
    }

    async fn exec(
        &self,
        inside: &str,
        spec: ProcessSpec,
        io: ProcessIo,
        cancel: CancellationToken,
    ) -> Result<Exit, ExecError> {
        self.runner.exec(inside, spec, io, cancel).await
    }
    async fn connect(&self, inside: &str, port: u16) -> Result<tokio::net::TcpStream, ExecError> {
        self.runner.connect(inside, port).await
    }

    fn open(&self, inside: &str, dest: &str) -> Result<OwnedFd, ExecError> {
        self.runner.open(inside, dest)
    }
}
