//! The grammar of the full command line.
//!
//! Flags follow the habits of the docker command line: a value may begin with a dash, a boolean takes an optional `=value`,
//! flags and arguments may be mixed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};

use kiln_session::SessionError;
use kiln_session::tls::{ClientTls, TlsFiles};

use crate::build::flags::BuildFlags;
use crate::error::CliError;
use crate::run::flags::RunFlags;

/// kiln builds container images.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, disable_help_subcommand = true, max_term_width = 120)]
pub struct Cli {
    /// Options of all commands.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command has.
#[derive(Clone, Debug, Default, Args)]
pub struct Global {
    /// State root of the engine (default /var/lib/kiln, or the XDG data directory when not root)
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "KILN_ROOT",
        hide_env_values = true,
        allow_hyphen_values = true
    )]
    pub root: Option<PathBuf>,
    /// Address of an engine that runs already (unix://PATH or tcp://HOST:PORT, default $BUILDKIT_HOST); none is started
    #[arg(long, global = true, value_name = "ADDR", alias = "builder")]
    pub addr: Vec<String>,
    /// TLS towards that engine.
    #[command(flatten)]
    pub tls: TlsFlags,
    /// Show more: details of warnings and errors
    #[arg(short = 'D', long, global = true, action = ArgAction::SetTrue)]
    pub debug: bool,
}

/// TLS towards an engine at a TCP address. All files are PEM.
#[derive(Clone, Debug, Default, Args)]
pub struct TlsFlags {
    /// Certificates that may have signed the engine's
    #[arg(long, global = true, value_name = "FILE")]
    pub tlscacert: Option<PathBuf>,
    /// The client's certificate
    #[arg(long, global = true, value_name = "FILE")]
    pub tlscert: Option<PathBuf>,
    /// The key of the client's certificate
    #[arg(long, global = true, value_name = "FILE")]
    pub tlskey: Option<PathBuf>,
    /// Name that the engine's certificate is for, when it is not that of the address
    #[arg(long, global = true, value_name = "NAME")]
    pub tlsservername: Option<String>,
    /// Directory with ca.pem, cert.pem and key.pem in place of the three files
    #[arg(long, global = true, value_name = "DIR")]
    pub tlsdir: Option<PathBuf>,
}

impl TlsFlags {
    /// Returns what the flags say; none when they say nothing.
    ///
    /// # Errors
    /// The files are named twice, cannot be read, or do not belong together.
    pub fn load(&self) -> Result<Option<ClientTls>, CliError> {
        let bad = |e: SessionError| CliError::user(e.to_string());
        let named = TlsFiles {
            ca: self.tlscacert.clone(),
            cert: self.tlscert.clone(),
            key: self.tlskey.clone(),
            server_name: self.tlsservername.clone(),
        };
        let files = match &self.tlsdir {
            Some(_) if !named.is_empty() => {
                return Err(CliError::user("--tlsdir stands for --tlscacert, --tlscert and --tlskey: give it alone"));
            }
            Some(dir) => TlsFiles { server_name: named.server_name, ..TlsFiles::in_dir(dir).map_err(bad)? },
            None => named,
        };
        if files.is_empty() { Ok(None) } else { files.load().map(Some).map_err(bad) }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a build
    #[command(visible_alias = "b")]
    Build(Box<BuildFlags>),
    /// Look for what is wrong with a Dockerfile, and for what could be better
    Lint(LintFlags),
    /// Run a process in an image
    Run(Box<RunFlags>),
    /// Run and steer the engine
    #[command(subcommand)]
    Daemon(DaemonCommand),
    /// Care for what the engine keeps
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Say why the steps of a build ran
    Why(WhyFlags),
    /// Show disk usage
    Du(DuFlags),
    /// Remove what the cache keeps
    Prune(PruneFlags),
    /// Show the version
    Version,
}

/// Commands of `kiln daemon`.
#[derive(Debug, Subcommand)]
pub enum DaemonCommand {
    /// Run the engine in the foreground
    Run(DaemonRunFlags),
    /// Show whether the engine runs
    Status,
    /// Ask the engine to end; builds that run are cancelled
    Stop(DaemonStopFlags),
}

/// Flags of `kiln daemon run`.
#[derive(Debug, Args)]
pub struct DaemonRunFlags {
    /// Configuration file in the form of buildkitd.toml (default $KILN_CONFIG, else /etc/kiln/kiln.toml)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// End after this time without work, for example 10m (default: never in the foreground)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub idle_timeout: Option<Duration>,
    /// Group that may use the socket; without it only the engine's user may
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// Started by a client: leave its session and report readiness on standard output
    #[arg(long, hide = true, action = ArgAction::SetTrue)]
    pub on_demand: bool,
}

/// Flags of `kiln daemon stop`.
#[derive(Debug, Args)]
pub struct DaemonStopFlags {
    /// How long to wait for the engine to end before it is killed
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s")]
    pub timeout: Duration,
}

/// Commands of `kiln cache`.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// List the cache mounts of RUN steps, or what is in one
    #[command(visible_alias = "list")]
    Ls(CacheLsFlags),
    /// Show all that is known of cache mounts
    Inspect(CacheInspectFlags),
    /// Remove cache mounts: the next step that uses them begins with an empty directory
    Rm(CacheRmFlags),
    /// Print a file of a cache mount
    Cat(CacheCatFlags),
    /// Check everything the store holds against its digests, and tell what is damaged
    Verify(CacheVerifyFlags),
}

/// Flags of `kiln cache ls`.
#[derive(Debug, Args)]
pub struct CacheLsFlags {
    /// Id of a cache mount, as steps or the DIRECTORY column have it, and a path in it; all mounts when not given
    #[arg(value_name = "ID[:/PATH]")]
    pub place: Option<String>,
    /// How it is shown: table or json
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: String,
}

/// Flags of `kiln cache inspect`.
#[derive(Debug, Args)]
pub struct CacheInspectFlags {
    /// Ids of cache mounts
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<String>,
    /// How it is shown: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub format: String,
}

/// Flags of `kiln cache rm`.
#[derive(Debug, Args)]
pub struct CacheRmFlags {
    /// Ids of cache mounts; of an id that several have, all are removed
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<String>,
}

/// Flags of `kiln cache cat`.
#[derive(Debug, Args)]
pub struct CacheCatFlags {
    /// Id of a cache mount, and a path in it
    #[arg(value_name = "ID:/PATH")]
    pub place: String,
}

/// Flags of `kiln cache verify`.
#[derive(Debug, Args)]
pub struct CacheVerifyFlags {
    /// Make good again what is damaged, or drop it; builds may go on meanwhile
    #[arg(long, action = ArgAction::SetTrue)]
    pub repair: bool,
}

/// Flags of `kiln lint`.
#[derive(Debug, Args)]
pub struct LintFlags {
    /// Build context: a directory, or `-` for a Dockerfile on standard input
    #[arg(value_name = "PATH", default_value = ".")]
    pub context: String,
    /// Name of the Dockerfile (default PATH/Dockerfile)
    #[arg(long, short = 'f', value_name = "FILE", allow_hyphen_values = true)]
    pub file: Option<String>,
    /// Also give advice about cache, size and secrets; looks at the files of the context
    #[arg(long, action = ArgAction::SetTrue)]
    pub advise: bool,
    /// How findings are shown: text, json, or diff for a patch with all rewrites that can be made as they are
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_default_value = true)]
    pub format: String,
    /// Set a build-time variable
    #[arg(long, value_name = "NAME[=VALUE]", allow_hyphen_values = true)]
    pub build_arg: Vec<String>,
    /// Platform to build for
    #[arg(long, value_name = "PLATFORM", allow_hyphen_values = true)]
    pub platform: Vec<String>,
    /// Stage to look at; all when not given
    #[arg(long, value_name = "STAGE", allow_hyphen_values = true)]
    pub target: Option<String>,
}

/// Flags of `kiln why`.
#[derive(Debug, Args)]
pub struct WhyFlags {
    /// Reference of a build or its beginning (default: the last build that ended)
    #[arg(value_name = "BUILD")]
    pub build: Option<String>,
    /// Only steps with this in their name, for example `RUN make` or `build 3/7`
    #[arg(value_name = "STEP")]
    pub step: Option<String>,
    /// How it is shown: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub format: String,
}

/// Flags of `kiln du`.
#[derive(Debug, Args)]
pub struct DuFlags {
    /// Only records that match, for example type=regular
    #[arg(long, short = 'f', value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Show all that is known of each record
    #[arg(long, short = 'v', action = ArgAction::SetTrue)]
    pub verbose: bool,
}

/// Flags of `kiln prune`.
#[derive(Debug, Args)]
pub struct PruneFlags {
    /// Also remove internal and frontend records
    #[arg(long, short = 'a', action = ArgAction::SetTrue)]
    pub all: bool,
    /// Only records that match, for example until=24h
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Do not ask
    #[arg(long, short = 'f', action = ArgAction::SetTrue)]
    pub force: bool,
    /// Keep this much whatever its age
    #[arg(long, value_name = "BYTES", value_parser = size, alias = "keep-storage")]
    pub reserved_space: Option<u64>,
    /// Remove until no more than this is used
    #[arg(long, value_name = "BYTES", value_parser = size)]
    pub max_used_space: Option<u64>,
    /// Remove until this much of the disk is free
    #[arg(long, value_name = "BYTES", value_parser = size)]
    pub min_free_space: Option<u64>,
    /// Show all that is known of each record
    #[arg(long, short = 'v', action = ArgAction::SetTrue)]
    pub verbose: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    kiln_stdx::duration::parse(text).ok_or_else(|| "a duration like 90s, 10m or 1h30m is expected".to_owned())
}

fn size(text: &str) -> Result<u64, String> {
    crate::units::parse_size(text, 1000)
}
