//! Runs processes by an OCI runtime (`runc`, `crun`, gVisor's `runsc`).

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use kiln_stdx::Defer;
use tokio_util::sync::CancellationToken;

use crate::sandbox::{Runner, SandboxConfig};
use crate::wire::WireRuntime;
use crate::{ExecError, Executor, Exit, ProcessIo, ProcessSpec};

/// Where a name without a slash is looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How a [`RuncExecutor`] works.
#[derive(Clone)]
pub struct RuncConfig {
    /// The runtime: a path, or a name looked up in `PATH`.
    pub program: PathBuf,
    /// A directory of the executor's own for mount points. Nothing is ever written into it.
    pub state: PathBuf,
    /// Helper, control groups and networks, as for [`crate::SandboxExecutor`].
    pub sandbox: SandboxConfig,
}

/// Runs processes by an OCI runtime, around which kiln makes the mounts.
///
/// A step's terminal is not supported here. Whether a step ran out of memory is inferred: it had a memory limit and was
/// killed without being canceled, since runtimes remove the control group that would say so.
pub struct RuncExecutor {
    runner: Runner,
    program: PathBuf,
    name: String,
    state: PathBuf,
}

impl RuncExecutor {
    /// Looks the runtime up and starts the helper.
    ///
    /// # Errors
    /// [`ExecError::Runtime`] when there is no such program, [`ExecError::Setup`] when the helper cannot be started or
    /// the directory cannot be made.
    pub fn new(config: RuncConfig) -> Result<Self, ExecError> {
        let name = config.program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let program = find(&config.program).ok_or_else(|| ExecError::Runtime {
            runtime: name.clone(),
            message: format!("{} is not installed", config.program.display()),
        })?;
        std::fs::create_dir_all(&config.state)
            .map_err(|error| ExecError::setup(format!("make {}", config.state.display()), error))?;
        Ok(Self { runner: Runner::new(&config.sandbox)?, program, name, state: config.state })
    }
}

/// Returns where a program is; a name without a slash is looked for where such programs usually are.
pub(crate) fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    let own = std::env::var("PATH").unwrap_or_default();
    own.split(':').chain(PATH.split(':')).map(|dir| Path::new(dir).join(program)).find(|path| path.is_file())
}

#[async_trait]
impl Executor for RuncExecutor {
    fn name(&self) -> &str {
        &self.name
    }

    async fn run(&self, spec: ProcessSpec, io: ProcessIo, cancel: CancellationToken) -> Result<Exit, ExecError> {
        if spec.tty.is_some() {
            return Err(ExecError::InvalidSpec(format!("{} cannot give a step a terminal", self.name)));
        }
        let cgroup = self.runner.groups().path(&spec.id, spec.cgroup_parent.as_deref());
        let limited = spec.resources.memory.is_some();
        // A mount point for this run; what is mounted there is seen by the runtime alone.
        let bundle = tempdir_in(&self.state)?;
        let call = WireRuntime {
            program: self.program.clone(),
            bundle: bundle.0.clone(),
            id: format!("kiln-{}", spec.id),
            cgroups_path: Some(format!("/{cgroup}")),
            hidden_v2: self.runner.groups().v2_beside_v1(),
            resources: spec.resources.clone(),
        };
        // A runtime that is killed, also by this future being dropped, cannot tidy up.
        let tidy = Defer::new(|| self.runner.groups().remove_leftover(&cgroup));
        let ended = self.runner.run(spec, io, cancel, Some(call)).await;
        drop(tidy);
        let mut exit = ended?;
        if exit.signal.is_none() && exit.code > 128 && exit.code <= 128 + 64 {
            exit.signal = Some(exit.code - 128);
        }
        exit.oom = limited && exit.code == 128 + libc::SIGKILL;
        Ok(exit)
    }
}

/// A directory that is removed when dropped.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn tempdir_in(state: &Path) -> Result<Scratch, ExecError> {
    let path = state.join(kiln_stdx::rand_id());
    std::fs::create_dir(&path).map_err(|error| ExecError::setup(format!("make {}", path.display()), error))?;
    Ok(Scratch(path))
}
