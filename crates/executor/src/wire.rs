//! What engine and helper say to each other. The spec travels in a memfd, never on a command line or in an environment:
//! `[u32 length of JSON][JSON][contents of files]`, little-endian. Reports come back as JSON, one per packet.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};

use crate::exit::Usage;
use crate::idmap::IdMaps;
use crate::{ExecError, StartFailure, TtySize};

/// The largest spec a helper reads, in bytes: many secrets of the largest size.
const MAX_SPEC: usize = 64 << 20;

/// One process to run; see [`crate::ProcessSpec`] for the meaning of what has the same name.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireSpec {
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: String,
    pub user: String,
    pub hostname: String,
    pub root: WireMount,
    pub root_readonly: bool,
    /// Sorted by destination.
    pub mounts: Vec<WireSandboxMount>,
    pub network: WireNetwork,
    pub insecure: bool,
    /// Device nodes cannot be opened but for the usual ones, because a control group sees to it.
    pub devices_guarded: bool,
    /// Resource number, soft and hard limit.
    pub rlimits: Vec<(u32, u64, u64)>,
    pub shm_size: u64,
    pub tty: Option<TtySize>,
    pub recursive_stubs: bool,
    pub cgroup: WireCgroup,
    /// The ids of a user namespace, when the engine is not root.
    pub idmaps: Option<IdMaps>,
    /// Set when an OCI runtime shall run the process.
    pub runtime: Option<WireRuntime>,
    /// The process goes into the sandbox whose first process's descriptor comes with the spec.
    #[serde(default)]
    pub join: bool,
}

/// A file system to mount.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum WireMount {
    Overlay { lowers: Vec<PathBuf>, upper: Option<PathBuf>, work: Option<PathBuf> },
    Bind { source: PathBuf, readonly: bool },
    Tmpfs { size: Option<u64>, mode: u32 },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireSandboxMount {
    pub dest: String,
    pub source: WireSource,
    pub subpath: String,
    pub readonly: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum WireSource {
    Mount(WireMount),
    /// `offset` and `len` within the contents that follow the JSON.
    File {
        offset: usize,
        len: usize,
        mode: u32,
        uid: u32,
        gid: u32,
    },
    Path(PathBuf),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum WireNetwork {
    Host,
    Isolated,
    /// The namespace of the descriptor that comes with the spec.
    Existing,
}

/// Control groups made by the engine for the process to be put in.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct WireCgroup {
    /// A v2 directory: the process is cloned into it.
    pub v2: Option<PathBuf>,
    /// v1 directories by controller: the process is moved into them before it does anything.
    pub v1: Vec<(String, PathBuf)>,
    /// Where the host's unified v2 tree is the only one: the process sees it in a namespace of its own.
    pub unified: bool,
}

/// How to call an OCI runtime.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireRuntime {
    pub program: PathBuf,
    /// A directory for this run alone.
    pub bundle: PathBuf,
    pub id: String,
    pub cgroups_path: Option<String>,
    /// A v2 tree beside v1 ones. The runtime is not shown it: it manages the v1 controllers, and some (crun) refuse a host
    /// where v2 has controllers of its own.
    pub hidden_v2: Option<PathBuf>,
    pub resources: crate::Resources,
}

/// What a helper tells the engine.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// A fork of the helper has the step; nothing was done before this.
    Accepted,
    /// The process runs; the packet carries a pidfd of its PID 1.
    Started,
    /// The packet carries the controlling end of the process's terminal.
    Terminal,
    /// The process is gone, and all others of the sandbox.
    Exited { status: i32, usage: Usage },
    /// The process was never started, or could not be followed.
    Failed(Failure),
}

/// What the engine tells a helper while the process runs; closing the socket kills the sandbox.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    Signal(i32),
    /// A signal that ends a process without a handler for it, though it is PID 1.
    Felt(i32),
    Kill,
}

/// An error that crosses from the helper to the engine.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    InvalidSpec(String),
    NotStarted { reason: StartFailure, message: String },
    UnknownUser { group: bool, name: String },
    Mount { what: String, dest: String, errno: i32 },
    TooManyLayers { layers: usize },
    Setup { what: String, errno: i32 },
    Runtime { runtime: String, message: String },
}

impl Failure {
    pub(crate) fn setup(what: impl Into<String>, error: impl Into<io::Error>) -> Self {
        Self::Setup { what: what.into(), errno: errno(&error.into()) }
    }

    pub(crate) fn mount(what: impl Into<String>, dest: impl Into<String>, error: impl Into<io::Error>) -> Self {
        Self::Mount { what: what.into(), dest: dest.into(), errno: errno(&error.into()) }
    }
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

impl From<Failure> for ExecError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::InvalidSpec(message) => Self::InvalidSpec(message),
            Failure::NotStarted { reason, message } => Self::NotStarted { reason, message },
            Failure::UnknownUser { group: false, name } => {
                Self::UnknownUser { kind: "user", name, file: "/etc/passwd" }
            }
            Failure::UnknownUser { group: true, name } => Self::UnknownUser { kind: "group", name, file: "/etc/group" },
            Failure::Mount { what, dest, errno } => {
                Self::Mount { what, dest, source: io::Error::from_raw_os_error(errno) }
            }
            Failure::TooManyLayers { layers } => {
                Self::TooManyLayers { layers, limit: kiln_stdx::limits::OVERLAY_LAYERS }
            }
            Failure::Setup { what, errno } => Self::Setup { what, source: io::Error::from_raw_os_error(errno) },
            Failure::Runtime { runtime, message } => Self::Runtime { runtime, message },
        }
    }
}

/// Writes a spec and the contents of its files into a sealed memfd.
pub(crate) fn seal(spec: &WireSpec, contents: &[u8]) -> Result<OwnedFd, ExecError> {
    let json = serde_json::to_vec(spec).map_err(|error| ExecError::InvalidSpec(error.to_string()))?;
    let setup = |error: io::Error| ExecError::setup("write the process spec", error);
    let memfd = rustix::fs::memfd_create(c"kiln-spec", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(|errno| setup(errno.into()))?;
    let mut file = File::from(memfd);
    let len =
        u32::try_from(json.len()).map_err(|_| ExecError::InvalidSpec("the process spec is too long".to_owned()))?;
    file.write_all(&len.to_le_bytes()).map_err(setup)?;
    file.write_all(&json).map_err(setup)?;
    file.write_all(contents).map_err(setup)?;
    let seals = rustix::fs::SealFlags::WRITE | rustix::fs::SealFlags::SHRINK | rustix::fs::SealFlags::GROW;
    rustix::fs::fcntl_add_seals(&file, seals).map_err(|errno| setup(errno.into()))?;
    Ok(file.into())
}

/// Reads what [`seal`] wrote.
pub(crate) fn unseal(memfd: OwnedFd) -> io::Result<(WireSpec, Vec<u8>)> {
    let invalid = || io::Error::from_raw_os_error(libc::EBADMSG);
    let mut file = File::from(memfd);
    let size = usize::try_from(file.metadata()?.len()).map_err(|_| invalid())?;
    if !(4..=MAX_SPEC).contains(&size) {
        return Err(invalid());
    }
    let mut bytes = vec![0u8; size];
    file.rewind()?;
    file.read_exact(&mut bytes)?;
    let json = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    let end = json.checked_add(4).filter(|&end| end <= size).ok_or_else(invalid)?;
    let spec = serde_json::from_slice(&bytes[4..end]).map_err(|_| invalid())?;
    bytes.drain(..end);
    Ok((spec, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_spec_comes_back_and_cannot_be_changed() {
        let spec = WireSpec {
            args: vec!["sh".to_owned()],
            env: vec![("A".to_owned(), "b\nc".to_owned())],
            cwd: "/".to_owned(),
            user: String::new(),
            hostname: "h".to_owned(),
            root: WireMount::Bind { source: "/x".into(), readonly: false },
            root_readonly: false,
            mounts: Vec::new(),
            network: WireNetwork::Host,
            insecure: false,
            devices_guarded: true,
            rlimits: Vec::new(),
            shm_size: 1,
            tty: None,
            recursive_stubs: false,
            cgroup: WireCgroup::default(),
            idmaps: None,
            runtime: None,
            join: false,
        };
        let memfd = seal(&spec, b"contents").unwrap();
        let mut copy = File::from(memfd.try_clone().unwrap());
        assert!(copy.write_all(b"x").is_err());
        let (back, contents) = unseal(memfd).unwrap();
        assert_eq!(back.env, spec.env);
        assert_eq!(contents, b"contents");
    }

    #[test]
    fn a_truncated_spec_is_refused() {
        let memfd = rustix::fs::memfd_create(c"t", MemfdFlags::CLOEXEC).unwrap();
        let mut file = File::from(memfd);
        file.write_all(&200u32.to_le_bytes()).unwrap();
        file.write_all(b"{}").unwrap();
        assert!(unseal(file.into()).is_err());
    }
}
