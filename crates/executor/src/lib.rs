//! Runs one process in a sandbox over given mounts and reports how it ended, what it printed and what it used.
//!
//! [`SandboxExecutor`] makes sandboxes itself, by a helper process ([`sandbox_init_main`]); [`RuncExecutor`] has an OCI
//! runtime do it. Both take the same [`ProcessSpec`] and pass the same tests.
//!
//! Invariants: nothing here knows a ref, an op or a session. When a run ends, however it ends, its processes and mounts are
//! gone. No value of a step's environment or secret is ever on a command line, in another process's environment or
//! outside of memory.

pub mod ca;
mod cgroup;
mod error;
mod executor;
mod exit;
pub mod hints;
mod idmap;
mod init;
mod io;
pub mod mask;
pub mod network;
mod oci_config;
mod runc;
mod sandbox;
mod seccomp;
mod spec;
mod sys;
mod ulimit;
mod wire;

pub use error::{ExecError, StartFailure};
pub use executor::Executor;
pub use exit::{Exit, Usage};
pub use init::{is_sandbox_init, sandbox_init_main};
pub use io::{Control, Output, ProcessIo, Stdin};
pub use network::{IsolatedConfig, Isolation, Namespace, Network, NetworkProvider, Networks, Subnet};
pub use runc::{RuncConfig, RuncExecutor};
pub use sandbox::{SandboxConfig, SandboxExecutor};
pub use spec::{
    DEFAULT_HOSTNAME, DEFAULT_SHM_SIZE, ExtraHost, MountSource, NetworkMode, ProcessSpec, Resources, SandboxMount,
    SecurityMode, TtySize, Ulimit,
};
