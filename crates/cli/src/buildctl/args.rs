//! The grammar of the `buildctl` face.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::args::{DuFlags, TlsFlags};

/// Builds on an engine that runs already.
#[derive(Debug, Parser)]
#[command(name = "buildctl", version, max_term_width = 120, args_override_self = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalFlags,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of all commands.
#[derive(Clone, Debug, Args)]
pub struct GlobalFlags {
    /// Log more
    #[arg(long, global = true, action = ArgAction::SetTrue)]
    pub debug: bool,
    /// Address of the engine (default $BUILDKIT_HOST, else unix:///run/buildkit/buildkitd.sock)
    #[arg(long, global = true, value_name = "ADDR")]
    pub addr: Option<String>,
    /// Log format: json or text
    #[arg(long, global = true, value_name = "FORMAT")]
    pub log_format: Option<String>,
    #[command(flatten)]
    pub tls: TlsFlags,
    /// Seconds within which the engine has to answer; 0 for no limit
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 5)]
    pub timeout: u64,
    /// Wait for the engine while it does not answer
    #[arg(long, global = true, action = ArgAction::SetTrue)]
    pub wait: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show disk usage
    Du(UsageFlags),
    /// Remove what the cache keeps
    Prune(PruneFlags),
    /// Remove the records of past builds
    PruneHistories(FormatFlag),
    /// Build
    #[command(visible_alias = "b")]
    Build(Box<BuildFlags>),
    /// Look into an engine
    #[command(subcommand)]
    Debug(Debug),
    /// Connect standard input and output with the engine
    #[command(hide = true)]
    DialStdio,
}

/// Commands of `buildctl debug`.
#[derive(Debug, Subcommand)]
pub enum Debug {
    /// Show a graph in readable form; no engine is needed
    DumpLlb(DumpLlbFlags),
    /// Show the metadata of a state directory; no engine may use it
    DumpMetadata(DumpMetadataFlags),
    /// List workers
    Workers(WorkersFlags),
    /// Show what the engine is
    Info(FormatFlag),
    /// Show builds as they begin and end
    Monitor(MonitorFlags),
    /// Show the log of a build
    Logs(LogsFlags),
    /// Keep or remove the record of a build
    Ctl(CtlFlags),
    /// Write a blob of the engine to standard output
    Get(GetFlags),
    /// List the records of past builds
    Histories(FormatFlag),
}

#[derive(Debug, Args)]
pub struct FormatFlag {
    /// Template of the output, for example '{{json .}}'
    #[arg(long, value_name = "TEMPLATE")]
    pub format: Option<String>,
}

#[derive(Debug, Args)]
pub struct UsageFlags {
    #[command(flatten)]
    pub shown: DuFlags,
    #[command(flatten)]
    pub format: FormatFlag,
}

#[derive(Debug, Args)]
pub struct PruneFlags {
    /// Keep what was used within this time
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub keep_duration: Option<Duration>,
    /// Stop at so much in use, in MB
    #[arg(long, value_name = "MB", default_value_t = 0.0)]
    pub keep_storage: f64,
    /// Never go below so much in use, in MB
    #[arg(long, value_name = "MB", default_value_t = 0.0)]
    pub keep_storage_min: f64,
    /// Go on until so much of the disk is free, in MB
    #[arg(long, value_name = "MB", default_value_t = 0.0)]
    pub free_storage: f64,
    /// Only records that match
    #[arg(long, short = 'f', value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Also internal records and frontends
    #[arg(long, action = ArgAction::SetTrue)]
    pub all: bool,
    /// Show all that is known of each record
    #[arg(long, short = 'v', action = ArgAction::SetTrue)]
    pub verbose: bool,
    #[command(flatten)]
    pub format: FormatFlag,
}

#[derive(Debug, Args)]
pub struct WorkersFlags {
    /// Only workers that match
    #[arg(long, short = 'f', value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Show all that is known of each worker
    #[arg(long, short = 'v', action = ArgAction::SetTrue)]
    pub verbose: bool,
    #[command(flatten)]
    pub format: FormatFlag,
}

#[derive(Debug, Args)]
pub struct DumpLlbFlags {
    /// Write a graph for Graphviz
    #[arg(long, action = ArgAction::SetTrue)]
    pub dot: bool,
    /// The definition; standard input when absent
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct DumpMetadataFlags {
    /// State directory
    #[arg(long, value_name = "DIR", default_value = "/var/lib/buildkit")]
    pub root: PathBuf,
}

#[derive(Debug, Args)]
pub struct MonitorFlags {
    /// Also builds that have ended
    #[arg(long, action = ArgAction::SetTrue)]
    pub completed: bool,
    /// Only this build
    #[arg(long = "ref", value_name = "REF", default_value = "", hide_default_value = true)]
    pub reference: String,
}

#[derive(Debug, Args)]
pub struct LogsFlags {
    /// How the log is shown: auto, plain, tty or rawjson
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub progress: String,
    /// Write the trace of the build instead
    #[arg(long, action = ArgAction::SetTrue)]
    pub trace: bool,
    /// The build
    #[arg(value_name = "REF")]
    pub reference: Option<String>,
}

#[derive(Debug, Args)]
pub struct CtlFlags {
    /// Keep the record
    #[arg(long, action = ArgAction::SetTrue)]
    pub pin: bool,
    /// Keep it no longer than others
    #[arg(long, action = ArgAction::SetTrue)]
    pub unpin: bool,
    /// Remove the record
    #[arg(long, action = ArgAction::SetTrue)]
    pub delete: bool,
    /// The build
    #[arg(value_name = "REF")]
    pub reference: Option<String>,
}

#[derive(Debug, Args)]
pub struct GetFlags {
    /// Digest of the blob
    #[arg(value_name = "DIGEST")]
    pub digest: Option<String>,
}

/// Flags of `buildctl build`.
#[derive(Clone, Debug, Default, Args)]
#[command(args_override_self = true)]
pub struct BuildFlags {
    /// Where the result goes, for example type=image,name=example.com/image,push=true
    #[arg(long, short = 'o', value_name = "OUTPUT", allow_hyphen_values = true)]
    pub output: Vec<String>,
    /// How progress is shown: auto, plain, tty or rawjson
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub progress: String,
    /// Write everything that is told of the build to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Directory that the build may read (name=dir)
    #[arg(long, value_name = "NAME=DIR")]
    pub local: Vec<String>,
    /// Image directory in OCI layout that the build may read (name=dir)
    #[arg(long, value_name = "NAME=DIR")]
    pub oci_layout: Vec<String>,
    /// Frontend; without one a definition is read from standard input
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub frontend: String,
    /// Option of the frontend (name=value)
    #[arg(long, value_name = "NAME=VALUE", allow_hyphen_values = true)]
    pub opt: Vec<String>,
    /// Do not use the cache
    #[arg(long, action = ArgAction::SetTrue)]
    pub no_cache: bool,
    /// Write cache elsewhere, for example type=local,dest=dir
    #[arg(long, value_name = "CACHE")]
    pub export_cache: Vec<String>,
    /// Read cache from elsewhere, for example type=local,src=dir
    #[arg(long, value_name = "CACHE")]
    pub import_cache: Vec<String>,
    /// Give a secret to the build (id=ID,src=FILE | env=NAME)
    #[arg(long, value_name = "SECRET")]
    pub secret: Vec<String>,
    /// Allow an extra privilege (network.host, security.insecure, device)
    #[arg(long, value_name = "NAME")]
    pub allow: Vec<String>,
    /// Give an SSH agent or keys to the build (default | ID[=SOCKET|KEY[,KEY]])
    #[arg(long, value_name = "SSH")]
    pub ssh: Vec<String>,
    /// Write metadata of the result to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub metadata_file: Option<PathBuf>,
    /// Rules for sources, a JSON file
    #[arg(long, value_name = "FILE")]
    pub source_policy_file: Option<PathBuf>,
    #[arg(long, hide = true, action = ArgAction::SetTrue)]
    pub proxy_network: bool,
    /// Write the identity of the build to a file
    #[arg(long, value_name = "FILE")]
    pub ref_file: Option<PathBuf>,
    #[arg(long, hide = true)]
    pub registry_auth_tlscontext: Vec<String>,
    #[arg(long, hide = true)]
    pub debug_json_cache_metrics: Option<String>,
}

fn duration(text: &str) -> Result<Duration, String> {
    kiln_stdx::duration::parse(text).ok_or_else(|| "a duration like 90s, 10m or 1h30m is expected".to_owned())
}
