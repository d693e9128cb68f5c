//! `kiln daemon run|status|stop`.

use std::path::PathBuf;

use kiln_daemon::{ConfigFile, DaemonConfig, Settings};

use crate::args::{DaemonRunFlags, DaemonStopFlags, Global};
use crate::env::Env;
use crate::error::{CliError, io_text};
use crate::launch::connect::{Engine, find, listener};
use crate::launch::process::{Ended, terminate};
use crate::launch::socket::ShortPath;
use crate::launch::{Root, build_id, detach};

/// Runs the engine until it is told to end.
pub fn run(flags: DaemonRunFlags, global: &Global, env: &Env) -> Result<(), CliError> {
    let root = Root::choose(global.root.as_deref(), env)?;
    let settings = settings(flags.config, env)?;
    let ready_fd = if flags.on_demand {
        let left = detach::detach();
        Some(left.map_err(|e| CliError::environment(format!("cannot detach the engine: {}", io_text(&e))))?)
    } else {
        None
    };
    root.create()?;
    let socket = ShortPath::of(&root.socket()).map_err(|e| root.cannot("use", &e))?;
    let mut addresses = vec![format!("unix://{}", socket.path().display())];
    addresses.extend(global.addr.iter().cloned());
    let config = DaemonConfig {
        root: root.path().to_owned(),
        addresses,
        idle_timeout: flags.idle_timeout.filter(|t| !t.is_zero()),
        ready_fd,
        build_id: build_id::current(),
        group: flags.group,
        debug: global.debug,
        settings,
    };
    let result = kiln_daemon::run(config).map_err(|e| CliError::new(e.class(), e.to_string()));
    // The short path must stay valid for as long as the engine listens.
    drop(socket);
    result
}

/// Returns what the configuration file says. Where it says nothing of entitlements, clients may ask for what they may
/// ask an engine that they start for themselves.
fn settings(named: Option<PathBuf>, env: &Env) -> Result<Settings, CliError> {
    let usual = Settings::default();
    let Some(path) = config_file(named, env) else { return Ok(usual) };
    let mut settings = ConfigFile::read(&path).map_err(|e| CliError::new(e.class(), e.to_string()))?.settings;
    if settings.entitlements.is_empty() {
        settings.entitlements = usual.entitlements;
    }
    Ok(settings)
}

/// Returns the configuration file: the one that is named, else the usual one if it is there.
fn config_file(named: Option<PathBuf>, env: &Env) -> Option<PathBuf> {
    let named = named.or_else(|| env.path("KILN_CONFIG"));
    named.map(|path| env.cwd().join(path)).or_else(|| {
        let usual = match env.uid() {
            0 => PathBuf::from("/etc/kiln/kiln.toml"),
            _ => {
                env.path("XDG_CONFIG_HOME").or_else(|| Some(env.path("HOME")?.join(".config")))?.join("kiln/kiln.toml")
            }
        };
        usual.exists().then_some(usual)
    })
}

/// Shows whether the engine runs. Exits with 1 when it does not.
pub async fn status(global: &Global, env: &Env) -> Result<(), CliError> {
    let (root, engine) = find(global, env).await?;
    let Some(engine) = engine else {
        return Err(CliError::environment(format!("no engine runs for state root {}", root.path().display()))
            .hint("a build starts one, and so does: kiln daemon run"));
    };
    crate::print(&describe(&engine))
}

fn describe(engine: &Engine) -> String {
    let info = &engine.info;
    let mut rows = vec![("Engine", format!("{} {}", info.package, info.version).trim().to_owned())];
    rows.push(("Build", info.revision.clone()));
    if engine.is_kiln() && info.revision != build_id::current() {
        rows.push(("Note", "another build of kiln than this one".to_owned()));
    }
    rows.push(("Address", engine.place.clone()));
    if let Some(root) = &engine.root {
        rows.push(("Root", root.path().display().to_string()));
    }
    if let Some(pid) = engine.pid {
        rows.push(("Process", pid.to_string()));
    }
    if let Some(busy) = info.busy {
        rows.push(("Running builds", busy.to_string()));
    }
    rows.iter().map(|(name, value)| format!("{:<16}{value}\n", format!("{name}:"))).collect()
}

/// Ends the engine; that none runs is no error. An engine that does not answer is ended as well.
pub async fn stop(flags: DaemonStopFlags, global: &Global, env: &Env) -> Result<(), CliError> {
    let root = Root::choose(global.root.as_deref(), env)?;
    let Some(pid) = listener(&root).await else { return Ok(()) };
    if terminate(pid, flags.timeout, true).await? == Ended::Killed {
        tracing::warn!(pid, "the engine had to be killed");
    }
    Ok(())
}
