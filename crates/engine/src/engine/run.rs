//! Runs a process in an image: the image's layers with a scratch layer on top, which is dropped when the process ends.

use std::path::PathBuf;
use std::sync::Arc;

use kiln_executor::{
    ExecError, Exit, MountSource, NetworkMode, ProcessIo, ProcessSpec, SandboxMount, StartFailure, TtySize,
};
use kiln_llb::op::{ContentCache, ExecMeta, Mount, MountKind};
use kiln_oci::{Platform, Reference};
use kiln_solver::{JobSpec, OpContext, VertexDigest};
use kiln_stdx::{Digest, ErrorClass, rand_id};
use kiln_store::ImmutableRef;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{Engine, OpenBuild};
use crate::bridge::Bridge;
use crate::build::Progress;
use crate::error::EngineError;
use crate::ops::exec::mounts::{Needs, Prepared};
use crate::ops::exec::run::environment;
use crate::ops::source::image::layers;
use crate::publish::{Port, Published, Reach};
use crate::request::SolveRequest;
use crate::source::images::StoredImage;
use crate::source::lazy;
use crate::source::lookup::{ImageQuery, image_config};
use crate::source::resolve::ResolvedImage;

/// How long a host name made of the run's id is.
const HOSTNAME: usize = 12;

/// A process to run in an image.
#[derive(Debug, Clone, Default)]
pub struct RunRequest {
    /// The client's name for the run; events of the pull are asked for by it.
    pub reference: String,
    /// The session whose logins and layouts may be used.
    pub session: String,
    /// A reference; for a layout `name@digest`.
    pub image: String,
    /// Content store of the session when the image is in a client's OCI layout.
    pub layout: Option<String>,
    /// Ask the registry even where the image store has the name.
    pub pull: bool,
    /// Never ask a registry.
    pub stored_only: bool,
    /// In place of the image's command.
    pub args: Vec<String>,
    /// In place of the image's entrypoint, and of its command too.
    pub entrypoint: Option<Vec<String>>,
    /// `NAME=value`, over those of the image.
    pub env: Vec<String>,
    /// The image's, when empty.
    pub cwd: String,
    /// The image's, when empty.
    pub user: String,
    /// Made from the run's id, when empty.
    pub hostname: String,
    pub network: NetworkMode,
    /// What of the host is shown where.
    pub volumes: Vec<Volume>,
    pub ports: Vec<Port>,
    pub tty: Option<TtySize>,
    /// The process cannot write to its root.
    pub readonly: bool,
}

/// A file or directory of the host in the process's root.
#[derive(Debug, Clone)]
pub struct Volume {
    pub source: PathBuf,
    /// An absolute path.
    pub dest: String,
    pub readonly: bool,
}

impl Engine {
    /// Runs a process in an image to its end. `started` is told the ports once it runs. What it writes to its root is
    /// dropped; when `cancel` fires, or the client's session ends, it is killed.
    ///
    /// # Errors
    /// The image cannot be had, the process cannot be started, or it was called off.
    pub async fn run_image(
        &self,
        request: RunRequest,
        io: ProcessIo,
        started: oneshot::Sender<Vec<Port>>,
        cancel: &CancellationToken,
    ) -> Result<Exit, EngineError> {
        let build = SolveRequest {
            reference: request.reference.clone(),
            session: request.session.clone(),
            internal: true,
            ..SolveRequest::default()
        };
        let mut open = OpenBuild::new(self, &build)?;
        let stop = cancel.child_token();
        let ended = async {
            tokio::select! {
                () = self.session_lost(&request.session) => {}
                () = open.cancel.cancelled() => {}
            }
            // The run itself says when everything of it is gone.
            stop.cancel();
            std::future::pending::<()>().await;
        };
        let outcome = tokio::select! {
            outcome = self.run_in(&open, &request, io, started, &stop) => outcome,
            () = ended => Err(EngineError::canceled()),
        };
        open.succeeded = outcome.is_ok();
        outcome.map_err(|error| self.explained(error))
    }

    async fn run_in(
        &self,
        open: &OpenBuild,
        request: &RunRequest,
        io: ProcessIo,
        started: oneshot::Sender<Vec<Port>>,
        stop: &CancellationToken,
    ) -> Result<Exit, EngineError> {
        let spec =
            JobSpec { context: open.build.clone(), events: open.build.clone(), imports: Vec::new(), apart: false };
        let bridge = Bridge::new(
            self.0.parts.clone(),
            open.build.clone(),
            self.0.solver.clone(),
            self.0.solver.job(spec).await?,
        );
        let work = async {
            loop {
                let job = bridge.job().id();
                match prepare(&bridge, request).await {
                    Err(error) if bridge.recovers(&error, job).await? => {}
                    prepared => break prepared,
                }
            }
        };
        // The layers are held as long as they are mounted.
        let (image, _layers, mut prepared) = tokio::select! {
            work = work => work?,
            () = stop.cancelled() => return Err(EngineError::canceled()),
        };
        let root = prepared.root.take().ok_or_else(|| EngineError::new(ErrorClass::Bug, "a run without a root"))?;
        let mut spec = describe(request, &image, root)?;
        spec.root_readonly = prepared.root_readonly;
        let steps = &self.0.parts.steps;
        spec.resolv_conf.clone_from(&steps.resolv_conf);
        spec.cgroup_parent.clone_from(&steps.cgroup_parent);
        let published = Published::listen(&request.ports, request.network).await?;
        let ran = self.execute(spec, io, published, started, stop).await;
        // Dropping it removes what the process wrote, which may be much.
        let _ = tokio::task::spawn_blocking(move || drop(prepared)).await;
        ran
    }

    /// Runs the process and passes connections on to it.
    async fn execute(
        &self,
        spec: ProcessSpec,
        mut io: ProcessIo,
        published: Published,
        started: oneshot::Sender<Vec<Port>>,
        stop: &CancellationToken,
    ) -> Result<Exit, EngineError> {
        let executor = self.0.parts.executor.clone();
        let (running, runs) = oneshot::channel();
        io.started = Some(running);
        let command = spec.args.first().cloned().unwrap_or_default();
        let reach = match spec.network {
            NetworkMode::None => Reach::Inside(executor.clone(), spec.id.clone()),
            NetworkMode::Auto | NetworkMode::Host => Reach::Host,
        };
        let over = CancellationToken::new();
        let serve = async {
            if runs.await.is_ok() {
                // Whoever asked may be gone.
                let _ = started.send(published.ports());
                published.serve(reach, &over).await;
            }
        };
        let process = async {
            let exit = executor.run(spec, io, stop.clone()).await;
            over.cancel();
            exit
        };
        let (exit, ()) = tokio::join!(process, serve);
        exit.map_err(|error| not_run(error, &command))
    }
}

/// Makes the image's files available and its root with a scratch layer.
async fn prepare(
    bridge: &Bridge,
    request: &RunRequest,
) -> Result<(ResolvedImage, ImmutableRef, Prepared), EngineError> {
    let parts = bridge.parts();
    let layout = request.layout.clone().map(|store| (request.session.clone(), store));
    if request.stored_only
        && request.layout.is_none()
        && let Ok(reference) = Reference::parse(&request.image)
        && StoredImage::find(parts, &reference).await?.is_none()
    {
        return Err(EngineError::user(format!("{reference}: not found in the image store"))
            .with_hint("build it, or leave --pull=never out"));
    }
    let query = ImageQuery { name: &request.image, platform: None, layout, pull: request.pull, log_name: "" };
    let image = image_config(bridge, query).await?;
    let name = match request.layout {
        Some(_) => format!("oci-layout://{}", request.image),
        None => Reference::parse(&request.image).map_or_else(|_| request.image.clone(), |r| r.to_string()),
    };
    let root = parts.store.ref_of_layers(layers(parts, &name, &image, usize::MAX)?);
    if !root.is_unpacked() {
        let vertex = bridge.build().start(&format!("pull {name}"));
        let progress = Progress::of_build(bridge.build(), vertex.digest());
        let unpacked = lazy::unpack(parts, &progress, [&root]).await;
        vertex.end(unpacked.as_ref().err().map(ToString::to_string));
        unpacked?;
    }
    let prepared = mounts(bridge, request, root.clone()).await?;
    Ok((image, root, prepared))
}

async fn mounts(bridge: &Bridge, request: &RunRequest, root: ImmutableRef) -> Result<Prepared, EngineError> {
    let mount = Mount {
        dest: "/".to_owned(),
        input: Some(0),
        selector: String::new(),
        output: None,
        readonly: request.readonly,
        kind: MountKind::Bind,
        content_cache: ContentCache::default(),
        result_id: String::new(),
    };
    let vertex = VertexDigest(Digest::of(format!("run {}", request.reference)));
    let cx = OpContext::detached(vertex, [(bridge.job().id(), Arc::clone(bridge.build()) as _)]);
    let needs = Needs {
        parts: bridge.parts(),
        cx: &cx,
        mounts: &[mount],
        cwd: "/",
        inputs: &[root],
        platform: &Platform::host(),
        ignore_cache: false,
    };
    Prepared::new(&needs).await
}

/// Describes the process: what the image says, and over it what was asked for.
fn describe(
    request: &RunRequest,
    image: &ResolvedImage,
    root: kiln_snapshot::Mount,
) -> Result<ProcessSpec, EngineError> {
    let config = &image.config.config;
    let id = rand_id();
    let mut spec = ProcessSpec::new(id.clone(), root, command(request, image)?);
    let mut env = config.env.clone();
    if request.tty.is_some() && !env.iter().chain(&request.env).any(|v| v.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    env.extend(request.env.iter().cloned());
    spec.env = environment(&ExecMeta { env, ..ExecMeta::default() });
    let or = |asked: &String, usual: &String| if asked.is_empty() { usual.clone() } else { asked.clone() };
    spec.cwd = match or(&request.cwd, &config.working_dir) {
        none if none.is_empty() => "/".to_owned(),
        // An image may say it without the slash.
        path if !path.starts_with('/') => format!("/{path}"),
        path => path,
    };
    spec.user = or(&request.user, &config.user);
    let short = id.get(..HOSTNAME).unwrap_or(&id).to_owned();
    spec.hostname = Some(or(&request.hostname, &short));
    spec.network = request.network;
    spec.tty = request.tty;
    for volume in &request.volumes {
        if std::fs::metadata(&volume.source).is_err() {
            let text = format!("volume {}: there is no such file or directory", volume.source.display());
            return Err(EngineError::user(text).with_hint(format!("make it with: mkdir {}", volume.source.display())));
        }
        let source = kiln_snapshot::Mount::Bind { source: volume.source.clone(), readonly: volume.readonly };
        spec.mounts.push(SandboxMount {
            dest: volume.dest.clone(),
            source: MountSource::Mount(source),
            subpath: String::new(),
            readonly: volume.readonly,
        });
    }
    Ok(spec)
}

/// Returns what is executed: entrypoint and command, of which the request may replace the second or both.
fn command(request: &RunRequest, image: &ResolvedImage) -> Result<Vec<String>, EngineError> {
    let config = &image.config.config;
    let own = |words: &Option<Vec<String>>| words.clone().unwrap_or_default();
    let mut words = match &request.entrypoint {
        Some(entrypoint) => entrypoint.clone(),
        None => own(&config.entrypoint),
    };
    match (&request.entrypoint, request.args.as_slice()) {
        // The image's command is made for its own entrypoint.
        (Some(_), args) => words.extend(args.iter().cloned()),
        (None, []) => words.extend(own(&config.cmd)),
        (None, args) => words.extend(args.iter().cloned()),
    }
    if words.is_empty() {
        return Err(EngineError::user(format!("{}: the image names no command", request.image))
            .with_hint("give one: kiln run IMAGE COMMAND"));
    }
    Ok(words)
}

fn not_run(error: ExecError, command: &str) -> EngineError {
    let ExecError::NotStarted { reason, .. } = &error else {
        return match error {
            ExecError::Canceled => EngineError::canceled(),
            error => EngineError::new(error.class(), crate::error::chain(&error)),
        };
    };
    let hint = match reason {
        StartFailure::NotFound => {
            format!("`{command}`, or the interpreter it needs, is not in the image or not in PATH")
        }
        StartFailure::NotExecutable => format!("`{command}` is not executable in the image"),
        StartFailure::Format => format!("`{command}` is no program of this platform, nor a script with a #! line"),
        StartFailure::WorkingDirectory => "choose another directory with -w".to_owned(),
    };
    let mut failed = EngineError::new(error.class(), crate::error::chain(&error)).with_hint(hint);
    failed.exit_code = error.exit_code();
    failed
}

#[cfg(test)]
mod tests {
    use kiln_oci::{Descriptor, ImageConfig, Manifest, media};

    use super::*;

    fn image(entrypoint: Option<&[&str]>, cmd: Option<&[&str]>) -> ResolvedImage {
        let words = |w: Option<&[&str]>| w.map(|w| w.iter().map(|s| (*s).to_owned()).collect());
        let mut config = ImageConfig::default();
        config.config.entrypoint = words(entrypoint);
        config.config.cmd = words(cmd);
        config.config.env = vec!["A=image".to_owned(), "B=image".to_owned()];
        config.config.working_dir = "srv".to_owned();
        config.config.user = "app".to_owned();
        ResolvedImage {
            root: Digest::of("root"),
            manifest_digest: Digest::of("manifest"),
            manifest: Manifest::new(media::OCI_MANIFEST, Descriptor::of(media::OCI_CONFIG, b"{}"), Vec::new()),
            config_json: Vec::new(),
            config,
            locator: String::new(),
        }
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn commands_are_put_together_as_docker_does() {
        let both = image(Some(&["serve"]), Some(&["--all"]));
        let run = |image: &ResolvedImage, entrypoint: Option<&str>, args: &str| {
            let request = RunRequest { entrypoint: entrypoint.map(words), args: words(args), ..RunRequest::default() };
            command(&request, image).map(|w| w.join(" ")).ok()
        };
        assert_eq!(run(&both, None, "").as_deref(), Some("serve --all"));
        assert_eq!(run(&both, None, "one").as_deref(), Some("serve one"));
        assert_eq!(run(&both, Some("sh"), "").as_deref(), Some("sh"));
        assert_eq!(run(&both, Some("sh"), "-c x").as_deref(), Some("sh -c x"));
        assert_eq!(run(&both, Some(""), "one").as_deref(), Some("one"));
        assert_eq!(run(&image(None, None), None, ""), None);
    }

    #[test]
    fn what_is_asked_for_goes_over_what_the_image_says() {
        let root = || kiln_snapshot::Mount::Tmpfs { size: None, mode: 0o755 };
        let image = image(None, Some(&["x"]));
        let plain = describe(&RunRequest::default(), &image, root()).expect("spec");
        assert_eq!((plain.cwd.as_str(), plain.user.as_str()), ("/srv", "app"));
        let request = RunRequest {
            env: words("B=mine TERM=dumb"),
            cwd: "/w".to_owned(),
            user: "0".to_owned(),
            tty: Some(TtySize { rows: 1, cols: 1 }),
            ..RunRequest::default()
        };
        let spec = describe(&request, &image, root()).expect("spec");
        assert_eq!((spec.cwd.as_str(), spec.user.as_str()), ("/w", "0"));
        let last = |name: &str| spec.env.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!((last("A"), last("B"), last("TERM")), (Some("image"), Some("mine"), Some("dumb")));
    }
}
