//! Containers that a frontend asks for while a build runs: mounts of results and caches, and processes in them. The
//! first process makes the sandbox; when it ends, so do the others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kiln_executor::{ExecError, Exit, NetworkMode, ProcessIo, ProcessSpec, SecurityMode, TtySize};
use kiln_llb::op::{ExecMeta, HostIp, Mount, MountKind, NetMode, SecretEnv, SecurityMode as LlbSecurity};
use kiln_snapshot::Entry;
use kiln_solver::{OpContext, VertexDigest};
use kiln_stdx::{Digest, ErrorClass, rand_id};
use kiln_store::ImmutableRef;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use kiln_oci::Platform;

use crate::bridge::Bridge;
use crate::error::EngineError;
use crate::inspect;
use crate::live::LiveMount;
use crate::ops::exec::mounts::{Needs, Prepared};
use crate::ops::exec::run::{environment, extra_hosts};
use crate::parts::Parts;
use crate::session;

/// Size of a terminal until the client tells its own.
const TTY: TtySize = TtySize { rows: 24, cols: 80 };

/// How long a release waits for killed processes to be gone.
const KILL: Duration = Duration::from_secs(10);

/// What a container is to be.
#[derive(Debug, Default)]
pub struct ContainerSpec {
    /// What is mounted where; `result_id` names a result of the build.
    pub mounts: Vec<Mount>,
    pub network: NetMode,
    pub extra_hosts: Vec<HostIp>,
    pub hostname: String,
    /// `PATH` of processes that set none, where it is not the usual one.
    pub path: Option<&'static str>,
}

/// `PATH` of containers for Windows.
pub const WINDOWS_PATH: &str = "c:\\Windows\\System32;c:\\Windows;C:\\Windows\\System32\\WindowsPowerShell\\v1.0";

/// A process to run in a container.
#[derive(Debug)]
pub struct ProcessRequest {
    pub meta: ExecMeta,
    pub tty: bool,
    pub security: LlbSecurity,
    pub secret_env: Vec<SecretEnv>,
}

/// The containers of one build, by the names its client gave them.
#[derive(Default)]
pub struct Containers(Mutex<HashMap<String, Arc<Container>>>);

impl Containers {
    /// Returns a container.
    ///
    /// # Errors
    /// There is none of the name.
    pub fn get(&self, id: &str) -> Result<Arc<Container>, EngineError> {
        let found = self.0.lock().get(id).cloned();
        found.ok_or_else(|| EngineError::user(format!("container {id} has been released or never created")))
    }

    /// Lets go of a container and returns when its processes are gone. No error when there is none.
    ///
    /// # Errors
    /// A process was still running and was killed; clients of BuildKit are told so.
    pub async fn release(&self, id: &str) -> Result<(), EngineError> {
        let gone = self.0.lock().remove(id);
        let Some(container) = gone else { return Ok(()) };
        let mut running = container.running.subscribe();
        let killed = *running.borrow() > 0;
        container.cancel.cancel();
        let _ = tokio::time::timeout(KILL, running.wait_for(|count| *count == 0)).await;
        if killed { Err(EngineError::canceled()) } else { Ok(()) }
    }

    /// Lets go of all.
    pub fn release_all(&self) {
        for (_, container) in self.0.lock().drain() {
            container.cancel.cancel();
        }
    }
}

/// Releases a build's containers when it is dropped.
pub struct ReleaseGuard(pub Bridge);

impl Drop for ReleaseGuard {
    fn drop(&mut self) {
        self.0.containers().release_all();
    }
}

/// One container. Its mounts live as long as it does.
pub struct Container {
    parts: Arc<Parts>,
    cx: OpContext,
    spec: ContainerSpec,
    /// What is below each mount, for reading files of it.
    bases: Vec<Option<ImmutableRef>>,
    prepared: tokio::sync::Mutex<Option<Prepared>>,
    /// Name of the sandbox, which is that of its first process.
    sandbox: String,
    cancel: CancellationToken,
    /// How many processes are running.
    running: watch::Sender<usize>,
}

/// Counts a process while it runs.
struct Running<'a>(&'a watch::Sender<usize>);

impl<'a> Running<'a> {
    fn new(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|running| *running += 1);
        Self(count)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running = running.saturating_sub(1));
    }
}

impl Bridge {
    /// Makes a container under a name of the client's.
    ///
    /// # Errors
    /// The name is taken, a result is not there or cannot be built, the network is not allowed.
    pub async fn new_container(&self, id: &str, mut spec: ContainerSpec) -> Result<(), EngineError> {
        if self.containers().get(id).is_ok() {
            return Err(EngineError::user(format!("container {id} exists")));
        }
        if spec.network == NetMode::Host {
            crate::load::check_entitlement(self.parts(), self.build(), "network.host")?;
        }
        let mut inputs = Vec::new();
        let mut bases = Vec::new();
        for mount in &mut spec.mounts {
            mount.input = None;
            mount.output = None;
            let base = match mount.result_id.as_str() {
                "" => None,
                id => {
                    let layers = self.result(id).await?;
                    mount.input = Some(inputs.len());
                    inputs.push(layers.clone());
                    Some(layers)
                }
            };
            bases.push(base);
        }
        if !spec.mounts.iter().any(Mount::is_root) {
            return Err(EngineError::user("the container has no root mount"));
        }
        let vertex = VertexDigest(Digest::of(format!("container {id}")));
        let cx = OpContext::detached(vertex, [(self.job().id(), Arc::clone(self.build()) as _)]);
        let needs = Needs {
            parts: self.parts(),
            cx: &cx,
            mounts: &spec.mounts,
            cwd: "/",
            inputs: &inputs,
            platform: &Platform::host(),
            ignore_cache: false,
        };
        let prepared = Prepared::new(&needs).await?;
        let container = Container {
            parts: self.parts().clone(),
            spec,
            bases,
            prepared: tokio::sync::Mutex::new(Some(prepared)),
            sandbox: rand_id(),
            cancel: CancellationToken::new(),
            running: watch::Sender::new(0),
            cx,
        };
        self.containers().0.lock().insert(id.to_owned(), Arc::new(container));
        Ok(())
    }
}

impl Container {
    /// Fires when the container is released.
    pub fn released(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Tells whether a process has been started in it.
    pub async fn has_begun(&self) -> bool {
        self.prepared.lock().await.as_ref().is_none_or(|prepared| prepared.root.is_none())
    }

    /// Checks that a process may do what it asks for.
    ///
    /// # Errors
    /// It may not.
    pub fn check(&self, bridge: &Bridge, request: &ProcessRequest) -> Result<(), EngineError> {
        match request.security {
            LlbSecurity::Insecure => crate::load::check_entitlement(&self.parts, bridge.build(), "security.insecure"),
            _ => Ok(()),
        }
    }

    /// Runs a process to its end; `cancel` kills it.
    ///
    /// # Errors
    /// The process cannot be started, or the container is released meanwhile.
    pub async fn run(
        &self,
        bridge: &Bridge,
        request: ProcessRequest,
        io: ProcessIo,
        cancel: CancellationToken,
    ) -> Result<Exit, EngineError> {
        self.check(bridge, &request)?;
        let _running = Running::new(&self.running);
        let first = self.prepared.lock().await.as_mut().and_then(|prepared| {
            let root = prepared.root.take()?;
            Some((root, prepared.root_readonly, std::mem::take(&mut prepared.mounts), prepared.shm_size))
        });
        let root = match &first {
            Some((root, ..)) => root.clone(),
            // Nothing of it counts in a sandbox that is there already.
            None => kiln_snapshot::Mount::Tmpfs { size: None, mode: 0o755 },
        };
        let mut spec = self.process(&request, root).await?;
        let executor = &self.parts.executor;
        let ended = match first {
            Some((_, readonly, mounts, shm_size)) => {
                spec.id.clone_from(&self.sandbox);
                spec.root_readonly = readonly;
                spec.mounts = mounts;
                spec.shm_size = shm_size;
                executor.run(spec, io, cancel).await
            }
            None => executor.exec(&self.sandbox, spec, io, cancel).await,
        };
        ended.map_err(|error| match error {
            ExecError::Canceled => EngineError::canceled(),
            error => {
                let code = error.exit_code();
                let mut failed = EngineError::new(error.class(), crate::error::chain(&error));
                failed.exit_code = code;
                failed
            }
        })
    }

    async fn process(&self, request: &ProcessRequest, root: kiln_snapshot::Mount) -> Result<ProcessSpec, EngineError> {
        let meta = &request.meta;
        let mut spec = ProcessSpec::new(rand_id(), root, meta.args.clone());
        spec.env = environment(meta);
        let own = meta.env.iter().any(|variable| variable.starts_with("PATH="));
        if let Some(path) = self.spec.path.filter(|_| !own) {
            spec.env.retain(|(name, _)| name != "PATH");
            spec.env.push(("PATH".to_owned(), path.to_owned()));
        }
        for wanted in &request.secret_env {
            match session::secret(&self.parts, &self.cx, &wanted.id).await? {
                Some(value) => {
                    let text = String::from_utf8_lossy(value.expose()).into_owned();
                    spec.env.push((wanted.name.clone(), text));
                }
                None if wanted.optional => {}
                None => return Err(EngineError::user(format!("secret {}: not found", wanted.id))),
            }
        }
        if !meta.cwd.is_empty() {
            spec.cwd.clone_from(&meta.cwd);
        }
        spec.user.clone_from(&meta.user);
        spec.hostname = (!self.spec.hostname.is_empty()).then(|| self.spec.hostname.clone());
        spec.extra_hosts = extra_hosts(&self.spec.extra_hosts)?;
        spec.network = match self.spec.network {
            NetMode::Host => NetworkMode::Host,
            NetMode::None => NetworkMode::None,
            _ => NetworkMode::Auto,
        };
        spec.security = match request.security {
            LlbSecurity::Insecure => SecurityMode::Insecure,
            _ => SecurityMode::Sandbox,
        };
        spec.resolv_conf.clone_from(&self.parts.steps.resolv_conf);
        spec.cgroup_parent.clone_from(&self.parts.steps.cgroup_parent);
        spec.tty = request.tty.then_some(TTY);
        Ok(spec)
    }

    /// Returns the files of a mount: its layers when nothing can have written to it, else what processes see now.
    ///
    /// # Errors
    /// There is no such mount, it holds a secret or a socket, or no process is running that could tell.
    pub async fn readable(&self, mount: usize) -> Result<Readable, EngineError> {
        let wanted = self.spec.mounts.get(mount);
        let wanted = wanted.ok_or_else(|| EngineError::user(format!("the container has no mount {mount}")))?;
        let bind = wanted.kind == MountKind::Bind;
        if bind && (wanted.readonly || !self.has_begun().await) {
            let base = self.bases.get(mount).cloned().flatten();
            return Ok(Readable::Layers(base.unwrap_or_else(|| self.parts.store.scratch())));
        }
        if matches!(wanted.kind, MountKind::Secret(_) | MountKind::Ssh(_)) {
            return Err(EngineError::user(format!("mount {} has no files to be read", wanted.dest)));
        }
        let dir = self.parts.executor.open(&self.sandbox, &wanted.dest).map_err(|error| {
            let text = format!("files of mount {} cannot be read: {}", wanted.dest, crate::error::chain(&error));
            EngineError::new(ErrorClass::UserInput, text).with_hint("keep a process running in the container meanwhile")
        })?;
        Ok(Readable::Live(LiveMount::new(dir)))
    }

    /// Reads a file of a mount.
    ///
    /// # Errors
    /// As [`Container::readable`]; there is no such file.
    pub async fn read_file(
        &self,
        mount: usize,
        path: &str,
        range: Option<inspect::Range>,
    ) -> Result<Vec<u8>, EngineError> {
        let (files, path) = (self.readable(mount).await?, path.to_owned());
        self.parts.blocking(move || files.read_file(&path, range)).await
    }

    /// Returns what a directory of a mount holds.
    ///
    /// # Errors
    /// As [`Container::readable`]; there is no such directory.
    pub async fn read_dir(&self, mount: usize, path: &str) -> Result<Vec<Entry>, EngineError> {
        let (files, path) = (self.readable(mount).await?, path.to_owned());
        self.parts.blocking(move || files.read_dir(&path)).await
    }

    /// Returns what is at a path of a mount.
    ///
    /// # Errors
    /// As [`Container::readable`]; there is no such file.
    pub async fn stat(&self, mount: usize, path: &str) -> Result<Entry, EngineError> {
        let (files, path) = (self.readable(mount).await?, path.to_owned());
        self.parts.blocking(move || files.stat(&path)).await
    }
}

/// Files of a mount.
pub enum Readable {
    /// As they are in a result.
    Layers(ImmutableRef),
    /// As running processes see them.
    Live(LiveMount),
}

impl Readable {
    fn read_file(&self, path: &str, range: Option<inspect::Range>) -> Result<Vec<u8>, EngineError> {
        match self {
            Self::Layers(layers) => inspect::read_now(layers, path, range),
            Self::Live(mount) => mount.read_file(path, range),
        }
    }

    fn read_dir(&self, path: &str) -> Result<Vec<Entry>, EngineError> {
        match self {
            Self::Layers(layers) => inspect::read_dir(layers, path),
            Self::Live(mount) => mount.read_dir(path),
        }
    }

    fn stat(&self, path: &str) -> Result<Entry, EngineError> {
        match self {
            Self::Layers(layers) => inspect::stat(layers, path),
            Self::Live(mount) => mount.stat(path),
        }
    }
}
