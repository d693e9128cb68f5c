//! `kiln build`.
//!
//! Everything that can be wrong with the request is found before the engine is asked for anything; what the build leaves
//! behind (image id, metadata, index entries) is written after it has succeeded.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use kiln_session::progress::WarningProgress;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::args::Global;
use crate::build::answer;
use crate::build::call::Call;
use crate::build::context::{self, Inputs};
use crate::build::flags::BuildFlags;
use crate::build::load;
use crate::build::local_cache::{self, Caches};
use crate::build::options::BuildOptions;
use crate::build::question;
use crate::build::request;
use crate::build::result::{self, Response};
use crate::client::offer::Offer;
use crate::client::solve::{Solve, Solved};
use crate::commands::say;
use crate::env::Env;
use crate::error::{CliError, EXIT_CANCELED, io_text};
use crate::launch::{Engine, connect};
use crate::progress::display::{self, write_warnings};
use crate::progress::{Mode, ProgressEnv};

/// How long the display may take to draw its end.
const DISPLAY_END: Duration = Duration::from_secs(5);
/// Signals this close together are one: wrappers like `timeout` signal the process and its group.
const SAME_SIGNAL: Duration = Duration::from_millis(250);

/// Builds.
pub fn run(flags: BuildFlags, global: &Global, env: Env) -> Result<u8, CliError> {
    let progress = ProgressEnv::read(|name| env.var(name).map(str::to_owned), std::io::stderr().is_terminal());
    let options = BuildOptions::new(flags, &env, &progress)?;
    let inputs = context::resolve(&options, &env, std::io::stdin())?;
    if let Some(call) = options.call.clone() {
        return ask(&call, options, inputs, progress, global, &env);
    }
    let caches = local_cache::resolve(&options.cache_from, &options.cache_to, &env)?;
    forget_image_id(&options)?;
    super::block_on(build(options, inputs, caches, progress, global, env)).map(|()| 0)
}

/// Answers a question about the Dockerfile: here where that is possible, else by the engine.
fn ask(
    call: &Call,
    options: BuildOptions,
    inputs: Inputs,
    progress: ProgressEnv,
    global: &Global,
    env: &Env,
) -> Result<u8, CliError> {
    let (dockerfile, file) = (inputs.dockerfile.clone(), options.metadata_file.clone());
    let here = if global.addr.is_empty() { question::locally(call, &options, &inputs)? } else { None };
    let answer = match here {
        Some(answer) => answer,
        None => super::block_on(ask_engine(options, inputs, progress, global, env))?,
    };
    let shown = answer::show(call, &answer, &dockerfile)?;
    if let Some(path) = file {
        let text = |(k, v): (&String, &Vec<u8>)| (k.clone(), String::from_utf8_lossy(v).into_owned());
        let response: Response = answer.iter().map(text).collect();
        result::write_metadata(&path, &result::values(&response).into())?;
    }
    crate::print(&shown.text)?;
    match shown.error {
        Some(error) => Err(error),
        None => Ok(shown.code),
    }
}

async fn ask_engine(
    options: BuildOptions,
    mut inputs: Inputs,
    progress: ProgressEnv,
    global: &Global,
    env: &Env,
) -> Result<answer::Answer, CliError> {
    let cancel = cancel_on_signals()?;
    let engine = tokio::select! {
        engine = connect(global, env) => engine?,
        () = cancel.cancelled() => return Err(CliError::canceled()),
    };
    if options.offline {
        engine.must_be_kiln("--offline")?;
    }
    let options = BuildOptions { outputs: Vec::new(), ..options };
    let caches = Caches::default();
    let offer = Offer::new(&options, &mut inputs, &caches, env)?;
    let request = request::build(&options, &inputs, offer.upload_url().as_deref(), Vec::new(), Vec::new())?;
    let (feed, outcome) = display::start(options.mode, &progress, "");
    let dockerfile = inputs.dockerfile.clone();
    let ask = Solve { engine: &engine, request, offer, feed, dockerfile, asks: true, why: false };
    let solved = ask.run(&cancel).await;
    // A display that does not end holds nothing back.
    let _ = tokio::time::timeout(DISPLAY_END, outcome).await;
    Ok(solved?.response.into_iter().map(|(name, value)| (name, value.into_bytes())).collect())
}

/// Removes an image id of an earlier build, so that it is not taken for this one's.
fn forget_image_id(options: &BuildOptions) -> Result<(), CliError> {
    let Some(path) = &options.iidfile else { return Ok(()) };
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound && path.is_file() => {
            Err(CliError::environment(format!("removing image ID file {}: {}", path.display(), io_text(&e))))
        }
        _ => Ok(()),
    }
}

async fn build(
    mut options: BuildOptions,
    mut inputs: Inputs,
    caches: Caches,
    progress: ProgressEnv,
    global: &Global,
    env: Env,
) -> Result<(), CliError> {
    let cancel = cancel_on_signals()?;
    if let Some(note) = load::settle(&mut options.outputs, &env).await
        && matches!(options.mode, Mode::Tty | Mode::Plain)
    {
        say(&format!("note: {note}"));
    }
    let engine = tokio::select! {
        engine = connect(global, &env) => engine?,
        () = cancel.cancelled() => return Err(CliError::canceled()),
    };
    check_engine(&options, &engine)?;
    let why = options.why;
    if caches.carry_mounts() {
        engine.must_be_kiln("mounts= of a cache")?;
    }
    for warning in &caches.warnings {
        say(&format!("WARNING: {warning}"));
    }
    let offer = Offer::new(&options, &mut inputs, &caches, &env)?;
    let request = request::build(
        &options,
        &inputs,
        offer.upload_url().as_deref(),
        caches.imports.clone(),
        caches.exports.clone(),
    )?;
    let header = format!("building with \"{}\" instance using {} engine", "default", engine_name(&engine));
    let (feed, outcome) = display::start(options.mode, &progress, &header);
    let solve =
        Solve { engine: &engine, request, offer, feed, dockerfile: inputs.dockerfile.clone(), asks: false, why };
    let solved = solve.run(&cancel).await;
    // The feed is gone, so the display is drawing its end.
    let outcome = match tokio::time::timeout(DISPLAY_END, outcome).await {
        Ok(Ok(outcome)) => outcome,
        _ => Default::default(),
    };
    show_warnings(&options, &outcome.warnings, &progress, global.debug);
    let solved = solved?;
    finish(&options, &caches, &solved, &outcome.warnings, &env)
}

/// Refuses engines of others where they would not do what is asked for, and not say so.
fn check_engine(options: &BuildOptions, engine: &Engine) -> Result<(), CliError> {
    let own = [
        (options.build_ca.is_some(), "--build-ca"),
        (options.max_age.is_some(), "--max-age"),
        (options.empty_mounts, "--no-cache=mounts"),
        (options.offline, "--offline"),
        (options.why, "--why"),
    ];
    own.iter().filter(|(asked, _)| *asked).try_for_each(|(_, flag)| engine.must_be_kiln(flag))
}

fn engine_name(engine: &Engine) -> &str {
    if engine.is_kiln() { "kiln" } else { "remote" }
}

fn show_warnings(options: &BuildOptions, warnings: &[WarningProgress], progress: &ProgressEnv, debug: bool) {
    if matches!(options.mode, Mode::Tty | Mode::Plain) {
        // A closed standard error has no reader that could be told.
        let _ = write_warnings(&mut std::io::stderr(), warnings, debug, &progress.style);
    }
}

/// Leaves behind what was asked for.
fn finish(
    options: &BuildOptions,
    caches: &Caches,
    solved: &Solved,
    warnings: &[WarningProgress],
    env: &Env,
) -> Result<(), CliError> {
    let response: &Response = &solved.response;
    for warning in result::update_indexes(response, &caches.update, &options.outputs)? {
        say(&format!("WARNING: {warning}"));
    }
    if let Some(path) = &options.iidfile {
        result::write_image_id(path, response)?;
    }
    if let Some(path) = &options.metadata_file {
        let warnings = env.flag("BUILDX_METADATA_WARNINGS").then_some(warnings);
        result::write_metadata(path, &result::metadata(response, &solved.reference, warnings))?;
    }
    if options.mode == Mode::Quiet
        && let Some(id) = result::image_id(response)
    {
        crate::print(&format!("{id}\n"))?;
    }
    if let Some(message) = response.get("frontend.result.inlinemessage") {
        crate::print(&format!("\n{message}\n"))?;
    }
    Ok(())
}

/// Returns a token that the first Ctrl-C (or SIGTERM) cancels; the second ends the process at once.
pub fn cancel_on_signals() -> Result<CancellationToken, CliError> {
    let listen =
        |kind| signal(kind).map_err(|e| CliError::environment(format!("cannot wait for signals: {}", io_text(&e))));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        let mut first: Option<Instant> = None;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            match first {
                None => first = Some(Instant::now()),
                Some(at) if at.elapsed() < SAME_SIGNAL => continue,
                Some(_) => {
                    if std::io::stderr().is_terminal() {
                        // A frame may have hidden the cursor.
                        say("\x1b[?25h");
                    }
                    std::process::exit(i32::from(EXIT_CANCELED));
                }
            }
            cancel.cancel();
        }
    });
    Ok(token)
}
