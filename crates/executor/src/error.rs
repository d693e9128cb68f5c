//! Why a process could not be run to its end. A process that ran and failed is no error here: see [`crate::Exit`].

use std::io;
use std::time::Duration;

use kiln_stdx::ErrorClass;

/// Why a sandbox could not be made, started or followed to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// A field of the spec is malformed.
    #[error("invalid process: {0}")]
    InvalidSpec(String),
    /// The command could not be started inside the sandbox.
    #[error("{message}")]
    NotStarted {
        /// Why not.
        reason: StartFailure,
        /// The text an OCI runtime prints for it, such as `` exec: "x": executable file not found in $PATH ``.
        message: String,
    },
    /// The user or group is not in the root's `/etc/passwd` or `/etc/group`.
    #[error("unable to find {kind} `{name}`: no matching entry in {file} of the root")]
    UnknownUser {
        /// `user` or `group`.
        kind: &'static str,
        /// The name asked for.
        name: String,
        /// The file looked at.
        file: &'static str,
    },
    /// A resource limit that nobody could set here.
    #[error("ulimit `{name}={requested}` is above what this host allows ({allowed})")]
    UlimitForbidden {
        /// The limit's name.
        name: String,
        /// The value asked for.
        requested: String,
        /// The most that can be had.
        allowed: String,
    },
    /// A mount failed.
    #[error("mount {what} on {dest}: {source}")]
    Mount {
        /// What was to be mounted.
        what: String,
        /// The path inside the sandbox.
        dest: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An overlay would have more layers than the kernel takes.
    #[error("overlay of {layers} layers is over the kernel's limit of {limit}")]
    TooManyLayers {
        /// Layers asked for.
        layers: usize,
        /// The kernel's limit.
        limit: usize,
    },
    /// A step of setting up the sandbox failed.
    #[error("sandbox: {what}: {source}")]
    Setup {
        /// What was being done.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A limit was asked for whose control group does not exist on this host.
    #[error("limit `{limit}` needs the control group controller `{controller}`, which this host does not offer")]
    NoController {
        /// The field of the limit.
        limit: &'static str,
        /// The controller.
        controller: &'static str,
    },
    /// The helper process ended without a report.
    #[error("the sandbox helper ended unexpectedly: {0}")]
    HelperLost(String),
    /// The OCI runtime failed in a way that is not the step's.
    #[error("{runtime}: {message}")]
    Runtime {
        /// The runtime's program name.
        runtime: String,
        /// What it said.
        message: String,
    },
    /// A network could not be had.
    #[error("network `{provider}`: {message}")]
    Network {
        /// The provider's name.
        provider: String,
        /// What went wrong.
        message: String,
    },
    /// The run was canceled; everything in the sandbox is gone.
    #[error("canceled")]
    Canceled,
    /// Something did not happen in its time.
    #[error("{what} took longer than {limit:?}")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
}

/// Why a command could not be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum StartFailure {
    /// There is no such file; a shell would report 127.
    NotFound,
    /// The file is there but cannot be executed; a shell would report 126.
    NotExecutable,
    /// The file is not in a format this machine runs.
    Format,
    /// The working directory cannot be entered.
    WorkingDirectory,
}

impl StartFailure {
    /// Returns the exit code a shell gives for it.
    pub fn exit_code(self) -> i32 {
        match self {
            Self::NotFound => 127,
            Self::NotExecutable | Self::Format | Self::WorkingDirectory => 126,
        }
    }
}

impl ExecError {
    /// Says that a provider could not give a network.
    pub(crate) fn network(provider: &str, error: &io::Error) -> Self {
        Self::Network { provider: provider.to_owned(), message: error.to_string() }
    }

    /// Returns the class of the error.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::InvalidSpec(_)
            | Self::NotStarted { .. }
            | Self::UnknownUser { .. }
            | Self::UlimitForbidden { .. } => ErrorClass::UserInput,
            Self::Mount { .. }
            | Self::TooManyLayers { .. }
            | Self::Setup { .. }
            | Self::NoController { .. }
            | Self::HelperLost(_)
            | Self::Runtime { .. }
            | Self::Network { .. }
            | Self::TimedOut { .. } => ErrorClass::Environment,
            Self::Canceled => ErrorClass::Canceled,
        }
    }

    /// Returns the exit code a shell would give for a command that could not be started.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Self::NotStarted { reason, .. } => Some(reason.exit_code()),
            _ => None,
        }
    }

    pub(crate) fn setup(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Setup { what: what.into(), source: source.into() }
    }
}
