//! The frontend options of a request (BuildKit's `dockerfile.v0` names) as the compiler's build options.

use std::collections::BTreeMap;

use kiln_dockerfile::{BuildOptions, Input, MainContext, NoCache};
use kiln_llb::Definition;
use kiln_llb::builder::ResolveMode;
use kiln_llb::op::{HostIp, NetMode, Ulimit};
use kiln_llb::pb::LinuxResources;
use kiln_oci::{ImageConfig, Platform};

use crate::bridge::Bridge;
use crate::error::{EngineError, Unsupported};
use crate::inspect;
use crate::request::{CacheSpec, FrontendRequest};

type Attrs = BTreeMap<String, String>;

/// What callers may rely on (`frontend.caps`).
const CAPS: [&str; 4] = [
    "moby.buildkit.frontend.inputs",
    "moby.buildkit.frontend.subrequests",
    "moby.buildkit.frontend.contexts",
    "moby.buildkit.frontend.gitquerystring",
];

/// Bytes of a remote context that tell what it is.
const PROBE: u64 = 1024;

/// Where Dockerfile and context come from.
pub struct Files {
    /// Session-local name of the Dockerfile's directory.
    pub dockerfile_local: String,
    pub session: String,
    /// Path of the Dockerfile in its directory.
    pub name: String,
    pub context: MainContext,
    /// Text of the ignore file beside the Dockerfile.
    pub own_ignore: Option<Vec<u8>>,
    /// The caller names the directory that the Dockerfile is in, so it is not looked for in a remote context.
    pub dockerfile_is_local: bool,
    dockerfile: Option<Definition>,
    /// Sessions of single directories, by the directory's name.
    sessions: Attrs,
}

fn text<'a>(attrs: &'a Attrs, name: &str) -> Option<&'a str> {
    attrs.get(name).map(String::as_str).filter(|v| !v.is_empty())
}

impl Files {
    /// Reads the options that name files.
    ///
    /// # Errors
    /// A context address with bad parameters.
    pub fn new(request: &FrontendRequest, session: &str) -> Result<Self, EngineError> {
        let attrs = &request.attrs;
        let local = text(attrs, "contextkey").unwrap_or("context").to_owned();
        let dockerfile_local = text(attrs, "dockerfilekey").unwrap_or("dockerfile").to_owned();
        if let Some(name) = [&local, &dockerfile_local].into_iter().find(|name| is_nil(request.inputs.get(*name))) {
            let text = format!("input {name}: invalid nil input definition to definition op");
            return Err(EngineError::user(text));
        }
        // A graph that the caller hands in stands for the directory of its name.
        let mut context = match request.inputs.get(&local) {
            Some(definition) => MainContext::Graph { definition: definition.clone(), subdir: None },
            None => MainContext::Local { name: local },
        };
        let local = text(attrs, "contextkey").unwrap_or("context");
        if let Some(address) = text(attrs, local).or_else(|| text(attrs, "context")) {
            let found = MainContext::detect(address).map_err(|e| EngineError::user(e.to_string()))?;
            context = found.unwrap_or(context);
        }
        settle(&mut context, attrs);
        Ok(Self {
            dockerfile: request.inputs.get(&dockerfile_local).cloned(),
            dockerfile_is_local: text(attrs, "dockerfilekey").is_some(),
            dockerfile_local,
            session: session.to_owned(),
            name: text(attrs, "filename").unwrap_or("Dockerfile").to_owned(),
            context,
            own_ignore: None,
            sessions: attrs
                .iter()
                .filter_map(|(k, v)| Some((k.strip_prefix("local-sessionid:")?.to_owned(), v.clone())))
                .collect(),
        })
    }

    /// Returns the session that gives a directory.
    pub fn session_of(&self, local: &str) -> &str {
        self.sessions.get(local).unwrap_or(&self.session)
    }

    /// Returns the graph to read the Dockerfile from, where it is not a directory of the client.
    pub fn dockerfile_graph(&self) -> Option<Definition> {
        self.dockerfile.clone()
    }

    /// Fetches a remote context far enough to know what it is, and returns the graph that holds all of it.
    ///
    /// # Errors
    /// The context cannot be fetched.
    pub async fn resolve_remote(&mut self, bridge: &Bridge) -> Result<Option<Definition>, EngineError> {
        let bad = |e: kiln_dockerfile::DockerfileError| EngineError::user(e.to_string());
        let host = Platform::host();
        // Only an archive has directories in it.
        let unscoped = match &self.context {
            MainContext::Http { url, archive: false, .. } => {
                MainContext::Http { url: url.clone(), archive: false, subdir: None }
            }
            other => other.clone(),
        };
        let Some(definition) = unscoped.definition(&host).map_err(bad)? else { return Ok(None) };
        let MainContext::Http { url, archive, subdir } = &self.context else { return Ok(Some(definition)) };
        if *archive {
            return Ok(Some(definition));
        }
        let reference = bridge.define(definition.clone()).await?;
        let reference = reference.ok_or_else(|| EngineError::user("the build context is empty"))?;
        let layers = bridge.files(&reference).await?;
        let range = inspect::Range { offset: 0, length: PROBE };
        let head = inspect::read_file(bridge.parts(), &layers, "context", Some(range)).await?;
        if kiln_dockerfile::context::is_archive(&head) || head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            self.context = MainContext::Http { url: url.clone(), archive: true, subdir: subdir.clone() };
            return self.context.definition(&host).map_err(bad);
        }
        // The body is the Dockerfile itself, and there is no context beside it.
        self.name = "context".to_owned();
        self.dockerfile = Some(definition.clone());
        Ok(Some(definition))
    }
}

/// Applies the options that say how a context is taken.
fn settle(context: &mut MainContext, attrs: &Attrs) {
    let folder = text(attrs, "contextsubdir").map(str::to_owned);
    match context {
        MainContext::Git(git) => {
            let keep = text(attrs, "build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR");
            git.keep_git_dir = keep.is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "1" | "t" | "true"));
            git.commit_mtime = text(attrs, "build-arg:SOURCE_DATE_EPOCH").is_some();
            git.scope = folder;
        }
        MainContext::Http { subdir, .. } | MainContext::Graph { subdir, .. } => *subdir = folder,
        MainContext::Local { .. } => {}
    }
}

/// Tells whether a graph was handed in that is none at all, which is not the same as an empty file system.
fn is_nil(input: Option<&Definition>) -> bool {
    input.is_some_and(|definition| definition.is_empty())
}

/// Checks that the frontend can do what the caller relies on.
///
/// # Errors
/// It cannot; the error names the capability.
pub fn check_caps(attrs: &Attrs) -> Result<(), EngineError> {
    let list = text(attrs, "frontend.caps").unwrap_or_default();
    match list.split(',').find(|cap| !cap.is_empty() && !CAPS.contains(&cap.trim_end_matches("+forward"))) {
        Some(unknown) => Err(EngineError::unsupported(Unsupported::Capability(unknown.to_owned()))),
        None => Ok(()),
    }
}

/// Returns the caches that an option of older clients names: references, with commas between them.
pub fn cache_from(attrs: &Attrs) -> Vec<CacheSpec> {
    let references = text(attrs, "cache-from").unwrap_or_default().split(',').filter(|name| !name.is_empty());
    let registry = |name: &str| CacheSpec {
        kind: "registry".to_owned(),
        attrs: Attrs::from([("ref".to_owned(), name.to_owned())]),
    };
    references.map(registry).collect()
}

/// Returns the platforms that are asked for, in order; none means the one of the machine.
///
/// # Errors
/// A malformed platform.
pub fn platforms(attrs: &Attrs) -> Result<Vec<Platform>, EngineError> {
    let Some(list) = text(attrs, "platform") else { return Ok(Vec::new()) };
    list.split(',').map(|p| Platform::parse(p.trim()).map_err(|e| EngineError::user(e.to_string()))).collect()
}

/// Returns the compiler's options for a request.
///
/// # Errors
/// A malformed value, with the option's name.
pub fn options(request: &FrontendRequest, files: &Files) -> Result<BuildOptions, EngineError> {
    let attrs = &request.attrs;
    let prefixed = |prefix: &str| -> BTreeMap<String, String> {
        attrs.iter().filter_map(|(k, v)| Some((k.strip_prefix(prefix)?.to_owned(), v.clone()))).collect()
    };
    let build_args = prefixed("build-arg:");
    Ok(BuildOptions {
        target: text(attrs, "target").map(str::to_owned),
        labels: prefixed("label:"),
        contexts: prefixed("context:"),
        inputs: inputs(request)?,
        session: files.session.clone(),
        local_sessions: prefixed("local-sessionid:"),
        shared_keys: prefixed("sharedkey:localdir:"),
        main_context: files.context.clone(),
        no_cache: no_cache(attrs),
        network: network(attrs)?,
        extra_hosts: extra_hosts(attrs)?,
        shm_size: number(attrs, "shm-size")?.unwrap_or(0),
        ulimits: ulimits(attrs)?,
        cgroup_parent: text(attrs, "cgroup-parent").unwrap_or_default().to_owned(),
        hostname: hostname(attrs, &build_args),
        linux_resources: resources(attrs)?,
        resolve_mode: resolve_mode(attrs)?,
        cache_namespace: build_args.get("BUILDKIT_CACHE_MOUNT_NS").cloned().unwrap_or_default(),
        check: build_args.get("BUILDKIT_DOCKERFILE_CHECK").cloned(),
        build_args,
        ..BuildOptions::default()
    })
}

fn hostname(attrs: &Attrs, build_args: &Attrs) -> String {
    let own = build_args.get("BUILDKIT_SANDBOX_HOSTNAME").map(String::as_str);
    own.or_else(|| text(attrs, "hostname")).unwrap_or_default().to_owned()
}

fn inputs(request: &FrontendRequest) -> Result<BTreeMap<String, Input>, EngineError> {
    let mut inputs = BTreeMap::new();
    for (name, definition) in &request.inputs {
        let config = match request.attrs.get(&format!("input-metadata:{name}")) {
            Some(json) => input_config(name, json)?,
            None => None,
        };
        inputs.insert(name.clone(), Input { definition: definition.clone(), config });
    }
    Ok(inputs)
}

/// The metadata of an input is a JSON map of base64 values.
fn input_config(name: &str, json: &str) -> Result<Option<ImageConfig>, EngineError> {
    use base64::Engine as _;
    let bad = |e: String| EngineError::user(format!("input-metadata:{name}: {e}"));
    let map: BTreeMap<String, String> = serde_json::from_str(json).map_err(|e| bad(e.to_string()))?;
    let Some(config) = map.get("containerimage.config") else { return Ok(None) };
    let bytes = base64::engine::general_purpose::STANDARD.decode(config).map_err(|e| bad(e.to_string()))?;
    Ok(Some(ImageConfig::from_json(&bytes)?))
}

fn no_cache(attrs: &Attrs) -> NoCache {
    match attrs.get("no-cache") {
        None => NoCache::None,
        Some(list) if list.is_empty() => NoCache::All,
        Some(list) => NoCache::Stages(list.split(',').map(str::to_owned).collect()),
    }
}

fn network(attrs: &Attrs) -> Result<NetMode, EngineError> {
    match text(attrs, "force-network-mode") {
        None | Some("sandbox" | "default") => Ok(NetMode::Unset),
        Some("host") => Ok(NetMode::Host),
        Some("none") => Ok(NetMode::None),
        Some(other) => Err(EngineError::user(format!("invalid netmode {other}"))),
    }
}

fn resolve_mode(attrs: &Attrs) -> Result<ResolveMode, EngineError> {
    match text(attrs, "image-resolve-mode") {
        None | Some("default") => Ok(ResolveMode::Default),
        Some("pull") => Ok(ResolveMode::Pull),
        Some("local") => Ok(ResolveMode::Local),
        Some(other) => Err(EngineError::user(format!("invalid image-resolve-mode: {other}"))),
    }
}

fn number(attrs: &Attrs, name: &str) -> Result<Option<i64>, EngineError> {
    let Some(value) = text(attrs, name) else { return Ok(None) };
    match value.parse::<i64>() {
        Ok(number) if number >= 0 => Ok(Some(number)),
        _ => Err(EngineError::user(format!("invalid {name}: {value}"))),
    }
}

fn extra_hosts(attrs: &Attrs) -> Result<Vec<HostIp>, EngineError> {
    let Some(list) = text(attrs, "add-hosts") else { return Ok(Vec::new()) };
    list.split(',')
        .map(|entry| {
            let pair = entry.split_once('=').or_else(|| entry.split_once(':'));
            let (host, ip) = pair.ok_or_else(|| EngineError::user(format!("invalid add-hosts entry: {entry}")))?;
            let ip = ip.trim_start_matches('[').trim_end_matches(']');
            Ok(HostIp { host: host.to_owned(), ip: ip.to_owned() })
        })
        .collect()
}

fn ulimits(attrs: &Attrs) -> Result<Vec<Ulimit>, EngineError> {
    let Some(list) = text(attrs, "ulimit") else { return Ok(Vec::new()) };
    list.split(',')
        .map(|entry| {
            let bad = || EngineError::user(format!("invalid ulimit: {entry}"));
            let (name, limits) = entry.split_once('=').ok_or_else(bad)?;
            let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
            let parse = |v: &str| v.parse::<i64>().map_err(|_| bad());
            Ok(Ulimit { name: name.to_owned(), soft: parse(soft)?, hard: parse(hard)? })
        })
        .collect()
}

fn resources(attrs: &Attrs) -> Result<Option<LinuxResources>, EngineError> {
    let unsigned = |name: &str| -> Result<u64, EngineError> {
        Ok(number(attrs, name)?.and_then(|n| u64::try_from(n).ok()).unwrap_or(0))
    };
    let swap = match text(attrs, "memswap") {
        Some("-1") => -1,
        _ => number(attrs, "memswap")?.unwrap_or(0),
    };
    let resources = LinuxResources {
        memory: number(attrs, "memory")?.unwrap_or(0),
        memory_swap: swap,
        cpu_shares: unsigned("cpushares")?,
        cpu_period: unsigned("cpuperiod")?,
        cpu_quota: number(attrs, "cpuquota")?.unwrap_or(0),
        cpuset_cpus: text(attrs, "cpusetcpus").unwrap_or_default().to_owned(),
        cpuset_mems: text(attrs, "cpusetmems").unwrap_or_default().to_owned(),
    };
    Ok((resources != LinuxResources::default()).then_some(resources))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attrs(list: &[(&str, &str)]) -> Attrs {
        list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn an_unknown_capability_is_named() {
        check_caps(&attrs(&[("frontend.caps", "moby.buildkit.frontend.contexts+forward")])).unwrap();
        let error = check_caps(&attrs(&[("frontend.caps", "moby.buildkit.frontend.inputs,x.y")])).unwrap_err();
        let wanted = Unsupported::Capability("x.y".to_owned());
        assert_eq!(error.further().unwrap().unsupported, Some(wanted));
    }

    #[test]
    fn caches_by_the_old_option() {
        let found = cache_from(&attrs(&[("cache-from", "a/b:1,c")]));
        let names: Vec<&str> = found.iter().map(|spec| spec.attrs["ref"].as_str()).collect();
        assert_eq!(names, ["a/b:1", "c"]);
        assert!(cache_from(&attrs(&[])).is_empty());
    }

    #[test]
    fn contexts_are_taken_as_the_options_say() {
        let files = |list: &[(&str, &str)]| {
            Files::new(&FrontendRequest { attrs: attrs(list), ..FrontendRequest::default() }, "s").unwrap()
        };
        let git = files(&[
            ("context", "https://h.test/r.git"),
            ("contextsubdir", "sub"),
            ("build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR", "1"),
            ("build-arg:SOURCE_DATE_EPOCH", "5"),
        ]);
        let MainContext::Git(git) = git.context else { panic!("{:?}", git.context) };
        assert_eq!((git.keep_git_dir, git.commit_mtime, git.scope.as_deref()), (true, true, Some("sub")));
        let http =
            files(&[("context", "https://h.test/r.tar"), ("contextsubdir", "sub"), ("dockerfilekey", "dockerfile")]);
        assert!(http.dockerfile_is_local);
        assert!(matches!(http.context, MainContext::Http { subdir: Some(dir), .. } if dir == "sub"));
        assert!(!files(&[]).dockerfile_is_local);
    }

    #[test]
    fn directories_have_sessions_of_their_own() {
        let request =
            FrontendRequest { attrs: attrs(&[("local-sessionid:context", "s2")]), ..FrontendRequest::default() };
        let files = Files::new(&request, "s1").unwrap();
        assert_eq!((files.session_of("context"), files.session_of("dockerfile")), ("s2", "s1"));
        let inputs = BTreeMap::from([("context".to_owned(), Definition::default())]);
        let error = Files::new(&FrontendRequest { inputs, ..FrontendRequest::default() }, "s1").err().unwrap();
        assert!(error.to_string().contains("invalid nil input definition"), "{error}");
    }
}
