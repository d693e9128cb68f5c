//! The flags of `kiln build`, as written; `options.rs` gives them meaning.

use clap::{ArgAction, Args};

use crate::env::parse_bool;

/// Arguments of `kiln build`.
#[derive(Clone, Debug, Default, Args)]
#[command(override_usage = "kiln build [OPTIONS] PATH | URL | -", args_override_self = true)]
pub struct BuildFlags {
    /// Build context: a directory, a git or http(s) URL, or `-` for a Dockerfile or an archive on standard input
    #[arg(value_name = "PATH")]
    pub context: Vec<String>,

    /// Add a host to /etc/hosts of the steps (host:ip or host=ip)
    #[arg(long, value_name = "HOST:IP", allow_hyphen_values = true)]
    pub add_host: Vec<String>,
    /// Allow extra privileges ("network.host", "security.insecure")
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    pub allow: Vec<String>,
    /// Annotate the image ([TYPE[,TYPE]:]NAME=VALUE; types: manifest, manifest-descriptor, index, index-descriptor)
    #[arg(long, value_name = "ANNOTATION", allow_hyphen_values = true)]
    pub annotation: Vec<String>,
    /// Set a build-time variable
    #[arg(long, value_name = "NAME[=VALUE]", allow_hyphen_values = true)]
    pub build_arg: Vec<String>,
    /// Make the host's extra CA certificates visible to steps: `auto`, or a PEM file
    #[arg(long, value_name = "auto|FILE", env = "KILN_BUILD_CA", hide_env_values = true, allow_hyphen_values = true)]
    pub build_ca: Option<String>,
    /// Add a build context (name=path, name=docker-image://ref, name=oci-layout://path[:tag][@digest])
    #[arg(long, value_name = "NAME=VALUE", allow_hyphen_values = true)]
    pub build_context: Vec<String>,
    /// Answer a question instead of building: check, outline, targets (…,format=json, …,ignorestatus=true)
    #[arg(long, value_name = "METHOD", alias = "print", allow_hyphen_values = true)]
    pub call: Option<String>,
    /// Read cache from elsewhere (a reference, or type=local,src=DIR)
    #[arg(long, value_name = "CACHE", allow_hyphen_values = true)]
    pub cache_from: Vec<String>,
    /// Write cache elsewhere (a reference, or type=local,dest=DIR)
    #[arg(long, value_name = "CACHE", allow_hyphen_values = true)]
    pub cache_to: Vec<String>,
    /// Look for what is wrong with the Dockerfile instead of building: --call=check
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean, action = ArgAction::Set, value_name = "BOOL", hide_possible_values = true)]
    pub check: Option<bool>,
    /// Name of the Dockerfile (default PATH/Dockerfile); `-` for standard input
    #[arg(long, short = 'f', value_name = "FILE", allow_hyphen_values = true)]
    pub file: Option<String>,
    /// Write the image ID to a file
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub iidfile: Option<String>,
    /// Set a label of the image
    #[arg(long, value_name = "NAME=VALUE", allow_hyphen_values = true)]
    pub label: Vec<String>,
    /// Hand the image to the docker engine, or keep it in kiln's image store where there is none
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean, action = ArgAction::Set, value_name = "BOOL", hide_possible_values = true)]
    pub load: Option<bool>,
    /// Run steps again whose results are older than this (units s, m, h, d, w; for example 7d)
    #[arg(long, value_name = "AGE", value_parser = age)]
    pub max_age: Option<u64>,
    /// Write metadata of the result to a file, as JSON
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub metadata_file: Option<String>,
    /// Network of RUN steps: default, host or none
    #[arg(long, value_name = "MODE", default_value = "default", hide_default_value = true)]
    pub network: String,
    /// Do not use the cache of steps; cache mounts stay. `mounts`: empty the cache mounts and run the steps that have them
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = no_cache, action = ArgAction::Set, value_name = "BOOL|mounts")]
    pub no_cache: Option<NoCache>,
    /// Do not use the cache for these stages
    #[arg(long, value_name = "STAGE", allow_hyphen_values = true)]
    pub no_cache_filter: Vec<String>,
    /// Build without the network: base images, repositories and downloads are those of earlier builds. RUN steps keep theirs
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean, action = ArgAction::Set, value_name = "BOOL", hide_possible_values = true)]
    pub offline: Option<bool>,
    /// Where the result goes (type=oci|docker|tar|local|image|registry|cacheonly, dest=PATH; a bare PATH is type=local)
    #[arg(long, short = 'o', value_name = "OUTPUT", allow_hyphen_values = true)]
    pub output: Vec<String>,
    /// Platform to build for
    #[arg(long, value_name = "PLATFORM", allow_hyphen_values = true)]
    pub platform: Vec<String>,
    /// How progress is shown: auto, none, plain, quiet, rawjson, tty
    #[arg(long, value_name = "MODE", allow_hyphen_values = true)]
    pub progress: Option<String>,
    /// Record how the image was built (mode=min|max; false for none)
    #[arg(long, value_name = "VALUE", allow_hyphen_values = true)]
    pub provenance: Option<String>,
    /// Always ask the registry for base images
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean, action = ArgAction::Set, value_name = "BOOL")]
    pub pull: Option<bool>,
    /// Push the image to its registry
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean, action = ArgAction::Set, value_name = "BOOL", hide_possible_values = true)]
    pub push: Option<bool>,
    /// Show nothing but the image ID
    #[arg(long, short = 'q', num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean, action = ArgAction::Set, value_name = "BOOL")]
    pub quiet: Option<bool>,
    /// Attach a bill of materials (generator=IMAGE; false for none)
    #[arg(long, value_name = "VALUE", allow_hyphen_values = true)]
    pub sbom: Option<String>,
    /// Give a secret to the build (id=ID[,src=FILE | ,env=NAME])
    #[arg(long, value_name = "SECRET", allow_hyphen_values = true)]
    pub secret: Vec<String>,
    /// Size of /dev/shm in RUN steps
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub shm_size: Option<String>,
    /// Give an SSH agent or keys to the build (default | ID[=SOCKET|KEY[,KEY]])
    #[arg(long, value_name = "SSH", allow_hyphen_values = true)]
    pub ssh: Vec<String>,
    /// Name of the image ([registry/]repository[:tag])
    #[arg(long, short = 't', value_name = "NAME", allow_hyphen_values = true)]
    pub tag: Vec<String>,
    /// Stage to build
    #[arg(long, value_name = "STAGE", allow_hyphen_values = true)]
    pub target: Option<String>,
    /// Say of each step that runs why it was not cached
    #[arg(long, action = ArgAction::SetTrue)]
    pub why: bool,
    /// Resource limit of RUN steps (name=soft[:hard])
    #[arg(long, value_name = "LIMIT", allow_hyphen_values = true)]
    pub ulimit: Vec<String>,
}

/// What `--no-cache` keeps from being used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoCache {
    /// Nothing.
    Nothing,
    /// Results of steps.
    Steps,
    /// Cache mounts, and results that were made with them.
    Mounts,
}

fn no_cache(text: &str) -> Result<NoCache, String> {
    match (text, parse_bool(text)) {
        ("mounts", _) => Ok(NoCache::Mounts),
        (_, Some(true)) => Ok(NoCache::Steps),
        (_, Some(false)) => Ok(NoCache::Nothing),
        _ => Err("true, false or mounts is expected".to_owned()),
    }
}

fn age(text: &str) -> Result<u64, String> {
    kiln_stdx::age::parse(text).ok_or_else(|| kiln_stdx::age::EXPECTED.to_owned())
}

fn boolean(text: &str) -> Result<bool, String> {
    parse_bool(text).ok_or_else(|| "true or false is expected".to_owned())
}
