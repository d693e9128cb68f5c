//! What a build is asked for, beside the Dockerfile: target, arguments, platforms, contexts, process settings.

use std::collections::BTreeMap;

use kiln_llb::Definition;
use kiln_llb::builder::ResolveMode;
use kiln_llb::op::{Device, HostIp, NetMode, Ulimit};
use kiln_oci::{ImageConfig, Platform};

use crate::context::MainContext;

/// Everything that influences a build of one platform. Equal options and an equal file give an equal definition.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// Stage to build; none for the last.
    pub target: Option<String>,
    pub build_args: BTreeMap<String, String>,
    /// Labels that are added last.
    pub labels: BTreeMap<String, String>,
    /// Platform to build for; none builds for the first build platform and takes what the base image is.
    pub target_platform: Option<Platform>,
    /// Platforms of the builder, the default first; never empty in a valid request.
    pub build_platforms: Vec<Platform>,
    /// The result has one entry per platform: shown names carry the platform.
    pub multi_platform: bool,
    /// Named contexts: `name` or `name::os/arch` to a specifier such as `docker-image://…` (features 1.9).
    pub contexts: BTreeMap<String, String>,
    /// Graphs that `input:<name>` contexts name.
    pub inputs: BTreeMap<String, Input>,
    /// Shared keys of named local directories, by context name.
    pub shared_keys: BTreeMap<String, String>,
    /// Session that local directories and OCI layouts come from; empty for any of the build.
    pub session: String,
    /// Sessions of single local directories, by session-local name.
    pub local_sessions: BTreeMap<String, String>,
    /// Id that local directories carry when no session is named; it keeps builds apart.
    pub local_id: String,
    pub main_context: MainContext,
    /// Patterns of the main context's ignore file, see [`crate::ignore::parse`].
    pub ignore_patterns: Vec<String>,
    pub no_cache: NoCache,
    pub network: NetMode,
    pub extra_hosts: Vec<HostIp>,
    /// Bytes of `/dev/shm`, 0 for the default.
    pub shm_size: i64,
    pub ulimits: Vec<Ulimit>,
    pub devices: Vec<Device>,
    pub cgroup_parent: String,
    /// Host name inside steps, empty for the default.
    pub hostname: String,
    pub linux_resources: Option<kiln_llb::pb::LinuxResources>,
    pub resolve_mode: ResolveMode,
    /// Prefix of cache mount ids (`BUILDKIT_CACHE_MOUNT_NS`).
    pub cache_namespace: String,
    /// Lint settings in the form of the `check` directive, which they replace.
    pub check: Option<String>,
    /// The graph that the Dockerfile was read from, for source maps.
    pub source_definition: Option<Definition>,
    /// The engine knows `MergeOp`; without it `--link` is a plain copy.
    pub merge_op: bool,
    /// `RUN --device` is allowed.
    pub allow_devices: bool,
    /// Look at every stage, not only those the target needs (lint).
    pub all_stages: bool,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self {
            target: None,
            build_args: BTreeMap::new(),
            labels: BTreeMap::new(),
            target_platform: None,
            build_platforms: vec![Platform::host()],
            multi_platform: false,
            contexts: BTreeMap::new(),
            inputs: BTreeMap::new(),
            shared_keys: BTreeMap::new(),
            session: String::new(),
            local_sessions: BTreeMap::new(),
            local_id: kiln_stdx::rand_id(),
            main_context: MainContext::default(),
            ignore_patterns: Vec::new(),
            no_cache: NoCache::None,
            network: NetMode::Unset,
            extra_hosts: Vec::new(),
            shm_size: 0,
            ulimits: Vec::new(),
            devices: Vec::new(),
            cgroup_parent: String::new(),
            hostname: String::new(),
            linux_resources: None,
            resolve_mode: ResolveMode::Default,
            cache_namespace: String::new(),
            check: None,
            source_definition: None,
            merge_op: true,
            allow_devices: false,
            all_stages: false,
        }
    }
}

impl BuildOptions {
    /// Returns the platform of the builder itself.
    pub fn build_platform(&self) -> Platform {
        self.build_platforms.first().cloned().unwrap_or_else(Platform::host)
    }

    /// Returns the platform that is built for.
    pub fn platform(&self) -> Platform {
        self.target_platform.clone().unwrap_or_else(|| self.build_platform())
    }

    /// Returns the session that a local directory comes from, empty for any.
    pub fn session_of(&self, local: &str) -> &str {
        self.local_sessions.get(local).unwrap_or(&self.session)
    }
}

/// Which stages ignore cached results.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NoCache {
    #[default]
    None,
    All,
    /// Stages by name, letter case ignored.
    Stages(Vec<String>),
}

impl NoCache {
    /// Tells whether the stage ignores the cache.
    pub fn covers(&self, stage: &str) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Stages(names) => names.iter().any(|n| n.eq_ignore_ascii_case(stage)),
        }
    }
}

/// A graph given as a named context, with the image config that came with it.
#[derive(Debug, Clone, Default)]
pub struct Input {
    pub definition: Definition,
    pub config: Option<ImageConfig>,
}
