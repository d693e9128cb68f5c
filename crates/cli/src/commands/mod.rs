//! The commands, one file each.

mod build;
pub mod buildkitd;
mod cache;
mod cache_mounts;
mod daemon;
mod du;
mod lint;
mod prune;
mod record;
mod run;
mod version;
mod why;

pub use build::cancel_on_signals;

use std::future::Future;
use std::io::Write;

use crate::args::{Cli, Command, DaemonCommand};
use crate::env::Env;
use crate::error::{CliError, io_text};

/// Runs a command and returns the exit code.
pub fn run(cli: Cli, env: Env) -> Result<u8, CliError> {
    let global = cli.global;
    match cli.command {
        Command::Run(flags) => return run::run(*flags, &global, env),
        Command::Build(flags) => return build::run(*flags, &global, env),
        Command::Lint(flags) => return lint::run(flags, &env),
        Command::Daemon(DaemonCommand::Run(flags)) => daemon::run(flags, &global, &env),
        Command::Daemon(DaemonCommand::Status) => block_on(daemon::status(&global, &env)),
        Command::Daemon(DaemonCommand::Stop(flags)) => block_on(daemon::stop(flags, &global, &env)),
        Command::Cache(command) => block_on(cache::run(command, &global, &env)),
        Command::Why(flags) => block_on(why::run(flags, &global, &env)),
        Command::Du(flags) => block_on(du::run(flags, &global, &env)),
        Command::Prune(flags) => block_on(prune::run(flags, &global, &env)),
        Command::Version => version::run(),
    }
    .map(|()| 0)
}

/// How long tasks are given to be dropped once the command has its result.
const SHUTDOWN: std::time::Duration = std::time::Duration::from_millis(500);

/// Runs a future to its end on a small runtime.
pub fn block_on<T, F: Future<Output = Result<T, CliError>>>(future: F) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| CliError::environment(format!("cannot start threads: {}", io_text(&e))))?;
    let result = runtime.block_on(future);
    // What still receives a result is dropped here, with the file it has begun. A thread blocked in a read of standard
    // input ends with the process only, so there is a limit.
    runtime.shutdown_timeout(SHUTDOWN);
    result
}

/// Says something on standard error.
pub fn say(text: &str) {
    // There is no other place to tell that standard error is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}
