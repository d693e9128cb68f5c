//! What can go wrong between client and engine.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use kiln_stdx::ErrorClass;
use tonic::{Code, Status};

/// A failed call, transfer or connection.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SessionError {
    /// No session with this id came in time.
    #[error("no active session for {id}: context deadline exceeded")]
    NotFound { id: String },
    /// A session with this id is already there.
    #[error("session {id} already exists")]
    Duplicate { id: String },
    /// The peer is gone.
    #[error("the client's session ended{}", .why.as_deref().map(|w| format!(": {w}")).unwrap_or_default())]
    Closed { why: Option<String> },
    /// No answer, or no progress, in time.
    #[error("{what}: no answer for {} s", .after.as_secs())]
    Deadline { what: String, after: Duration },
    /// The caller called it off.
    #[error("{what}: canceled")]
    Canceled { what: &'static str },
    /// The peer does not offer what is asked of it.
    #[error("the client does not support {method}")]
    Unsupported { method: &'static str },
    /// The peer answered with an error.
    #[error("{}", status_text(.0))]
    Rejected(Box<Status>),
    /// The peer broke the protocol.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// Something on this side failed.
    #[error("{what}: {source}")]
    Io { what: String, source: Arc<io::Error> },
    /// The caller's or the user's input is wrong.
    #[error("{0}")]
    Input(String),
}

/// Words a status as Go does: the code in front unless it says nothing.
fn status_text(status: &Status) -> String {
    match status.code() {
        Code::Ok | Code::Unknown => status.message().to_owned(),
        code => format!("{code:?}: {}", status.message()),
    }
}

impl SessionError {
    /// Wraps an I/O error with what was being done.
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io { what: what.into(), source: Arc::new(source) }
    }

    /// Returns the class of the error.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Canceled { .. } => ErrorClass::Canceled,
            Self::Io { .. } => ErrorClass::Environment,
            Self::Input(_) | Self::Unsupported { .. } | Self::Duplicate { .. } => ErrorClass::UserInput,
            Self::Rejected(status) => match status.code() {
                Code::NotFound
                | Code::InvalidArgument
                | Code::PermissionDenied
                | Code::FailedPrecondition
                | Code::Unauthenticated => ErrorClass::UserInput,
                Code::Cancelled => ErrorClass::Canceled,
                _ => ErrorClass::Remote,
            },
            Self::NotFound { .. } | Self::Closed { .. } | Self::Deadline { .. } | Self::Protocol(_) => {
                ErrorClass::Remote
            }
        }
    }

    /// Tells whether bytes could not be handed on since the peer takes none any more.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Tells whether the peer says that the thing asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Rejected(s) if matches!(s.code(), Code::NotFound | Code::Unimplemented))
            || matches!(self, Self::Unsupported { .. })
    }

    /// Tells whether the peer has the service but nothing behind it.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Rejected(s) if s.code() == Code::Unavailable)
    }

    /// Tells whether the peer is gone, so that another session may be asked instead.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Closed { .. } | Self::NotFound { .. })
    }

    /// Returns the gRPC status that tells a caller of this error.
    pub fn to_status(&self) -> Status {
        let code = match self {
            Self::Rejected(status) => return status.as_ref().clone(),
            Self::NotFound { .. } => Code::NotFound,
            Self::Duplicate { .. } => Code::AlreadyExists,
            Self::Closed { .. } => Code::Unavailable,
            Self::Deadline { .. } => Code::DeadlineExceeded,
            Self::Canceled { .. } => Code::Cancelled,
            Self::Unsupported { .. } => Code::Unimplemented,
            Self::Input(_) => Code::InvalidArgument,
            Self::Protocol(_) | Self::Io { .. } => Code::Unknown,
        };
        Status::new(code, self.to_string())
    }
}

impl From<Status> for SessionError {
    fn from(status: Status) -> Self {
        Self::Rejected(Box::new(status))
    }
}
