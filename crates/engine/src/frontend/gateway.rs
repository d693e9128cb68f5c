//! Frontends in images: the image's command runs in a sandbox and speaks LLBBridge over its standard streams.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use kiln_executor::{MountSource, NetworkMode, Output, ProcessIo, ProcessSpec, SandboxMount, Stdin};
use kiln_llb::Definition;
use kiln_llb::builder::{Builder, ImageOptions, Meta};
use kiln_llb::op::{ContentCache, Mount, MountKind, SourceOp};
use kiln_oci::{ContainerConfig, Platform, Reference};
use kiln_solver::{OpContext, VertexDigest};
use kiln_stdx::{Secret, rand_id};
use parking_lot::Mutex;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::bridge::{Bridge, FrontendResult};
use crate::error::EngineError;
use crate::ops::exec::mounts::{Needs, Prepared};
use crate::ops::exec::run::DEFAULT_PATH;
use crate::request::FrontendRequest;
use crate::source::lookup::{ImageQuery, image_config};

/// Bytes on their way between frontend and engine.
const BUFFER: usize = 256 << 10;
/// Pieces of output that may wait.
const PIECES: usize = 16;
/// How much of what a frontend says is kept for its error.
const TAIL: usize = 4 << 10;
/// How long a frontend that has answered may take to end by itself.
const FAREWELL: Duration = Duration::from_secs(5);
/// Where a frontend finds the definition that it was started from.
const DEFINITION: &str = "/run/config/buildkit/metadata/frontend.bin";

/// Serves LLBBridge to one frontend.
#[async_trait]
pub trait GatewayServer: Send + Sync {
    /// Serves until the stream ends.
    async fn serve(&self, frontend: Arc<Frontend>, stream: DuplexStream);

    /// Returns what the engine says of its workers, as JSON.
    fn workers(&self) -> String;
}

/// One running frontend as its bridge sees it.
pub struct Frontend {
    /// What it may do.
    pub bridge: Bridge,
    /// Graphs that the caller hands in.
    pub inputs: BTreeMap<String, Definition>,
    returned: Mutex<Option<oneshot::Sender<Result<FrontendResult, EngineError>>>>,
}

impl Frontend {
    /// Takes what the frontend ends with.
    ///
    /// # Errors
    /// It has ended before.
    pub fn finish(&self, result: Result<FrontendResult, EngineError>) -> Result<(), EngineError> {
        let returned = self.returned.lock().take();
        let returned = returned.ok_or_else(|| EngineError::user("the frontend has returned already"))?;
        // Nobody waits any more when the build was called off.
        let _ = returned.send(result);
        Ok(())
    }
}

/// Runs the frontend in the image `source`.
///
/// # Errors
/// It is not allowed, cannot be had or started, or ends without a result; otherwise whatever it returns.
pub async fn run(bridge: &Bridge, request: &FrontendRequest, source: &str) -> Result<FrontendResult, EngineError> {
    let name = allowed(bridge, source)?;
    let identifier = format!("docker-image://{name}");
    let wanted = SourceOp { identifier, attrs: BTreeMap::new() };
    let wanted = bridge.policed_source(wanted, Some(Platform::host())).await?;
    let name = wanted.split().map_or(name.clone(), |(_, rest)| rest.to_owned());
    let query = ImageQuery {
        name: &name,
        platform: None,
        layout: None,
        pull: false,
        log_name: &format!("resolve image config for docker-image://{name}"),
    };
    let image = image_config(bridge, query).await?;
    let definition = image_definition(&name, &image.root.to_string())?;
    let reference = bridge.define(definition.clone()).await?;
    let reference = reference.ok_or_else(|| EngineError::user(format!("frontend image {name} is empty")))?;
    let layers = bridge.files(&reference).await?;
    let vertex = reference.edge().vertex;
    let cx = OpContext::detached(vertex, [(bridge.job().id(), Arc::clone(bridge.build()) as _)]);
    let mount = Mount {
        dest: "/".to_owned(),
        input: Some(0),
        selector: String::new(),
        output: None,
        readonly: false,
        kind: MountKind::Bind,
        content_cache: ContentCache::default(),
        result_id: String::new(),
    };
    let needs = Needs {
        parts: bridge.parts(),
        cx: &cx,
        mounts: &[mount],
        cwd: "/",
        inputs: &[layers],
        platform: &Platform::host(),
        ignore_cache: false,
    };
    let mut prepared = Prepared::new(&needs).await?;
    let root = prepared.root.take().ok_or_else(|| EngineError::user("the frontend has no root"))?;
    let mut spec = ProcessSpec::new(rand_id(), root, command(&image.config.config, request));
    describe(&mut spec, &image.config.config);
    spec.env.extend(options(bridge, request));
    spec.mounts.push(SandboxMount {
        dest: DEFINITION.to_owned(),
        source: MountSource::File { content: Secret::new(definition.encode()), mode: 0o444, uid: 0, gid: 0 },
        subpath: String::new(),
        readonly: true,
    });
    let result = converse(bridge, request, spec, vertex, &name).await;
    drop(prepared);
    result
}

/// Returns the whole name of a frontend's image.
fn allowed(bridge: &Bridge, source: &str) -> Result<String, EngineError> {
    let rules = &bridge.parts().frontends;
    if !rules.gateway {
        return Err(EngineError::user("frontend gateway.v0 is disabled"));
    }
    let reference = Reference::parse(source).map_err(|e| EngineError::user(format!("frontend {source}: {e}")))?;
    let repository = reference.to_string();
    let repository = repository.split('@').next().unwrap_or_default();
    let repository = match repository.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => repository,
    };
    let listed = |name: &String| {
        Reference::parse(name).is_ok_and(|r| {
            let text = r.to_string();
            text == repository || text.strip_suffix(":latest") == Some(repository)
        })
    };
    if !rules.allowed_repositories.is_empty() && !rules.allowed_repositories.iter().any(listed) {
        return Err(EngineError::user(format!("{repository} is not an allowed gateway source")));
    }
    Ok(reference.to_string())
}

fn image_definition(name: &str, digest: &str) -> Result<Definition, EngineError> {
    let pinned = if name.contains('@') { name.to_owned() } else { format!("{name}@{digest}") };
    let mut builder = Builder::new(Platform::host());
    let options = ImageOptions { record_type: Some("frontend".to_owned()), ..ImageOptions::default() };
    let meta = Meta::named(format!("[internal] load frontend {name}"));
    let image = builder.image(&pinned, &options, meta)?;
    Ok(builder.definition(image)?)
}

fn command(config: &ContainerConfig, request: &FrontendRequest) -> Vec<String> {
    let mut args = config.entrypoint.clone().unwrap_or_default();
    args.extend(config.cmd.clone().unwrap_or_default());
    // What follows the image's name in `# syntax=` are arguments of the frontend.
    let line = request.attrs.get("cmdline").map_or("", String::as_str);
    args.extend(line.split_whitespace().skip(1).map(str::to_owned));
    if args.is_empty() { vec!["/run".to_owned()] } else { args }
}

fn describe(spec: &mut ProcessSpec, config: &ContainerConfig) {
    let variable = |text: &String| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        (name.to_owned(), value.to_owned())
    };
    spec.env = config.env.iter().map(variable).collect();
    spec.user.clone_from(&config.user);
    if config.working_dir.starts_with('/') {
        spec.cwd.clone_from(&config.working_dir);
    }
    let alone = config.labels.get("moby.buildkit.frontend.network.none");
    spec.network = match alone.is_some_and(|v| v == "true" || v == "1") {
        true => NetworkMode::None,
        false => NetworkMode::Auto,
    };
    if !spec.env.iter().any(|(name, _)| name == "PATH") {
        spec.env.push(("PATH".to_owned(), DEFAULT_PATH.to_owned()));
    }
}

/// The request as variables of the environment.
fn options(bridge: &Bridge, request: &FrontendRequest) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = request
        .attrs
        .iter()
        .enumerate()
        .map(|(number, (key, value))| (format!("BUILDKIT_FRONTEND_OPT_{number}"), format!("{key}={value}")))
        .collect();
    env.push(("BUILDKIT_SESSION_ID".to_owned(), bridge.build().settings.session.clone()));
    env.push(("BUILDKIT_WORKERS".to_owned(), bridge.parts().gateway.workers()));
    env.push(("BUILDKIT_EXPORTEDPRODUCT".to_owned(), "kiln".to_owned()));
    env
}

/// Runs the process and waits for its answer or its end, whatever comes first.
async fn converse(
    bridge: &Bridge,
    request: &FrontendRequest,
    spec: ProcessSpec,
    vertex: VertexDigest,
    name: &str,
) -> Result<FrontendResult, EngineError> {
    let (returned, answer) = oneshot::channel();
    let frontend =
        Frontend { bridge: bridge.clone(), inputs: request.inputs.clone(), returned: Mutex::new(Some(returned)) };
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    let (from_engine, to_engine) = tokio::io::split(theirs);
    let (stdout, output) = mpsc::channel::<Bytes>(PIECES);
    let (stderr, errors) = mpsc::channel::<Bytes>(PIECES);
    let io = ProcessIo {
        stdin: Stdin::Reader(Box::pin(from_engine)),
        stdout: Output::Channel(stdout),
        stderr: Output::Channel(stderr),
        ..ProcessIo::default()
    };
    let cancel = CancellationToken::new();
    // Dropping this future, as a cancelled build does, ends the frontend too.
    let guard = cancel.clone().drop_guard();
    let server = bridge.parts().gateway.clone();
    let serve = async move { server.serve(Arc::new(frontend), ours).await };
    let serving = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(serve));
    let feeding = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(feed(output, to_engine)));
    let log = bridge.build().log.clone();
    let said = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(listen(errors, log, vertex)));
    let mut process = Box::pin(bridge.parts().executor.run(spec, io, cancel));
    let ended = tokio::select! {
        answer = answer => {
            let farewell = tokio::time::timeout(FAREWELL, &mut process);
            let _ = farewell.await;
            drop((guard, serving, feeding));
            return answer.map_err(|_| EngineError::canceled())?;
        }
        ended = &mut process => ended,
    };
    let tail = said.await.unwrap_or_default();
    let tail = String::from_utf8_lossy(&tail).trim().to_owned();
    let why = match ended {
        Ok(exit) => format!("frontend {name} ended without a result: exit code: {}", exit.code),
        Err(error) => format!("frontend {name} could not be run: {}", crate::error::chain(&error)),
    };
    Err(EngineError::user(if tail.is_empty() { why } else { format!("{why}: {tail}") }))
}

async fn feed(mut output: mpsc::Receiver<Bytes>, mut sink: impl tokio::io::AsyncWrite + Unpin) {
    while let Some(piece) = output.recv().await {
        if sink.write_all(&piece).await.is_err() {
            return;
        }
    }
    // The end of the process's output is the end of the connection.
    let _ = sink.shutdown().await;
}

/// Shows what the frontend says and returns the end of it.
async fn listen(mut errors: mpsc::Receiver<Bytes>, log: crate::events::EventLog, vertex: VertexDigest) -> Vec<u8> {
    let mut tail = Vec::new();
    while let Some(piece) = errors.recv().await {
        // A log that cannot be spooled is no reason to fail.
        let _ = log.log(vertex.0, 2, std::time::SystemTime::now(), &piece);
        tail.extend_from_slice(&piece);
        if tail.len() > TAIL {
            tail.drain(..tail.len() - TAIL);
        }
    }
    tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_comes_from_image_and_line() {
        let config = ContainerConfig {
            entrypoint: Some(vec!["/bin/fe".into()]),
            cmd: Some(vec!["serve".into()]),
            ..ContainerConfig::default()
        };
        let with = |line: &str| FrontendRequest {
            attrs: BTreeMap::from([("cmdline".to_owned(), line.to_owned())]),
            ..FrontendRequest::default()
        };
        assert_eq!(command(&config, &with("me/fe:1 --strict")), ["/bin/fe", "serve", "--strict"]);
        assert_eq!(command(&ContainerConfig::default(), &with("me/fe:1")), ["/run"]);
    }

    #[test]
    fn an_image_is_pinned_once() {
        let digest = kiln_stdx::Digest::of("x").to_string();
        let named = |name: &str| {
            let definition = image_definition(name, &digest).unwrap();
            let graph = kiln_llb::Graph::load(&definition, &kiln_llb::LoadOptions::default()).unwrap();
            let kiln_llb::Op::Source(source) = &graph.vertices()[0].op else { panic!("no source") };
            source.identifier.clone()
        };
        assert_eq!(named("docker.io/me/fe:1"), format!("docker-image://docker.io/me/fe:1@{digest}"));
        let pinned = format!("docker.io/me/fe@{digest}");
        assert_eq!(named(&pinned), format!("docker-image://{pinned}"));
    }
}
