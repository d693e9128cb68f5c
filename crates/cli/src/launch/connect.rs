//! Finds the engine to talk to, and starts it when none runs.
//!
//! The handshake is `Control.Info`. A kiln engine calls its package `kiln` and gives its build identity as the revision;
//! header [`BUSY`] says how many builds run. An idle engine of another build is asked to go, and one of this build takes its
//! place; one that is at work stays, and the user is told what to do.

use std::io;
use std::time::Duration;

use kiln_session::connect::{Address, connect_with, over};
use kiln_session::proto::control::InfoRequest;
use kiln_session::proto::control::control_client::ControlClient;
use kiln_session::proto::gateway::llb_bridge_client::LlbBridgeClient;
use kiln_session::proto::kiln_v1::kiln_client::KilnClient;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::transport::Channel;

use super::root::Root;
use super::socket::ShortPath;
use super::{build_id, process, start};
use crate::args::{Global, TlsFlags};
use crate::env::Env;
use crate::error::{CliError, io_text};

/// Header of the answer to `Control.Info`: how many builds the engine runs.
pub const BUSY: &str = "kiln-running-builds";
/// Package name by which a kiln engine is known.
pub const PACKAGE: &str = "kiln";

/// How long an engine may take to answer the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long an idle engine of another build may take to end.
const REPLACE: Duration = Duration::from_secs(10);
/// How often it is looked whether another starter's engine listens.
const GLANCE: Duration = Duration::from_millis(50);
/// How often an engine that ended between two steps is looked for anew.
const ATTEMPTS: usize = 3;

/// A connected engine.
#[derive(Clone, Debug)]
pub struct Engine {
    /// The connection. It ends with the engine and is never made again.
    pub channel: Channel,
    /// Process of the engine, when it is local.
    pub pid: Option<i32>,
    /// User of the engine, when it is local.
    pub uid: Option<u32>,
    /// What the engine is.
    pub info: Info,
    /// Where it is, for messages.
    pub place: String,
    /// The state root, when the engine was found by it.
    pub root: Option<Root>,
}

/// What an engine says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// Product.
    pub package: String,
    /// Version.
    pub version: String,
    /// Identity of the build, or revision.
    pub revision: String,
    /// Builds that run; none when the engine does not say.
    pub busy: Option<u64>,
}

impl Engine {
    /// Returns a client of the control service.
    pub fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone())
            .max_decoding_message_size(kiln_stdx::limits::GRPC_MESSAGE)
            .max_encoding_message_size(kiln_stdx::limits::GRPC_MESSAGE)
    }

    /// Returns a client of the bridge, by which a build is driven from here.
    pub fn bridge(&self) -> LlbBridgeClient<Channel> {
        LlbBridgeClient::new(self.channel.clone())
            .max_decoding_message_size(kiln_stdx::limits::GRPC_MESSAGE)
            .max_encoding_message_size(kiln_stdx::limits::GRPC_MESSAGE)
    }

    /// Returns a client of what only kiln's engine offers.
    pub fn own(&self) -> KilnClient<Channel> {
        KilnClient::new(self.channel.clone())
            .max_decoding_message_size(kiln_stdx::limits::GRPC_MESSAGE)
            .max_encoding_message_size(kiln_stdx::limits::GRPC_MESSAGE)
    }

    /// Returns whether this is an engine of kiln.
    pub fn is_kiln(&self) -> bool {
        self.info.package == PACKAGE
    }

    /// Checks that this is an engine of kiln, which `what` needs.
    pub fn must_be_kiln(&self, what: &str) -> Result<(), CliError> {
        match self.is_kiln() {
            true => Ok(()),
            false => Err(CliError::user(format!("{what} needs an engine of kiln, and {} is none", self.place))),
        }
    }
}

/// Why there is no engine.
enum Missing {
    /// Nobody listens, or the engine went away: one may be started.
    Gone(String),
    /// Something else is wrong.
    Failed(CliError),
}

/// Connects to the engine of the root, started when necessary, or to the address that was given.
pub async fn connect(global: &Global, env: &Env) -> Result<Engine, CliError> {
    if let Some(address) = given(global, env) {
        return remote(address, &global.tls).await;
    }
    let root = Root::choose(global.root.as_deref(), env)?;
    let mut why = String::new();
    for _ in 0..ATTEMPTS {
        match local(&root).await {
            Ok(engine) if engine.info.revision == build_id::current() || !engine.is_kiln() => return Ok(engine),
            Ok(engine) => replace(&engine).await?,
            Err(Missing::Failed(error)) => return Err(error),
            Err(Missing::Gone(text)) => why = text,
        }
        launch(&root, env, global.debug).await?;
    }
    Err(CliError::environment(format!("the engine goes away each time it is started: {why}"))
        .hint(format!("see its messages in {}", root.log().display())))
}

/// Connects to an engine that runs already; none when there is none.
pub async fn find(global: &Global, env: &Env) -> Result<(Root, Option<Engine>), CliError> {
    let root = Root::choose(global.root.as_deref(), env)?;
    if let Some(address) = given(global, env) {
        return Ok((root, Some(remote(address, &global.tls).await?)));
    }
    match local(&root).await {
        Ok(engine) => Ok((root, Some(engine))),
        Err(Missing::Gone(_)) => Ok((root, None)),
        Err(Missing::Failed(error)) => Err(error),
    }
}

/// Returns the process of whoever listens on the root's socket, whether it answers or not.
pub async fn listener(root: &Root) -> Option<i32> {
    let short = ShortPath::of(&root.socket()).ok()?;
    let stream = UnixStream::connect(short.path()).await.ok()?;
    stream.peer_cred().ok()?.pid()
}

/// Returns the address of an engine that is not to be started.
fn given<'a>(global: &'a Global, env: &'a Env) -> Option<&'a str> {
    let flag = global.addr.first().map(String::as_str);
    flag.or_else(|| env.var("BUILDKIT_HOST")).filter(|a| !a.is_empty())
}

/// Connects to the engine at an address.
pub async fn remote(address: &str, tls: &TlsFlags) -> Result<Engine, CliError> {
    let parsed = Address::parse(address).map_err(|e| CliError::user(format!("--addr: {e}")))?;
    let tls = tls.load()?;
    let channel = connect_with(&parsed, tls.as_ref()).await.map_err(|e| {
        CliError::environment(format!("no engine answers: {e}"))
            .hint("leave --addr and BUILDKIT_HOST out to use kiln's own")
    })?;
    let place = address.to_owned();
    let engine = Engine { channel, pid: None, uid: None, info: Info::default(), place, root: None };
    match handshake(engine).await {
        Ok(engine) => Ok(engine),
        Err(Missing::Gone(why)) => Err(CliError::environment(format!("no engine answers at {address}: {why}"))),
        Err(Missing::Failed(error)) => Err(error),
    }
}

/// Connects to the engine of a root.
async fn local(root: &Root) -> Result<Engine, Missing> {
    let socket = root.socket();
    let failed = |e: &io::Error| Missing::Failed(root.cannot("reach the engine of", e));
    let gone = |e: &io::Error| Missing::Gone(io_text(e));
    let short = match ShortPath::of(&socket) {
        Ok(short) => short,
        Err(e) if missing(&e) => return Err(gone(&e)),
        Err(e) => return Err(failed(&e)),
    };
    let stream = match UnixStream::connect(short.path()).await {
        Ok(stream) => stream,
        Err(e) if missing(&e) => return Err(gone(&e)),
        Err(e) => return Err(failed(&e)),
    };
    let peer = stream.peer_cred().map_err(|e| gone(&e))?;
    let channel = over(stream).await.map_err(|e| Missing::Gone(e.to_string()))?;
    let engine = Engine {
        channel,
        pid: peer.pid(),
        uid: Some(peer.uid()),
        info: Info::default(),
        place: socket.display().to_string(),
        root: Some(root.clone()),
    };
    handshake(engine).await
}

/// Returns whether nobody listens, or the listener ended before it took the connection; that a root cannot be made at all
/// is told when it is tried.
fn missing(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | ConnectionRefused | ConnectionReset | BrokenPipe | NotADirectory)
}

async fn handshake(mut engine: Engine) -> Result<Engine, Missing> {
    let mut control = engine.control();
    let answer = match timeout(HANDSHAKE, control.info(InfoRequest {})).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(status)) if status.code() == tonic::Code::Unimplemented => return Ok(engine),
        Ok(Err(status)) => return Err(Missing::Gone(status.message().to_owned())),
        Err(_) => {
            let text = format!("the engine at {} does not answer", engine.place);
            let hint = match engine.pid {
                Some(_) => "stop it with: kiln daemon stop --timeout 5s",
                None => "check the address",
            };
            return Err(Missing::Failed(CliError::environment(text).hint(hint)));
        }
    };
    let busy = answer.metadata().get(BUSY).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    let version = answer.into_inner().buildkit_version.unwrap_or_default();
    engine.info = Info { package: version.package, version: version.version, revision: version.revision, busy };
    Ok(engine)
}

/// Lets an idle engine of another build go.
async fn replace(engine: &Engine) -> Result<(), CliError> {
    let info = &engine.info;
    if info.busy != Some(0) {
        let text = format!("the engine that runs is another build of kiln ({}), and it is at work", info.revision);
        return Err(
            CliError::environment(text).hint("wait until its builds have ended, or stop it with: kiln daemon stop")
        );
    }
    let Some(pid) = engine.pid else { return Ok(()) };
    tracing::debug!(pid, revision = info.revision, "an idle engine of another build is let go");
    process::terminate(pid, REPLACE, false).await.map(|_| ())
}

/// Starts an engine unless another client has done so in the meantime.
async fn launch(root: &Root, env: &Env, debug: bool) -> Result<(), CliError> {
    let held = {
        let root = root.clone();
        blocking(move || start::lock(&root)).await?
    };
    match local(root).await {
        Ok(_) => Ok(()),
        Err(Missing::Failed(error)) => Err(error),
        Err(Missing::Gone(_)) => {
            let (own, env) = (root.clone(), env.clone());
            let started = blocking(move || {
                let _held = held;
                start::start(&own, &env, debug)
            })
            .await;
            match started {
                // `kiln daemon run` takes no turns: one that was faster needs a moment until it listens.
                Err(_) if root.is_held() => appears(root).await,
                started => started,
            }
        }
    }
}

/// Waits for an engine that somebody else has started.
async fn appears(root: &Root) -> Result<(), CliError> {
    let begin = tokio::time::Instant::now();
    loop {
        match local(root).await {
            Ok(_) => return Ok(()),
            Err(Missing::Failed(error)) => return Err(error),
            Err(Missing::Gone(why)) if begin.elapsed() > HANDSHAKE => {
                let text = format!("another engine holds {} and does not listen: {why}", root.path().display());
                return Err(CliError::environment(text).hint("stop it with: kiln daemon stop --timeout 5s"));
            }
            Err(Missing::Gone(_)) => tokio::time::sleep(GLANCE).await,
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CliError> + Send + 'static,
) -> Result<T, CliError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
        Err(CliError::new(kiln_stdx::ErrorClass::Bug, format!("a task of the launcher failed: {e}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_that_ends_before_it_takes_the_connection_is_gone() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let root = Root::choose(Some(dir.path()), &Env::of(&[], dir.path())).expect("root");
        root.create().expect("create");
        let listener = std::os::unix::net::UnixListener::bind(root.socket()).expect("listen");
        let ends = tokio::task::spawn_blocking(move || drop(listener));
        let met = local(&root).await;
        ends.await.expect("join");
        // Whether it was refused, reset or taken and closed: one may be started.
        assert!(matches!(met, Err(Missing::Gone(_))));
        for kind in [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionRefused] {
            assert!(missing(&kind.into()), "{kind}");
        }
        assert!(!missing(&io::ErrorKind::PermissionDenied.into()));
    }
}
