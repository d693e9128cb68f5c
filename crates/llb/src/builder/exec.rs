//! Processes: arguments, environment, mounts, secrets, sockets.

use std::collections::{BTreeMap, BTreeSet};

use super::{Meta, Output};
use crate::caps::id;
use crate::convert::passable;
use crate::error::LlbError;
use crate::op::{ContentCache, Device, HostIp, NetMode, ProxyEnv, SecurityMode, Sharing, Ulimit};

/// A process to add with [`super::Builder::exec`].
#[derive(Debug, Clone)]
pub struct Exec {
    /// The file system that becomes `/`.
    pub root: Output,
    pub root_readonly: bool,
    pub args: Vec<String>,
    pub env: super::EnvList,
    pub cwd: String,
    pub user: String,
    pub hostname: String,
    pub cgroup_parent: String,
    pub extra_hosts: Vec<HostIp>,
    pub ulimits: Vec<Ulimit>,
    pub valid_exit_codes: Vec<i32>,
    pub network: NetMode,
    pub security: SecurityMode,
    pub proxy: Option<ProxyEnv>,
    pub mounts: Vec<ExecMount>,
    pub secrets: Vec<SecretSpec>,
    pub ssh: Vec<SshSpec>,
    pub devices: Vec<Device>,
}

impl Exec {
    /// Returns a process with these arguments over `root`, in `/`, with everything else at its default.
    pub fn new(root: Output, args: Vec<String>) -> Self {
        Self {
            root,
            args,
            cwd: "/".into(),
            root_readonly: false,
            env: super::EnvList::default(),
            user: String::new(),
            hostname: String::new(),
            cgroup_parent: String::new(),
            extra_hosts: Vec::new(),
            ulimits: Vec::new(),
            valid_exit_codes: Vec::new(),
            network: NetMode::Unset,
            security: SecurityMode::Sandbox,
            proxy: None,
            mounts: Vec::new(),
            secrets: Vec::new(),
            ssh: Vec::new(),
            devices: Vec::new(),
        }
    }
}

/// A mount beside the root.
#[derive(Debug, Clone)]
pub struct ExecMount {
    pub dest: String,
    pub source: MountSource,
    /// Path inside the source; empty for all of it.
    pub selector: String,
    pub readonly: bool,
    /// The mount is writable but what is written is thrown away.
    pub no_output: bool,
    pub content_cache: ContentCache,
}

impl ExecMount {
    /// Returns a writable mount of `output` whose changes are a result.
    pub fn bind(dest: impl Into<String>, output: Output) -> Self {
        Self {
            dest: dest.into(),
            source: MountSource::Bind(output),
            selector: String::new(),
            readonly: false,
            no_output: false,
            content_cache: ContentCache::Default,
        }
    }

    /// Returns a read-only mount of `output`.
    pub fn readonly(dest: impl Into<String>, output: Output) -> Self {
        Self { readonly: true, ..Self::bind(dest, output) }
    }

    /// Returns a mount in memory, of at most `size` bytes unless that is 0.
    pub fn tmpfs(dest: impl Into<String>, size: i64) -> Self {
        Self { source: MountSource::Tmpfs { size }, ..Self::bind(dest, Output::SCRATCH) }
    }

    /// Returns a mount of a directory that outlives the build.
    pub fn cache(dest: impl Into<String>, cache: CacheMount) -> Self {
        Self { source: MountSource::Cache(cache), ..Self::bind(dest, Output::SCRATCH) }
    }

    fn keeps_output(&self) -> bool {
        matches!(self.source, MountSource::Bind(_)) && !self.no_output && !self.readonly
    }

    pub(super) fn input(&self) -> Output {
        match &self.source {
            MountSource::Bind(output) => *output,
            MountSource::Cache(cache) => cache.base,
            MountSource::Tmpfs { .. } => Output::SCRATCH,
        }
    }
}

/// What a mount shows.
#[derive(Debug, Clone)]
pub enum MountSource {
    Bind(Output),
    /// Bytes, 0 for no limit.
    Tmpfs {
        size: i64,
    },
    Cache(CacheMount),
}

/// A directory that outlives the build.
#[derive(Debug, Clone)]
pub struct CacheMount {
    /// Never empty.
    pub id: String,
    pub sharing: Sharing,
    /// What a new one begins with.
    pub base: Output,
}

/// A secret as a file, a variable, or both.
#[derive(Debug, Clone)]
pub struct SecretSpec {
    pub id: String,
    /// Path of the file.
    pub target: Option<String>,
    /// Name of the variable.
    pub env: Option<String>,
    pub uid: u32,
    pub gid: u32,
    /// Permission bits of the file; 0400 is usual.
    pub mode: u32,
    pub optional: bool,
}

/// An agent socket.
#[derive(Debug, Clone)]
pub struct SshSpec {
    /// Which of the client's agents; empty means `default`.
    pub id: String,
    /// Path of the socket; none for `/run/buildkit/ssh_agent.N`.
    pub target: Option<String>,
    pub uid: u32,
    pub gid: u32,
    /// Permission bits of the socket; 0600 is usual.
    pub mode: u32,
    pub optional: bool,
}

/// The results of a process.
#[derive(Debug, Clone)]
pub struct ExecOutputs {
    root: Output,
    mounts: BTreeMap<String, Output>,
}

impl ExecOutputs {
    /// Returns the root after the process; the input itself when it was read-only.
    pub fn root(&self) -> Output {
        self.root
    }

    /// Returns a mount after the process; none for one that keeps nothing.
    pub fn mount(&self, dest: &str) -> Option<Output> {
        self.mounts.get(dest).copied()
    }
}

impl Exec {
    /// Checks and completes: the root becomes a mount, mounts are sorted by destination, sockets get paths.
    pub(super) fn prepared(mut self) -> Result<Self, LlbError> {
        if self.args.is_empty() {
            return Err(LlbError::Argument("arguments are required".into()));
        }
        if self.cwd.is_empty() {
            return Err(LlbError::Argument("working directory is required".into()));
        }
        // Of variables only those are looked at that hold one: there may be many, for many steps.
        let texts = self.args.iter().map(String::as_str).chain([self.cwd.as_str()]).chain(self.env.unpassable());
        let secrets = self.secrets.iter().filter_map(|s| s.target.as_deref());
        let sockets = self.ssh.iter().filter_map(|s| s.target.as_deref());
        let mut targets = self.mounts.iter().map(|m| m.dest.as_str()).chain(secrets).chain(sockets);
        texts.chain(targets.clone()).try_for_each(passable).map_err(LlbError::Argument)?;
        if targets.any(|target| target == "/") {
            return Err(LlbError::Argument("nothing can be mounted onto the root".into()));
        }
        let root = ExecMount { readonly: self.root_readonly, ..ExecMount::bind("/", self.root) };
        self.mounts.insert(0, root);
        for mount in &self.mounts {
            if matches!(&mount.source, MountSource::Cache(cache) if cache.id.is_empty()) {
                return Err(LlbError::Argument(format!("cache mount at {} has no id", mount.dest)));
            }
        }
        self.mounts.sort_by(|a, b| a.dest.cmp(&b.dest));
        for (i, ssh) in self.ssh.iter_mut().enumerate() {
            ssh.target.get_or_insert_with(|| format!("/run/buildkit/ssh_agent.{i}"));
        }
        if self.env.get("SSH_AUTH_SOCK").is_none()
            && let Some(target) = self.ssh.first().and_then(|s| s.target.clone())
        {
            self.env.set("SSH_AUTH_SOCK", target);
        }
        Ok(self)
    }

    /// Returns the results; `output` makes one by its index.
    pub(super) fn outputs(&self, output: impl Fn(u32) -> Output) -> ExecOutputs {
        let mut next = 0;
        let mut mounts = BTreeMap::new();
        for mount in &self.mounts {
            if mount.keeps_output() {
                mounts.insert(mount.dest.clone(), output(next));
                next += 1;
            } else if mount.readonly {
                mounts.insert(mount.dest.clone(), mount.input());
            }
        }
        ExecOutputs { root: mounts.get("/").copied().unwrap_or(self.root), mounts }
    }

    /// Returns the mount's output index, -1 for none, counting in `next`.
    pub(super) fn output_index(mount: &ExecMount, next: &mut i64) -> i64 {
        if !mount.keeps_output() {
            return -1;
        }
        *next += 1;
        *next - 1
    }

    pub(super) fn caps(&self, meta: &Meta) -> BTreeSet<&'static str> {
        let mut caps = BTreeSet::from([id::EXEC_META_BASE, id::EXEC_META_DEFAULT_PATH]);
        let mut need = |needed: bool, cap: &'static str| {
            if needed {
                caps.insert(cap);
            }
        };
        need(!self.valid_exit_codes.is_empty(), id::EXEC_VALID_EXIT_CODE);
        need(!self.ulimits.is_empty(), id::EXEC_META_ULIMIT);
        need(meta.linux_resources.is_some(), id::EXEC_META_RESOURCES);
        need(self.network != NetMode::Unset, id::EXEC_META_NETWORK);
        need(self.security == SecurityMode::Insecure, id::EXEC_META_SECURITY);
        need(self.proxy.is_some(), id::EXEC_META_PROXY);
        for mount in &self.mounts {
            need(!mount.selector.is_empty(), id::EXEC_MOUNT_SELECTOR);
            need(mount.content_cache != ContentCache::Default, id::EXEC_MOUNT_CONTENT_CACHE);
            match &mount.source {
                MountSource::Cache(_) => {
                    need(true, id::EXEC_MOUNT_CACHE);
                    need(true, id::EXEC_MOUNT_CACHE_SHARING);
                }
                MountSource::Tmpfs { size } => {
                    need(true, id::EXEC_MOUNT_TMPFS);
                    need(*size > 0, id::EXEC_MOUNT_TMPFS_SIZE);
                }
                MountSource::Bind(output) => need(!output.is_scratch(), id::EXEC_MOUNT_BIND),
            }
        }
        need(!self.secrets.is_empty(), id::EXEC_MOUNT_SECRET);
        need(self.secrets.iter().any(|s| s.env.is_some()), id::EXEC_SECRET_ENV);
        need(!self.ssh.is_empty(), id::EXEC_MOUNT_SSH);
        need(!self.devices.is_empty(), id::EXEC_META_CDI);
        caps
    }
}
