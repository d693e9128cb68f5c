//! The typed operations of a validated graph: what the engine executes.
//!
//! Every index is checked against the operation's inputs before a value of these types exists.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::definition::Definition;
pub use crate::pb::{CacheSharingOpt as Sharing, MountContentCache as ContentCache, NetMode, SecurityMode};

/// One operation.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    Source(SourceOp),
    Exec(Box<ExecOp>),
    File(FileOp),
    Merge(MergeOp),
    Diff(DiffOp),
    Build(Box<BuildOp>),
    Passthrough(PassthroughOp),
}

impl Op {
    /// Returns how many results the operation has.
    pub fn output_count(&self) -> usize {
        match self {
            Self::Exec(exec) => exec.mounts.iter().filter(|m| m.output.is_some()).count(),
            Self::File(file) => file.actions.iter().filter(|a| a.output.is_some()).count(),
            Self::Passthrough(pass) => pass.outputs.len(),
            Self::Source(_) | Self::Merge(_) | Self::Diff(_) | Self::Build(_) => 1,
        }
    }
}

/// Something from outside the graph, named by an identifier such as `docker-image://…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceOp {
    pub identifier: String,
    /// Attributes, see [`crate::attr`].
    pub attrs: BTreeMap<String, String>,
}

impl SourceOp {
    /// Splits the identifier into its scheme, without `://`, and the rest.
    pub fn split(&self) -> Option<(&str, &str)> {
        self.identifier.split_once("://")
    }

    /// Returns an attribute that is present and not empty.
    pub fn attr(&self, key: &str) -> Option<&str> {
        self.attrs.get(key).map(String::as_str).filter(|v| !v.is_empty())
    }
}

/// A process to run.
#[derive(Debug, Clone, PartialEq)]
pub struct ExecOp {
    pub meta: ExecMeta,
    /// At least the root, at `/`.
    pub mounts: Vec<Mount>,
    pub network: NetMode,
    pub security: SecurityMode,
    pub secret_env: Vec<SecretEnv>,
    pub devices: Vec<Device>,
}

/// How the process is started.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExecMeta {
    pub args: Vec<String>,
    /// `KEY=value` entries in order.
    pub env: Vec<String>,
    pub cwd: String,
    /// `user[:group]` as names or numbers; empty for root.
    pub user: String,
    /// Proxy variables; part of no cache key.
    pub proxy: Option<ProxyEnv>,
    pub extra_hosts: Vec<HostIp>,
    pub hostname: String,
    pub ulimits: Vec<Ulimit>,
    pub cgroup_parent: String,
    pub remove_mount_stubs_recursive: bool,
    /// Exit codes that count as success; only 0 when empty.
    pub valid_exit_codes: Vec<i32>,
}

/// Proxy addresses for a process, each empty when unset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyEnv {
    pub http: String,
    pub https: String,
    pub ftp: String,
    pub no: String,
    pub all: String,
}

/// A line of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostIp {
    pub host: String,
    pub ip: String,
}

/// A resource limit of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    pub name: String,
    pub soft: i64,
    pub hard: i64,
}

/// A secret given as an environment variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretEnv {
    pub id: String,
    pub name: String,
    pub optional: bool,
}

/// A CDI device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub name: String,
    pub optional: bool,
}

/// One mount of a process.
#[derive(Debug, Clone, PartialEq)]
pub struct Mount {
    /// Where it appears; relative paths are under the working directory.
    pub dest: String,
    /// Index into the operation's inputs; none for an empty directory.
    pub input: Option<usize>,
    /// Path inside the input.
    pub selector: String,
    /// Index among the operation's outputs; only binds have one.
    pub output: Option<usize>,
    pub readonly: bool,
    pub kind: MountKind,
    pub content_cache: ContentCache,
    /// Only in containers of the gateway: a result to mount instead of an input.
    pub result_id: String,
}

impl Mount {
    /// Tells whether this is the root file system.
    pub fn is_root(&self) -> bool {
        self.dest == "/"
    }
}

/// What kind of file system a mount is.
#[derive(Debug, Clone, PartialEq)]
pub enum MountKind {
    Bind,
    /// In memory; bytes, no limit when none.
    Tmpfs {
        size: Option<u64>,
    },
    /// A directory that outlives the build. The id is the destination when the definition gives none.
    Cache {
        id: String,
        sharing: Sharing,
    },
    Secret(SessionFile),
    Ssh(SessionFile),
}

/// A secret or agent socket from the client's session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionFile {
    pub id: String,
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub optional: bool,
}

/// Changes to a file system without a process.
#[derive(Debug, Clone, PartialEq)]
pub struct FileOp {
    pub actions: Vec<FileAction>,
}

/// One change.
#[derive(Debug, Clone, PartialEq)]
pub struct FileAction {
    /// What is changed.
    pub input: FileInput,
    /// What is copied from; `Empty` for all actions but copy.
    pub secondary: FileInput,
    /// Index among the operation's outputs.
    pub output: Option<usize>,
    pub change: FileChange,
}

/// Where an action takes a directory from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileInput {
    /// An empty directory.
    Empty,
    /// An input of the operation.
    Input(usize),
    /// The result of an earlier action.
    Action(usize),
}

/// What an action does.
#[derive(Debug, Clone, PartialEq)]
pub enum FileChange {
    Copy(Box<Copy>),
    Mkfile(Mkfile),
    Mkdir(Mkdir),
    Rm(Rm),
    Symlink(Symlink),
}

/// A copy between file systems (features 2.3).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Copy {
    pub src: String,
    /// A trailing `/` or `/.` is kept: it means "into this directory".
    pub dest: String,
    pub owner: Owner,
    pub mode: Option<CopyMode>,
    pub follow_symlink: bool,
    pub dir_contents_only: bool,
    pub unpack: bool,
    pub create_dest_path: bool,
    pub allow_wildcard: bool,
    pub allow_empty_wildcard: bool,
    /// Unix nanoseconds.
    pub timestamp: Option<i64>,
    pub include_patterns: Vec<String>,
    pub exclude_patterns: Vec<String>,
    pub required_paths: Vec<String>,
    pub always_replace: bool,
}

/// A mode to set on what is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyMode {
    /// Permission bits, including set-id and sticky.
    Bits(u32),
    /// A symbolic mode such as `u+x,go=rX`.
    Symbolic(String),
}

/// Creates a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mkfile {
    pub path: String,
    pub mode: u32,
    pub data: Bytes,
    pub owner: Owner,
    /// Unix nanoseconds.
    pub timestamp: Option<i64>,
}

/// Creates a directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mkdir {
    pub path: String,
    pub mode: u32,
    pub make_parents: bool,
    pub owner: Owner,
    /// Unix nanoseconds.
    pub timestamp: Option<i64>,
}

/// Removes a path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rm {
    pub path: String,
    pub allow_not_found: bool,
    pub allow_wildcard: bool,
}

/// Creates a symbolic link at `link` that says `target`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Symlink {
    pub target: String,
    pub link: String,
    pub owner: Owner,
    /// Unix nanoseconds.
    pub timestamp: Option<i64>,
}

/// User and group to give to what an action creates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owner {
    pub user: Option<UserSpec>,
    pub group: Option<UserSpec>,
}

impl Owner {
    /// Tells whether neither user nor group is given.
    pub fn is_unset(&self) -> bool {
        self.user.is_none() && self.group.is_none()
    }
}

/// A user or a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserSpec {
    Id(u32),
    /// A name that is looked up in the user database of a file system.
    Name {
        name: String,
        input: FileInput,
    },
}

/// A union of file systems; later inputs win.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergeOp {
    /// Indexes of inputs, at least two.
    pub inputs: Vec<usize>,
}

/// What makes `upper` differ from `lower`; none is an empty file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiffOp {
    pub lower: Option<usize>,
    pub upper: Option<usize>,
}

/// A definition to be read from a file of an input, or given in place.
#[derive(Debug, Clone, PartialEq)]
pub struct BuildOp {
    /// Index of the input that holds the encoded definition.
    pub input: Option<usize>,
    pub definition: Option<Definition>,
    pub attrs: BTreeMap<String, String>,
}

/// Hands inputs through, to group and order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassthroughOp {
    pub id: String,
    /// Index of the input that each output is.
    pub outputs: Vec<usize>,
}
