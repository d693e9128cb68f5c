//! The `buildkitd` face: the engine with that daemon's flags and configuration file. Flags override the file.
//!
//! Flags that choose what this engine does in one way only (worker kinds, plugins) are accepted and checked.

use std::path::{Path, PathBuf};

use clap::{ArgAction, Parser};
use kiln_daemon::{
    ConfigFile, DaemonConfig, GcSettings, NetworkKind, Settings, Space, TlsSettings, known_entitlement, snapshotter,
};

use crate::error::{CliError, io_text};
use crate::launch::build_id;

/// Where that daemon keeps things when nothing says otherwise.
const CONFIG: &str = "/etc/buildkit/buildkitd.toml";
const ROOT: &str = "/var/lib/buildkit";
const ADDRESS: &str = "unix:///run/buildkit/buildkitd.sock";

/// The build engine, with BuildKit's daemon flags.
#[derive(Debug, Parser)]
#[command(name = "buildkitd", version, disable_help_subcommand = true, max_term_width = 120)]
struct Flags {
    /// Path to the configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Log more
    #[arg(long, action = ArgAction::SetTrue)]
    debug: bool,
    #[arg(long, hide = true, action = ArgAction::SetTrue)]
    trace: bool,
    /// Path to the state directory
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Address to listen on: unix://PATH, tcp://HOST:PORT or fd://
    #[arg(long, value_name = "ADDR")]
    addr: Vec<String>,
    /// Log format: text or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Log level: trace, debug, info, warn or error
    #[arg(long, value_name = "LEVEL", env = "BUILDKITD_LOG_LEVEL")]
    log_level: Option<String>,
    /// Group that may use unix sockets
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Address for debugging
    #[arg(long, value_name = "ADDR", env = "BUILDKITD_DEBUGADDR")]
    debugaddr: Option<String>,
    #[arg(long, value_name = "FILE")]
    tlscert: Option<PathBuf>,
    #[arg(long, value_name = "FILE")]
    tlskey: Option<PathBuf>,
    #[arg(long, value_name = "FILE")]
    tlscacert: Option<PathBuf>,
    /// Entitlement that clients may ask for: network.host or security.insecure
    #[arg(long, value_name = "NAME")]
    allow_insecure_entitlement: Vec<String>,
    /// Allow rootless use
    #[arg(long, action = ArgAction::SetTrue)]
    rootless: bool,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    proxy_network: Option<bool>,
    #[arg(long, hide = true)]
    otel_socket_path: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    cdi_disabled: Option<bool>,
    #[arg(long, hide = true)]
    cdi_spec_dir: Vec<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    save_cache_debug: Option<bool>,
    #[command(flatten)]
    worker: WorkerFlags,
    #[command(flatten)]
    containerd: ContainerdFlags,
}

/// Flags of the worker that is this engine.
#[derive(Debug, clap::Args)]
struct WorkerFlags {
    /// Enable the worker: auto, true or false
    #[arg(long, value_name = "auto|true|false")]
    oci_worker: Option<String>,
    /// Labels of the worker (key=value)
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    oci_worker_labels: Vec<String>,
    /// Snapshotter: auto, overlayfs or native
    #[arg(long, value_name = "NAME")]
    oci_worker_snapshotter: Option<String>,
    #[arg(long, hide = true)]
    oci_worker_proxy_snapshotter_path: Option<String>,
    /// Platforms to announce
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    oci_worker_platform: Vec<String>,
    /// Network of steps: auto, host, none, bridge, slirp or isolated (bridge where the host forwards, else slirp)
    #[arg(long, value_name = "MODE")]
    oci_worker_net: Option<String>,
    /// OCI runtime that runs steps, such as runc or crun, in place of the engine's own sandbox
    #[arg(long, value_name = "NAME")]
    oci_worker_binary: Option<String>,
    #[arg(long, hide = true)]
    oci_worker_apparmor_profile: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    oci_worker_selinux: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    oci_worker_rootless: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    oci_worker_no_process_sandbox: Option<bool>,
    /// Collect garbage by itself
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    oci_worker_gc: Option<bool>,
    /// Space to keep: Reserved[,Free[,Maximum]]
    #[arg(long, value_name = "SIZES")]
    oci_worker_gc_keepstorage: Option<String>,
    #[arg(long, hide = true, alias = "oci-cni-worker-path")]
    oci_cni_config_path: Option<String>,
    #[arg(long, hide = true)]
    oci_cni_binary_dir: Option<String>,
    #[arg(long, hide = true)]
    oci_cni_pool_size: Option<u32>,
    /// Most steps that run at once
    #[arg(long, value_name = "N")]
    oci_max_parallelism: Option<String>,
}

/// Flags of another kind of worker, which this engine does not have: it can only be turned off.
#[derive(Debug, clap::Args)]
struct ContainerdFlags {
    #[arg(long, hide = true)]
    containerd_worker: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_addr: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_labels: Vec<String>,
    #[arg(long, hide = true)]
    containerd_worker_platform: Vec<String>,
    #[arg(long, hide = true)]
    containerd_worker_namespace: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_runtime: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_net: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_snapshotter: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_apparmor_profile: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    containerd_worker_selinux: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    containerd_worker_rootless: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    containerd_worker_gc: Option<bool>,
    #[arg(long, hide = true)]
    containerd_worker_gc_keepstorage: Option<String>,
    #[arg(long, hide = true)]
    containerd_cni_config_path: Option<String>,
    #[arg(long, hide = true)]
    containerd_cni_binary_dir: Option<String>,
    #[arg(long, hide = true)]
    containerd_cni_pool_size: Option<u32>,
    #[arg(long, hide = true)]
    containerd_max_parallelism: Option<String>,
}

/// Runs the engine until it is told to end.
///
/// # Errors
/// Flags or file that are wrong or ask for what this engine does not have; the engine cannot start.
pub fn run(flags: BuildkitdFlags) -> Result<(), CliError> {
    let flags = flags.0;
    let file = read(flags.config.as_deref())?;
    let config = configure(flags, file)?;
    std::fs::create_dir_all(&config.root)
        .map_err(|e| CliError::environment(format!("cannot use {}: {}", config.root.display(), io_text(&e))))?;
    kiln_daemon::run(config).map_err(|e| CliError::new(e.class(), e.to_string()))
}

/// The flags, read.
#[derive(Debug)]
pub struct BuildkitdFlags(Flags);

/// Reads the flags; none when only a text was asked for, which is returned then.
///
/// # Errors
/// A flag that is not known or has a bad value.
pub fn parse(args: &[std::ffi::OsString]) -> Result<Result<BuildkitdFlags, String>, CliError> {
    use clap::error::ErrorKind;
    match Flags::try_parse_from(args) {
        Ok(flags) => Ok(Ok(BuildkitdFlags(flags))),
        Err(e) if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            Ok(Err(e.render().to_string()))
        }
        Err(e) => {
            let text = e.render().to_string();
            let first = text.lines().next().unwrap_or_default();
            Err(CliError::user(first.strip_prefix("error: ").unwrap_or(first)).hint("see 'buildkitd --help'"))
        }
    }
}

fn read(path: Option<&Path>) -> Result<ConfigFile, CliError> {
    let path = match path {
        Some(path) => path,
        None if Path::new(CONFIG).exists() => Path::new(CONFIG),
        None => {
            let gc = Some(GcSettings::default());
            let settings = Settings { entitlements: Vec::new(), gc, ..Settings::default() };
            return Ok(ConfigFile { settings, ..ConfigFile::default() });
        }
    };
    ConfigFile::read(path).map_err(|e| CliError::new(e.class(), e.to_string()))
}

fn configure(flags: Flags, file: ConfigFile) -> Result<DaemonConfig, CliError> {
    let mut settings = file.settings;
    unsupported(&flags)?;
    settings.tls = TlsSettings {
        cert: flags.tlscert.or(settings.tls.cert),
        key: flags.tlskey.or(settings.tls.key),
        ca: flags.tlscacert.or(settings.tls.ca),
    };
    settings.debug_address = flags.debugaddr.filter(|a| !a.is_empty()).or(settings.debug_address);
    worker(&flags.worker, &mut settings)?;
    for name in &flags.allow_insecure_entitlement {
        known_entitlement(name).map_err(CliError::user)?;
    }
    if !flags.allow_insecure_entitlement.is_empty() {
        settings.entitlements = flags.allow_insecure_entitlement;
    }
    if let Some(level) = flags.log_level {
        settings.log_level = Some(level);
    } else if flags.trace {
        settings.log_level = Some("trace".to_owned());
    }
    if let Some(format) = &flags.log_format {
        settings.log_json = format == "json";
    }
    let addresses = match (flags.addr.is_empty(), file.addresses.is_empty()) {
        (false, _) => flags.addr,
        (true, false) => file.addresses,
        (true, true) => vec![ADDRESS.to_owned()],
    };
    let root = flags.root.or(file.root).unwrap_or_else(|| PathBuf::from(ROOT));
    let root = std::path::absolute(&root).map_err(|e| CliError::user(format!("--root: {}", io_text(&e))))?;
    Ok(DaemonConfig {
        root,
        addresses,
        idle_timeout: None,
        ready_fd: None,
        build_id: build_id::current(),
        group: flags.group,
        debug: flags.debug || file.debug,
        settings,
    })
}

/// Puts what the flags say of the worker into `settings`.
fn worker(flags: &WorkerFlags, settings: &mut Settings) -> Result<(), CliError> {
    for label in &flags.oci_worker_labels {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        settings.labels.insert(key.to_owned(), value.to_owned());
    }
    if let Some(name) = &flags.oci_worker_snapshotter {
        settings.snapshotter = snapshotter(name).map_err(CliError::user)?;
    }
    if !flags.oci_worker_platform.is_empty() {
        settings.platforms.clone_from(&flags.oci_worker_platform);
    }
    if let Some(text) = &flags.oci_max_parallelism {
        settings.max_parallelism = parallelism(text)?;
    }
    if let Some(mode) = &flags.oci_worker_net {
        settings.network.kind = NetworkKind::parse(mode).map_err(CliError::user)?;
    }
    if let Some(size) = flags.oci_cni_pool_size {
        settings.network.pool = usize::try_from(size).unwrap_or(usize::MAX);
    }
    if let Some(name) = flags.oci_worker_binary.as_deref().filter(|name| !name.is_empty()) {
        settings.runtime = Some(PathBuf::from(name));
    }
    match flags.oci_worker_gc {
        Some(false) => settings.gc = None,
        Some(true) => drop(settings.gc.get_or_insert_default()),
        None => {}
    }
    if let (Some(text), Some(gc)) = (&flags.oci_worker_gc_keepstorage, &mut settings.gc) {
        let mut sizes = text.split(',').map(|part| Space::parse(part).map_err(CliError::user));
        let mut next = || sizes.next().transpose().map(Option::unwrap_or_default);
        (gc.reserved, gc.free, gc.maximum) = (next()?, next()?, next()?);
    }
    Ok(())
}

/// Refuses what this engine cannot do, instead of silently doing something else.
fn unsupported(flags: &Flags) -> Result<(), CliError> {
    let refuse = |what: &str| Err(CliError::user(format!("{what} is not supported by this engine")));
    if flags.worker.oci_worker.as_deref() == Some("false") {
        return refuse("turning the only worker off");
    }
    if flags.containerd.containerd_worker.as_deref() == Some("true") {
        return refuse("the containerd worker");
    }
    if flags.worker.oci_worker_proxy_snapshotter_path.is_some() {
        return refuse("a snapshotter plugin");
    }
    for (asked, what) in [
        (flags.proxy_network == Some(true), "--proxy-network"),
        (flags.worker.oci_worker_selinux == Some(true), "--oci-worker-selinux"),
        (
            flags.worker.oci_worker_apparmor_profile.as_deref().is_some_and(|p| !p.is_empty()),
            "--oci-worker-apparmor-profile",
        ),
        (flags.worker.oci_worker_no_process_sandbox == Some(true), "--oci-worker-no-process-sandbox"),
    ] {
        if asked {
            return refuse(what);
        }
    }
    Ok(())
}

fn parallelism(text: &str) -> Result<Option<usize>, CliError> {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    match text {
        "num-cpu" => Ok(Some(cores())),
        number => number
            .parse::<usize>()
            .map(|n| (n > 0).then_some(n))
            .map_err(|_| CliError::user(format!("invalid value {text:?} for --oci-max-parallelism"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(line: &str) -> Flags {
        Flags::try_parse_from(std::iter::once("buildkitd").chain(line.split_whitespace())).unwrap()
    }

    #[test]
    fn flags_override_the_file() {
        let file = ConfigFile::parse(
            "root = \"/a\"\ninsecure-entitlements = [\"network.host\"]\n[grpc]\naddress = [\"unix:///f\"]",
        );
        let flags = flags(
            "--root /b --addr unix:///x --addr tcp://127.0.0.1:0 --oci-worker=true --containerd-worker=false \
             --oci-worker-gc=false --oci-worker-labels=a=1,b=2 --allow-insecure-entitlement security.insecure \
             --oci-worker-snapshotter=native --debug",
        );
        let config = configure(flags, file.unwrap()).unwrap();
        assert_eq!(config.root, Path::new("/b"));
        assert_eq!(config.addresses, ["unix:///x", "tcp://127.0.0.1:0"]);
        assert_eq!(config.settings.entitlements, ["security.insecure"]);
        assert_eq!(config.settings.labels.len(), 2);
        assert_eq!(config.settings.snapshotter.as_deref(), Some("copy"));
        assert!(config.debug);
        assert!(config.settings.gc.is_none());
    }

    #[test]
    fn the_worker_is_set_up_by_flags() {
        let line = "--oci-worker-binary crun --oci-worker-net bridge --oci-cni-pool-size 3 --tlscert c --tlskey k \
                    --oci-worker-gc --oci-worker-gc-keepstorage 1GB,10% --debugaddr 127.0.0.1:0";
        let settings = configure(flags(line), ConfigFile::default()).unwrap().settings;
        assert_eq!(settings.runtime.as_deref(), Some(Path::new("crun")));
        assert_eq!((settings.network.kind, settings.network.pool), (NetworkKind::parse("bridge").unwrap(), 3));
        assert_eq!(settings.tls.cert.as_deref(), Some(Path::new("c")));
        let gc = settings.gc.unwrap();
        assert_eq!((gc.reserved, gc.free, gc.maximum), (Space::Bytes(1 << 30), Space::Percent(10), Space::Bytes(0)));
        assert_eq!(settings.debug_address.as_deref(), Some("127.0.0.1:0"));
    }

    #[test]
    fn without_flags_the_file_holds() {
        let file = ConfigFile::parse("[grpc]\naddress = [\"unix:///f\"]").unwrap();
        let config = configure(flags(""), file).unwrap();
        assert_eq!((config.addresses, config.root), (vec!["unix:///f".to_owned()], PathBuf::from(ROOT)));
        assert!(config.settings.entitlements.is_empty());
    }

    #[test]
    fn what_the_engine_has_not_is_refused() {
        for line in ["--oci-worker=false", "--containerd-worker=true", "--oci-worker-net=cni", "--proxy-network"] {
            let error = configure(flags(line), ConfigFile::default()).unwrap_err();
            assert!(error.message().contains("not supported"), "{line}: {}", error.message());
        }
    }
}
