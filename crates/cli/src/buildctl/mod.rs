//! The `buildctl` face: that client's commands, flags and output, for scripts that were written for it.

mod args;
mod build;
mod dial;
mod graph;
mod history;
mod policy;
mod tabs;
mod template;
mod times;
mod usage;
mod workers;

use std::ffi::OsString;
use std::time::Duration;

use clap::Parser;
use clap::error::ErrorKind;

use self::args::{Cli, Command, Debug, GlobalFlags};
use crate::args::TlsFlags;
use crate::commands::block_on;
use crate::env::Env;
use crate::error::CliError;
use crate::launch::Engine;
use crate::launch::connect::remote;

/// Where that daemon listens when nothing says otherwise.
const ADDRESS: &str = "unix:///run/buildkit/buildkitd.sock";
/// How often an engine that is not there yet is tried.
const AGAIN: Duration = Duration::from_millis(100);

/// Runs the command line and returns the exit code.
///
/// # Errors
/// A flag is wrong, no engine answers, or it answers with an error.
pub fn run(args: &[OsString], env: &Env) -> Result<u8, CliError> {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return crate::print(&e.render().to_string()).map(|()| 0);
        }
        Err(e) => {
            let text = e.render().to_string();
            let first = text.lines().next().unwrap_or_default();
            return Err(CliError::user(first.strip_prefix("error: ").unwrap_or(first)).hint("see 'buildctl --help'"));
        }
    };
    if !matches!(cli.global.log_format.as_deref(), None | Some("" | "text" | "json")) {
        return Err(CliError::user(format!("unsupported log type {:?}", cli.global.log_format.unwrap_or_default())));
    }
    let to = To { global: cli.global, env };
    match cli.command {
        Command::Du(flags) => block_on(usage::du(flags, &to)),
        Command::Prune(flags) => block_on(usage::prune(flags, &to)),
        Command::PruneHistories(flags) => block_on(history::prune(flags, &to)),
        Command::Build(flags) => build::run(*flags, &to),
        Command::DialStdio => block_on(dial::run(&to)),
        Command::Debug(Debug::Workers(flags)) => block_on(workers::list(flags, &to)),
        Command::Debug(Debug::Info(flags)) => block_on(workers::info(flags, &to)),
        Command::Debug(Debug::Histories(flags)) => block_on(history::list(flags, &to)),
        Command::Debug(Debug::Ctl(flags)) => block_on(history::control(flags, &to)),
        Command::Debug(Debug::Monitor(flags)) => block_on(history::monitor(flags, &to)),
        Command::Debug(Debug::Logs(flags)) => block_on(history::logs(flags, &to)),
        Command::Debug(Debug::Get(flags)) => block_on(history::get(flags, &to)),
        Command::Debug(Debug::DumpLlb(flags)) => graph::dump(&flags, env),
        Command::Debug(Debug::DumpMetadata(flags)) => {
            let root = env.cwd().join(flags.root);
            let text = kiln_daemon::dump_metadata(&root).map_err(|e| CliError::new(e.class(), e.to_string()))?;
            crate::print(&text)
        }
    }
    .map(|()| 0)
}

/// The engine that commands are for.
struct To<'a> {
    global: GlobalFlags,
    env: &'a Env,
}

impl To<'_> {
    /// Returns the engine's address.
    fn address(&self) -> &str {
        let named = self.global.addr.as_deref().or_else(|| self.env.var("BUILDKIT_HOST"));
        named.filter(|a| !a.is_empty()).unwrap_or(ADDRESS)
    }

    fn tls(&self) -> TlsFlags {
        self.global.tls.clone()
    }

    /// Connects, within the time that the flags allow; `--wait` tries for as long.
    async fn engine(&self) -> Result<Engine, CliError> {
        let (address, tls) = (self.address(), self.tls());
        let attempt = async {
            loop {
                match remote(address, &tls).await {
                    Err(_) if self.global.wait => tokio::time::sleep(AGAIN).await,
                    answer => return answer,
                }
            }
        };
        match self.global.timeout {
            0 => attempt.await,
            seconds => tokio::time::timeout(Duration::from_secs(seconds), attempt).await.unwrap_or_else(|_| {
                Err(CliError::environment(format!("no engine answers at {address} within {seconds} s")))
            }),
        }
    }
}
