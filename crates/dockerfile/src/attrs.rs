//! The options of the `dockerfile.v0` frontend as they come in a request (features 6.5).

use std::collections::BTreeMap;
use std::str::FromStr;

use base64::Engine as _;
use kiln_llb::Definition;
use kiln_llb::builder::ResolveMode;
use kiln_llb::op::{HostIp, NetMode, Ulimit};
use kiln_llb::pb::LinuxResources;
use kiln_oci::{ImageConfig, Platform};

use crate::context::MainContext;
use crate::diag::{DockerfileError, Fault, Outcome};
use crate::gofmt::{parse_bool, quote};
use crate::lex::csv;
use crate::options::{BuildOptions, Input, NoCache};

/// A request's options, read and checked.
#[derive(Debug, Clone, Default)]
pub struct FrontendOptions {
    /// Options that are the same for all platforms; see [`FrontendOptions::for_platform`].
    pub build: BuildOptions,
    /// Platforms that were asked for; empty for the builder's own.
    pub platforms: Vec<Platform>,
    /// Path of the Dockerfile in its directory.
    pub filename: String,
    /// Value of the `context` option: a git or HTTP address, or empty.
    pub context: String,
    /// Session-local name of the main context.
    pub context_local: String,
    /// Session-local name of the Dockerfile's directory.
    pub dockerfile_local: String,
    /// The Dockerfile comes from its own directory even when the context is remote.
    pub force_local_dockerfile: bool,
    pub context_subdir: Option<String>,
    /// `BUILDKIT_CONTEXT_KEEP_GIT_DIR`.
    pub keep_git_dir: bool,
    /// The subrequest, such as `frontend.lint`; none for a build.
    pub request_id: Option<String>,
    /// Capabilities the client insists on.
    pub caps: Vec<String>,
    /// Caches of registries to import, by the option of older clients. Those of `cache-imports` are in the request itself.
    pub cache_from: Vec<String>,
    /// Attestations by type, with their attributes as one text.
    pub attestations: BTreeMap<String, String>,
    /// The frontend that `BUILDKIT_SYNTAX` asks for instead of the file's directive.
    pub syntax: Option<String>,
    /// `input-metadata:` by input name.
    input_configs: BTreeMap<String, ImageConfig>,
}

impl FrontendOptions {
    /// Reads the options of a request from `session` to a builder for these platforms.
    ///
    /// # Errors
    /// A value of the wrong form, or options that contradict each other.
    pub fn parse(
        attrs: &BTreeMap<String, String>,
        session: &str,
        build_platforms: Vec<Platform>,
    ) -> Result<Self, DockerfileError> {
        Ok(Self::read(attrs, session, build_platforms)?)
    }

    fn read(attrs: &BTreeMap<String, String>, session: &str, build_platforms: Vec<Platform>) -> Outcome<Self> {
        refuse_removed(attrs)?;
        let text = |key: &str| attrs.get(key).cloned().unwrap_or_default();
        let or = |key: &str, default: &str| attrs.get(key).filter(|v| !v.is_empty()).map_or(default, |v| v).to_owned();
        let platforms = platforms(&text("platform"))?;
        let build = BuildOptions {
            target: attrs.get("target").filter(|t| !t.is_empty()).cloned(),
            build_args: family(attrs, "build-arg:"),
            labels: family(attrs, "label:"),
            multi_platform: multi_platform(attrs, platforms.len())?,
            contexts: family(attrs, "context:"),
            shared_keys: family(attrs, "sharedkey:localdir:"),
            session: session.to_owned(),
            local_sessions: family(attrs, "local-sessionid:"),
            no_cache: no_cache(attrs.get("no-cache")),
            network: network(&text("force-network-mode"))?,
            extra_hosts: extra_hosts(&text("add-hosts")).map_err(wrap("failed to parse additional hosts"))?,
            shm_size: number(&text("shm-size")).map_err(wrap("failed to parse shm size"))?,
            ulimits: ulimits(&text("ulimit")).map_err(wrap("failed to parse ulimit"))?,
            cgroup_parent: text("cgroup-parent"),
            hostname: or("build-arg:BUILDKIT_SANDBOX_HOSTNAME", &text("hostname")),
            linux_resources: resources(attrs).map_err(wrap("failed to parse resource limits"))?,
            resolve_mode: resolve_mode(&text("image-resolve-mode"))?,
            cache_namespace: text("build-arg:BUILDKIT_CACHE_MOUNT_NS"),
            check: attrs.get("build-arg:BUILDKIT_DOCKERFILE_CHECK").cloned(),
            build_platforms,
            ..BuildOptions::default()
        };
        if let Some(check) = &build.check {
            crate::lint::Config::parse(check)
                .map_err(|e| Fault::new(format!("failed to parse build-arg:BUILDKIT_DOCKERFILE_CHECK: {e}")))?;
        }
        Ok(Self {
            build,
            platforms,
            filename: or("filename", "Dockerfile"),
            context: text(&or("contextkey", "context")),
            context_local: "context".into(),
            dockerfile_local: or("dockerfilekey", "dockerfile"),
            force_local_dockerfile: attrs.contains_key("dockerfilekey"),
            context_subdir: attrs.get("contextsubdir").filter(|s| !s.is_empty()).cloned(),
            keep_git_dir: parse_bool(&text("build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR")) == Some(true),
            request_id: attrs.get("requestid").filter(|r| !r.is_empty()).cloned(),
            caps: text("frontend.caps").split(',').filter(|c| !c.is_empty()).map(str::to_owned).collect(),
            cache_from: cache_from(attrs)?,
            attestations: family(attrs, "attest:"),
            syntax: attrs.get("build-arg:BUILDKIT_SYNTAX").filter(|s| !s.is_empty()).cloned(),
            input_configs: input_configs(attrs)?,
        })
    }

    /// Returns the main context: remote when the `context` option is an address, else a local directory.
    ///
    /// For a download the caller must find out whether it is an archive.
    ///
    /// # Errors
    /// A bad git address.
    pub fn main_context(&self) -> Result<MainContext, DockerfileError> {
        let epoch = self.build.build_args.get("SOURCE_DATE_EPOCH").is_some_and(|e| !e.is_empty());
        Ok(match MainContext::detect(&self.context)? {
            Some(MainContext::Git(mut git)) => {
                git.keep_git_dir = self.keep_git_dir;
                git.commit_mtime = epoch;
                git.scope.clone_from(&self.context_subdir);
                MainContext::Git(git)
            }
            Some(MainContext::Http { url, archive, .. }) => {
                MainContext::Http { url, archive, subdir: self.context_subdir.clone() }
            }
            Some(other) => other,
            None => MainContext::Local { name: self.context_local.clone() },
        })
    }

    /// Returns the options for one platform; none for a build that names no platform.
    pub fn for_platform(&self, platform: Option<&Platform>) -> BuildOptions {
        BuildOptions { target_platform: platform.cloned(), ..self.build.clone() }
    }

    /// Adds graphs that the client gave as inputs, with the image configs among the options.
    pub fn add_inputs(&mut self, inputs: BTreeMap<String, Definition>) {
        for (name, definition) in inputs {
            let config = self.input_configs.get(&name).cloned();
            self.build.inputs.insert(name, Input { definition, config });
        }
    }
}

fn wrap(what: &'static str) -> impl Fn(Fault) -> Fault {
    move |fault| Fault { message: format!("{what}: {}", fault.message), ..fault }
}

fn refuse_removed(attrs: &BTreeMap<String, String>) -> Outcome<()> {
    if attrs.get("override-copy-image").is_some_and(|v| !v.is_empty()) {
        return Err(Fault::new("support for \"override-copy-image\" was removed in BuildKit 0.11"));
    }
    let disabled = attrs.get("build-arg:BUILDKIT_DISABLE_FILEOP").and_then(|v| parse_bool(v));
    if disabled == Some(true) {
        return Err(Fault::new("support for \"BUILDKIT_DISABLE_FILEOP\" build-arg was removed in BuildKit 0.11"));
    }
    Ok(())
}

/// Returns the options that begin with `prefix`, without it.
fn family(attrs: &BTreeMap<String, String>, prefix: &str) -> BTreeMap<String, String> {
    attrs.iter().filter_map(|(k, v)| Some((k.strip_prefix(prefix)?.to_owned(), v.clone()))).collect()
}

fn platforms(text: &str) -> Outcome<Vec<Platform>> {
    text.split(',')
        .filter(|_| !text.is_empty())
        .map(|p| Platform::parse(p).map_err(|e| Fault::new(format!("failed to parse target platform {p}: {e}"))))
        .collect()
}

fn multi_platform(attrs: &BTreeMap<String, String>, count: usize) -> Outcome<bool> {
    let given = ["build-arg:BUILDKIT_MULTI_PLATFORM", "multi-platform"];
    let Some(text) = given.iter().find_map(|k| attrs.get(*k).filter(|v| !v.is_empty())) else { return Ok(count > 1) };
    let wanted =
        parse_bool(text).ok_or_else(|| Fault::new(format!("invalid boolean value for multi-platform: {text}")))?;
    if !wanted && count > 1 {
        return Err(Fault::new("conflicting config: returning multiple target platforms is not allowed"));
    }
    Ok(wanted)
}

fn no_cache(value: Option<&String>) -> NoCache {
    match value.map(String::as_str) {
        None => NoCache::None,
        Some("") => NoCache::All,
        Some(stages) => NoCache::Stages(stages.split(',').map(str::to_owned).collect()),
    }
}

fn network(text: &str) -> Outcome<NetMode> {
    match text {
        "" | "sandbox" => Ok(NetMode::Unset),
        "none" => Ok(NetMode::None),
        "host" => Ok(NetMode::Host),
        _ => Err(Fault::new(format!("invalid netmode {text}")).hint("known: sandbox, host, none")),
    }
}

fn resolve_mode(text: &str) -> Outcome<ResolveMode> {
    match text {
        "" | "default" => Ok(ResolveMode::Default),
        "pull" => Ok(ResolveMode::Pull),
        "local" => Ok(ResolveMode::Local),
        _ => Err(Fault::new(format!("invalid image-resolve-mode: {text}")).hint("known: default, pull, local")),
    }
}

fn list(text: &str) -> Outcome<Vec<String>> {
    if text.is_empty() { Ok(Vec::new()) } else { csv::fields(text).map_err(Fault::new) }
}

fn extra_hosts(text: &str) -> Outcome<Vec<HostIp>> {
    let mut out = Vec::new();
    for field in list(text)? {
        let field = field.to_lowercase();
        let (host, ip) = field.split_once('=').ok_or_else(|| Fault::new(format!("invalid key-value pair {field}")))?;
        let ip = std::net::IpAddr::from_str(ip).map_err(|_| Fault::new(format!("failed to parse IP {ip}")))?;
        out.push(HostIp { host: host.to_owned(), ip: ip.to_string() });
    }
    Ok(out)
}

fn number<T: FromStr + Default>(text: &str) -> Outcome<T> {
    if text.is_empty() {
        return Ok(T::default());
    }
    text.parse().map_err(|_| Fault::new(format!("{} is no number", quote(text))))
}

const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

fn ulimits(text: &str) -> Outcome<Vec<Ulimit>> {
    let mut out = Vec::new();
    for field in list(text)? {
        let (name, value) =
            field.split_once('=').ok_or_else(|| Fault::new(format!("invalid ulimit argument: {field}")))?;
        if !ULIMITS.contains(&name) {
            return Err(Fault::new(format!("invalid ulimit type: {name}")).did_you_mean(name, ULIMITS));
        }
        let (soft, hard) = value.split_once(':').unwrap_or((value, value));
        let (soft, hard): (i64, i64) = (number(soft)?, number(hard)?);
        if hard != -1 && (soft == -1 || soft > hard) {
            return Err(Fault::new(format!(
                "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
            )));
        }
        out.push(Ulimit { name: name.to_owned(), soft, hard });
    }
    Ok(out)
}

fn resources(attrs: &BTreeMap<String, String>) -> Outcome<Option<LinuxResources>> {
    let positive = |key: &str, unlimited: bool| -> Outcome<i64> {
        let Some(text) = attrs.get(key).filter(|v| !v.is_empty()) else { return Ok(0) };
        let invalid = |why: &str| Fault::new(format!("invalid {key} value: {text}{why}"));
        let value: i64 = text.parse().map_err(|_| invalid(""))?;
        match value {
            1.. => Ok(value),
            -1 if unlimited => Ok(value),
            _ if unlimited => Err(invalid(": must be -1 (unlimited) or > 0")),
            _ => Err(invalid(": must be > 0")),
        }
    };
    let unsigned = |key: &str| positive(key, false).map(i64::unsigned_abs);
    let set = |key: &str| -> Outcome<String> {
        let text = attrs.get(key).cloned().unwrap_or_default();
        if valid_cpuset(&text) { Ok(text) } else { Err(Fault::new(format!("invalid {key} value: {text}"))) }
    };
    let out = LinuxResources {
        memory: positive("memory", false)?,
        memory_swap: positive("memswap", true)?,
        cpu_shares: unsigned("cpushares")?,
        cpu_period: unsigned("cpuperiod")?,
        cpu_quota: positive("cpuquota", false)?,
        cpuset_cpus: set("cpusetcpus")?,
        cpuset_mems: set("cpusetmems")?,
    };
    Ok((out != LinuxResources::default()).then_some(out))
}

/// Accepts `0-3,5`.
fn valid_cpuset(text: &str) -> bool {
    let index = |t: &str| t.trim().parse::<u16>().ok().filter(|&n| n <= 8192);
    text.split(',').map(str::trim).filter(|p| !p.is_empty()).all(|part| match part.split_once('-') {
        Some((low, high)) => matches!((index(low), index(high)), (Some(low), Some(high)) if low <= high),
        None => index(part).is_some(),
    })
}

/// Returns the references of `cache-from`. The list of `cache-imports` is checked only.
fn cache_from(attrs: &BTreeMap<String, String>) -> Outcome<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(rename = "Type", default)]
        _kind: String,
        #[serde(rename = "Attrs", default)]
        _attrs: Option<BTreeMap<String, String>>,
    }
    if let Some(text) = attrs.get("cache-imports").filter(|t| !t.is_empty()) {
        let checked: Result<Vec<Entry>, _> = serde_json::from_str(text);
        checked.map_err(|e| Fault::new(format!("failed to unmarshal cache-imports ({}): {e}", quote(text))))?;
    }
    let references = attrs.get("cache-from").map_or("", String::as_str).split(',').filter(|name| !name.is_empty());
    Ok(references.map(str::to_owned).collect())
}

/// Reads `input-metadata:<name>`: a JSON object of base64 texts, one of which is the image config.
fn input_configs(attrs: &BTreeMap<String, String>) -> Outcome<BTreeMap<String, ImageConfig>> {
    let mut out = BTreeMap::new();
    for (name, text) in family(attrs, "input-metadata:") {
        let bad = |e: String| Fault::new(format!("failed to parse input metadata {text}: {e}"));
        let map: BTreeMap<String, String> = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
        let Some(encoded) = map.get("containerimage.config") else { continue };
        let json = base64::engine::general_purpose::STANDARD.decode(encoded).map_err(|e| bad(e.to_string()))?;
        out.insert(name, ImageConfig::from_json(&json).map_err(|e| bad(e.to_string()))?);
    }
    Ok(out)
}

#[cfg(test)]
#[path = "attrs_tests.rs"]
mod tests;
