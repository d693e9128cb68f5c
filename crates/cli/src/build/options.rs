//! The meaning of the flags of `kiln build`: parsed values, without a look at the build context.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kiln_oci::{Platform, Reference};

use super::cache::{self, CacheEntry};
use super::cache_env;
use super::call::Call;
use super::flags::{BuildFlags, NoCache};
use super::limits::{extra_hosts, ulimits};
use super::output::{self, Output, Wishes};
use super::secret::{self, SecretSpec, SshSpec};
use super::{annotation, ca, csv, proxy};
use crate::env::{Env, parse_bool};
use crate::error::CliError;
use crate::progress::{Mode, ProgressEnv};
use crate::units::parse_size;

/// A build as asked for.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The context argument.
    pub context: String,
    /// What is asked in place of a build.
    pub call: Option<Call>,
    /// Say why steps ran.
    pub why: bool,
    /// Value of `--file`.
    pub file: Option<String>,
    /// Image names, in their familiar form with a tag.
    pub tags: Vec<String>,
    /// Stage to build.
    pub target: Option<String>,
    /// Build arguments with values.
    pub build_args: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Value of the frontend option `no-cache`: empty for all stages.
    pub no_cache: Option<String>,
    /// How old results of steps may be, in seconds.
    pub max_age: Option<u64>,
    /// Whether cache mounts are emptied.
    pub empty_mounts: bool,
    /// Whether sources come from what the engine has.
    pub offline: bool,
    /// Whether base images are always resolved anew.
    pub pull: bool,
    /// The platform to build for; the engine's own when absent.
    pub platform: Option<Platform>,
    /// Where the result goes.
    pub outputs: Vec<Output>,
    /// Attributes that annotate image outputs.
    pub annotations: BTreeMap<String, String>,
    /// Secrets.
    pub secrets: Vec<SecretSpec>,
    /// SSH agents and keys.
    pub ssh: Vec<SshSpec>,
    /// Value of the frontend option `add-hosts`; empty for none.
    pub add_hosts: String,
    /// Value of the frontend option `force-network-mode`.
    pub network: Option<String>,
    /// Bytes of /dev/shm.
    pub shm_size: Option<u64>,
    /// Value of the frontend option `ulimit`; empty for none.
    pub ulimits: String,
    /// Named contexts, by normalised name.
    pub contexts: BTreeMap<String, String>,
    /// CA certificates for steps.
    pub build_ca: Option<ca::BuildCa>,
    /// Attestations by type; none for one that is switched off.
    pub attests: BTreeMap<&'static str, Option<String>>,
    /// Cache imports.
    pub cache_from: Vec<CacheEntry>,
    /// Cache exports.
    pub cache_to: Vec<CacheEntry>,
    /// Entitlements.
    pub allow: Vec<String>,
    /// How progress is shown.
    pub mode: Mode,
    /// Where the image id goes.
    pub iidfile: Option<PathBuf>,
    /// Where the metadata goes.
    pub metadata_file: Option<PathBuf>,
}

impl BuildOptions {
    /// Checks the flags against each other and against the environment.
    pub fn new(flags: BuildFlags, env: &Env, progress: &ProgressEnv) -> Result<BuildOptions, CliError> {
        let mode = Mode::choose(flags.progress.as_deref(), flags.quiet.unwrap_or(false), progress)?;
        let context = context_argument(&flags.context)?;
        let check = flags.check.unwrap_or(false).then_some("check");
        let call = Call::parse(check.or(flags.call.as_deref()).unwrap_or_default())?;
        let mut build_args = pairs(&flags.build_arg, |name| env.var(name).map(str::to_owned))?;
        if let Some(epoch) = env.var("SOURCE_DATE_EPOCH").filter(|v| !v.is_empty()) {
            build_args.entry("SOURCE_DATE_EPOCH".to_owned()).or_insert_with(|| epoch.to_owned());
        }
        proxy::add(&mut build_args, env);
        let wishes = Wishes { push: flags.push.unwrap_or(false), load: flags.load.unwrap_or(false) };
        let outputs = output::parse(&flags.output, wishes, env)?;
        if flags.iidfile.is_some() && outputs.iter().any(|o| matches!(o.kind.as_str(), "local" | "tar")) {
            return Err(CliError::user("local and tar exporters are incompatible with image ID file"));
        }
        let asked = flags.no_cache.unwrap_or(NoCache::Nothing);
        let no_cache = match (asked == NoCache::Steps, flags.no_cache_filter.is_empty()) {
            (true, false) => {
                return Err(CliError::user("--no-cache and --no-cache-filter cannot currently be used together"));
            }
            (true, true) => Some(String::new()),
            (false, false) => Some(flags.no_cache_filter.join(",")),
            (false, true) => None,
        };
        let (offline, pull) = (flags.offline.unwrap_or(false), flags.pull.unwrap_or(false));
        if offline && pull {
            return Err(CliError::user("--offline and --pull contradict each other")
                .hint("--offline takes base images as they are here, --pull asks the registry for newer ones"));
        }
        Ok(BuildOptions {
            context,
            call,
            why: flags.why,
            file: flags.file.filter(|f| !f.is_empty()),
            tags: tags(&flags.tag)?,
            target: flags.target.filter(|t| !t.is_empty()),
            build_args,
            labels: pairs(&flags.label, |_| Some(String::new()))?,
            no_cache,
            max_age: flags.max_age,
            empty_mounts: asked == NoCache::Mounts,
            offline,
            pull,
            platform: platform(&flags.platform, env)?,
            outputs,
            annotations: annotation::attributes(&flags.annotation)?,
            secrets: secret::parse_secrets(&flags.secret, env)?,
            ssh: secret::parse_ssh(&flags.ssh, env)?,
            add_hosts: extra_hosts(&flags.add_host)?,
            network: network(&flags.network)?,
            shm_size: shm_size(flags.shm_size.as_deref())?,
            ulimits: ulimits(&flags.ulimit)?,
            contexts: named_contexts(&flags.build_context)?,
            build_ca: flags.build_ca.as_deref().map(|v| ca::parse(v, env)).transpose()?.flatten(),
            attests: attests(flags.provenance.as_deref(), flags.sbom.as_deref())?,
            cache_from: cache_env::fill(cache::parse(&flags.cache_from)?, env),
            cache_to: cache_env::fill(cache::parse(&flags.cache_to)?, env),
            allow: flags.allow,
            mode,
            iidfile: plain_file(flags.iidfile, env, "image ID file")?,
            metadata_file: plain_file(flags.metadata_file, env, "metadata file")?,
        })
    }
}

fn context_argument(values: &[String]) -> Result<String, CliError> {
    match values {
        [one] if !one.is_empty() => Ok(one.clone()),
        [] | [_] => Err(CliError::user("please specify build context (e.g. \".\" for the current directory)")
            .hint("kiln build [OPTIONS] PATH | URL | -")),
        many => Err(CliError::user(format!("\"kiln build\" requires 1 argument, but {} were given", many.len()))
            .hint(format!("the build context is one of {}; quote values that hold spaces", many.join(", ")))),
    }
}

/// Parses `NAME=VALUE` items; `default` gives the value of a bare name, or none to leave it out.
fn pairs(items: &[String], default: impl Fn(&str) -> Option<String>) -> Result<BTreeMap<String, String>, CliError> {
    let mut out = BTreeMap::new();
    for item in items {
        let (name, value) = match item.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (item.as_str(), default(item)),
        };
        if name.is_empty() {
            return Err(CliError::user(format!("invalid key-value pair \"{item}\": empty key")));
        }
        if let Some(value) = value {
            out.insert(name.to_owned(), value);
        }
    }
    Ok(out)
}

fn tags(values: &[String]) -> Result<Vec<String>, CliError> {
    let mut out = Vec::new();
    for value in values.iter().filter(|v| !v.is_empty()) {
        let reference = Reference::parse(value).map_err(|e| CliError::user(format!("invalid tag \"{value}\": {e}")))?;
        if reference.digest().is_some() {
            return Err(CliError::user(format!("invalid tag \"{value}\": a name with a digest cannot be given")));
        }
        out.push(value.clone());
    }
    Ok(out)
}

fn platform(values: &[String], env: &Env) -> Result<Option<Platform>, CliError> {
    let default = env.var("DOCKER_DEFAULT_PLATFORM").filter(|_| values.is_empty());
    let given = values.iter().map(String::as_str).chain(default).flat_map(|v| v.split(','));
    let mut found = None;
    for text in given.map(str::trim).filter(|t| !t.is_empty()) {
        let platform = Platform::parse(text).map_err(|_| {
            CliError::user(format!("invalid platform \"{text}\""))
                .hint("write a platform as os/arch[/variant], for example linux/arm64")
        })?;
        if found.as_ref().is_some_and(|f| *f != platform) {
            return Err(CliError::user("building for several platforms at once is not supported")
                .hint("give one --platform, and build once for each"));
        }
        found = Some(platform);
    }
    Ok(found)
}

fn network(mode: &str) -> Result<Option<String>, CliError> {
    match mode {
        "" | "default" => Ok(None),
        "host" | "none" => Ok(Some(mode.to_owned())),
        other => Err(CliError::user(format!(
            "network mode \"{other}\" not supported by buildkit - you can define a custom network for your builder using the network driver-opt in buildx create"
        ))
        .nearest("network mode", other, ["default", "host", "none"].into_iter())),
    }
}

fn shm_size(value: Option<&str>) -> Result<Option<u64>, CliError> {
    let Some(text) = value.filter(|v| !v.is_empty()) else { return Ok(None) };
    let bytes = parse_size(text, 1024).map_err(|e| CliError::user(format!("invalid --shm-size: {e}")))?;
    Ok(Some(bytes).filter(|&b| b > 0))
}

fn named_contexts(values: &[String]) -> Result<BTreeMap<String, String>, CliError> {
    let mut out = BTreeMap::new();
    for value in values.iter().filter(|v| !v.is_empty()) {
        let Some((name, place)) = value.split_once('=') else {
            return Err(CliError::user(format!("invalid context value: {value}, expected key=value")));
        };
        let reference =
            Reference::parse(name).map_err(|e| CliError::user(format!("invalid context name {name}: {e}")))?.familiar();
        let name = reference.strip_suffix(":latest").unwrap_or(&reference).to_owned();
        if place.is_empty() {
            return Err(CliError::user(format!("invalid context value: {value}, the value is empty")));
        }
        out.insert(name, place.to_owned());
    }
    Ok(out)
}

fn attests(provenance: Option<&str>, sbom: Option<&str>) -> Result<BTreeMap<&'static str, Option<String>>, CliError> {
    let mut out = BTreeMap::new();
    for (name, value) in [("provenance", provenance), ("sbom", sbom)] {
        let Some(value) = value.filter(|v| !v.is_empty()) else { continue };
        let parsed = match parse_bool(value) {
            Some(on) => on.then(String::new),
            None => {
                let fields = csv::fields(value).map_err(|e| CliError::user(format!("invalid --{name}: {e}")))?;
                if let Some(bad) = fields.iter().find(|f| !f.contains('=')) {
                    return Err(CliError::user(format!("invalid value {bad}"))
                        .hint(format!("write --{name}=true, --{name}=false or --{name}=NAME=VALUE[,...]")));
                }
                let off = fields.iter().any(|f| f.strip_prefix("disabled=").and_then(parse_bool) == Some(true));
                (!off).then(|| value.to_owned())
            }
        };
        out.insert(name, parsed);
    }
    Ok(out)
}

fn plain_file(value: Option<String>, env: &Env, what: &str) -> Result<Option<PathBuf>, CliError> {
    let Some(value) = value.filter(|v| !v.is_empty()) else { return Ok(None) };
    let path = env.cwd().join(&value);
    output::writable_file(&path, &value, what)?;
    Ok(Some(path))
}

#[cfg(test)]
mod tests;
