//! What to run: one process, its root, its mounts and its limits, as plain data.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use kiln_snapshot::Mount;
use kiln_stdx::Secret;

/// The host name of a sandbox when the step asks for none, as BuildKit has it.
pub const DEFAULT_HOSTNAME: &str = "buildkitsandbox";
/// The size of `/dev/shm` in bytes when the step asks for none.
pub const DEFAULT_SHM_SIZE: u64 = 64 << 20;

/// One process in a sandbox.
#[derive(Debug, Clone)]
pub struct ProcessSpec {
    /// A name of this run that no other run has at the same time: letters, digits, `-`, `_` and `.`.
    pub id: String,
    /// The command and its arguments; the command is looked up in the step's own `PATH`.
    pub args: Vec<String>,
    /// The environment, in order; of a name that is there twice the last value counts.
    pub env: Vec<(String, String)>,
    /// The working directory, absolute; made (owned by the user) when missing.
    pub cwd: String,
    /// `user`, `uid`, `user:group`, `uid:gid`, or empty for root; names are looked up in the root's own files.
    pub user: String,
    /// The host name; `None` is [`DEFAULT_HOSTNAME`].
    pub hostname: Option<String>,
    /// The root file system.
    pub root: Mount,
    /// Whether the root is mounted read-only.
    pub root_readonly: bool,
    /// Further mounts; they are made in the order of their destinations.
    pub mounts: Vec<SandboxMount>,
    /// The network the process sees.
    pub network: NetworkMode,
    /// How much the process may do.
    pub security: SecurityMode,
    /// Resource limits as `setrlimit(2)` knows them; the engine's own limits hold for the others.
    pub ulimits: Vec<Ulimit>,
    /// Lines added to `/etc/hosts`.
    pub extra_hosts: Vec<ExtraHost>,
    /// The contents of `/etc/resolv.conf`; `None` takes the host's.
    pub resolv_conf: Option<Vec<u8>>,
    /// The size of `/dev/shm` in bytes; `None` is [`DEFAULT_SHM_SIZE`].
    pub shm_size: Option<u64>,
    /// The control group under which the step's own is made when it needs one; `None` is the executor's.
    pub cgroup_parent: Option<String>,
    /// Limits that need a control group.
    pub resources: Resources,
    /// A file of PEM certificates on the host that the step shall trust; see [`crate::ca`].
    pub ca_bundle: Option<PathBuf>,
    /// Gives the process a terminal of this size; its output then all goes to `stdout`.
    pub tty: Option<TtySize>,
    /// Removes the parents made for a mount target too, not only the target itself.
    pub remove_stubs_recursive: bool,
    /// Exit codes that count as success; empty means 0 alone.
    pub valid_exit_codes: Vec<i32>,
}

impl ProcessSpec {
    /// Returns a spec that runs `args` as root in `root` with everything else at its default.
    pub fn new(id: impl Into<String>, root: Mount, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            id: id.into(),
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: "/".to_owned(),
            user: String::new(),
            hostname: None,
            root,
            root_readonly: false,
            mounts: Vec::new(),
            network: NetworkMode::Auto,
            security: SecurityMode::Sandbox,
            ulimits: Vec::new(),
            extra_hosts: Vec::new(),
            resolv_conf: None,
            shm_size: None,
            cgroup_parent: None,
            resources: Resources::default(),
            ca_bundle: None,
            tty: None,
            remove_stubs_recursive: false,
            valid_exit_codes: Vec::new(),
        }
    }
}

/// One mount besides the root.
#[derive(Debug, Clone)]
pub struct SandboxMount {
    /// Where it goes: an absolute path, resolved inside the root; symbolic links never lead out of it.
    pub dest: String,
    /// What is mounted.
    pub source: MountSource,
    /// A path inside the source that is mounted in place of its top (resolved inside the source); empty is the top.
    pub subpath: String,
    /// Whether the process may not write to it.
    pub readonly: bool,
}

/// What a [`SandboxMount`] shows.
#[derive(Clone)]
pub enum MountSource {
    /// A file system, described by a snapshotter.
    Mount(Mount),
    /// One file that lives only on a tmpfs of the sandbox (nodev, nosuid, noexec): a secret.
    File {
        /// The contents.
        content: Secret,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// A socket (or any file) of the host: an SSH agent.
    Socket(PathBuf),
}

impl fmt::Debug for MountSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount(mount) => f.debug_tuple("Mount").field(mount).finish(),
            Self::File { mode, uid, gid, .. } => write!(f, "File {{ mode: {mode:o}, uid: {uid}, gid: {gid} }}"),
            Self::Socket(path) => f.debug_tuple("Socket").field(path).finish(),
        }
    }
}

/// The network of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum NetworkMode {
    /// What the engine is set up for; the host's network where no provider is configured.
    #[default]
    Auto,
    /// The host's network.
    Host,
    /// A network of its own with nothing but loopback.
    None,
}

/// How much a step may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SecurityMode {
    /// Docker's default capabilities, the default seccomp filter, masked kernel files, a short list of devices.
    #[default]
    Sandbox,
    /// All capabilities and devices the engine has, no filter, writable `/sys` and control groups.
    Insecure,
}

/// One resource limit; -1 means unlimited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// The name as `docker build --ulimit` writes it (`nofile`).
    pub name: String,
    /// The limit that is enforced.
    pub soft: i64,
    /// The most the process may raise it to.
    pub hard: i64,
}

/// One line of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraHost {
    /// The name.
    pub host: String,
    /// Its address.
    pub ip: IpAddr,
}

/// Limits enforced by a control group; everything absent is unlimited.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Resources {
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// Memory and swap together in bytes; -1 is unlimited swap.
    pub memory_swap: Option<i64>,
    /// Relative CPU weight on v1's scale (1024 is normal).
    pub cpu_shares: Option<u64>,
    /// CPU time per period in microseconds.
    pub cpu_quota: Option<i64>,
    /// The period in microseconds; 100000 when absent.
    pub cpu_period: Option<u64>,
    /// CPUs as a list like `0-2,4`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes as a list.
    pub cpuset_mems: Option<String>,
    /// The most processes and threads at once.
    pub pids: Option<u64>,
}

impl Resources {
    /// Tells whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TtySize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}
