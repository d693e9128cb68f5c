//! `kiln run`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_session::SessionError;
use kiln_session::client::{AuthProvider, ContentProvider, DockerConfig, LayoutStore, RunningSession, SessionServer};
use kiln_session::proto::kiln_v1 as pb;
use kiln_session::proto::kiln_v1::kiln_client::KilnClient;
use kiln_session::proto::kiln_v1::run_input::Input;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::args::Global;
use crate::client::failure;
use crate::env::Env;
use crate::error::CliError;
use crate::launch::{Engine, connect};
use crate::progress::{Mode, ProgressEnv};
use crate::run::attach::{self, Attached, End};
use crate::run::flags::RunFlags;
use crate::run::options::RunOptions;
use crate::run::pull::Pull;
use crate::run::terminal;

/// Exit code when kiln, and not the process, has failed.
const EXIT_OWN: u8 = 125;
/// Metadata of an error: the exit code that a shell would give for it.
const EXIT_CODE: &str = "kiln-exit-code";
/// Messages for the process that may wait.
const MESSAGES: usize = 16;

/// Runs a process in an image and returns its exit code.
pub fn run(flags: RunFlags, global: &Global, env: Env) -> Result<u8, CliError> {
    let progress = ProgressEnv::read(|name| env.var(name).map(str::to_owned), attach::has_screen());
    let checked = RunOptions::new(flags, &env).and_then(|options| {
        attach::check(options.tty, options.request.stdin)?;
        let mode = Mode::choose(options.progress.as_deref(), false, &progress)?;
        Ok((options, mode))
    });
    let (options, mode) = checked.map_err(own)?;
    super::block_on(async {
        let engine = connect(global, &env).await.map_err(own)?;
        engine.must_be_kiln("kiln run").map_err(own)?;
        let runs = Arc::new(AtomicBool::new(false));
        let end = tokio::select! {
            end = ask(&engine, options, mode, progress, &env, runs.clone()) => end.map_err(own)?,
            () = interrupted(&runs) => return Err(CliError::canceled()),
        };
        match end {
            End::Exit(code) => Ok(code),
            End::Failed(status) => Err(failed(&status, &engine)),
            End::Unwritable(error) => Err(own(error)),
        }
    })
}

/// Asks the engine for the run, and follows it to its end.
async fn ask(
    engine: &Engine,
    options: RunOptions,
    mode: Mode,
    progress: ProgressEnv,
    env: &Env,
    runs: Arc<AtomicBool>,
) -> Result<End, CliError> {
    let RunOptions { mut request, layout, tty, .. } = options;
    let session = session(engine, layout, env)?;
    request.r#ref = kiln_stdx::rand_id();
    session.id().clone_into(&mut request.session);
    if tty {
        let usual = pb::TerminalSize { rows: 24, columns: 80 };
        request.terminal = Some(terminal::size().unwrap_or(usual));
    }
    let pull = Pull::watch(engine, &request.r#ref, mode, ProgressEnv { phase: "Pulling", ..progress });
    let (stdin, ports) = (request.stdin, request.ports.clone());
    let (input, messages) = mpsc::channel(MESSAGES);
    // The channel is empty, so this finds room.
    let _ = input.send(pb::RunInput { input: Some(Input::Start(request)) }).await;
    let mut client = KilnClient::new(engine.channel.clone()).max_decoding_message_size(kiln_stdx::limits::GRPC_MESSAGE);
    let output = match client.run(ReceiverStream::new(messages)).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Ok(End::Failed(status)),
    };
    let end = Attached { input, output, tty, stdin, ports, pull, runs }.follow().await;
    drop(session);
    Ok(end)
}

/// Opens the session in which the engine asks for logins and for the layers of a layout.
fn session(engine: &Engine, layout: Option<(String, PathBuf)>, env: &Env) -> Result<RunningSession, CliError> {
    let wrong = |error: SessionError| CliError::new(error.class(), error.to_string());
    let config = env.docker_config().map_or_else(|| Ok(DockerConfig::default()), |dir| DockerConfig::load(&dir));
    let mut builder = SessionServer::builder("").auth(AuthProvider::new(config.map_err(wrong)?));
    if let Some((name, dir)) = layout {
        let store = LayoutStore::open(&dir).map_err(wrong)?;
        builder = builder.content(ContentProvider::new([(format!("oci:{name}"), store)]));
    }
    Ok(builder.build().start(engine.channel.clone()))
}

/// Returns when the command is interrupted before the process runs; later, signals are the process's.
async fn interrupted(runs: &AtomicBool) {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if !runs.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// Marks an error as one of kiln's own.
fn own(error: CliError) -> CliError {
    error.exit(EXIT_OWN)
}

fn failed(status: &Status, engine: &Engine) -> CliError {
    if failure::is_lost(status) {
        return own(failure::lost(engine));
    }
    let code = status.metadata().get(EXIT_CODE).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    failure::of_status(status, "failed to run").exit(code.unwrap_or(EXIT_OWN))
}
