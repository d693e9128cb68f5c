//! What can go wrong while a result is put out.

use std::io;
use std::path::PathBuf;

use kiln_session::SessionError;
use kiln_stdx::ErrorClass;

/// An export that failed. Nothing partial is left behind where the output is kiln's own to publish.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// No such exporter.
    #[error("unknown output type `{kind}`{}", hint(suggestion))]
    UnknownType { kind: String, suggestion: Option<String> },
    /// An attribute that this exporter does not have.
    #[error("unknown attribute `{name}` of the {kind} exporter{}", hint(suggestion))]
    UnknownAttribute { kind: &'static str, name: String, suggestion: Option<String> },
    /// An attribute with a value that it cannot have.
    #[error("invalid value `{value}` of attribute `{name}`: {why}")]
    InvalidAttribute { name: String, value: String, why: String },
    /// Attributes that exclude each other.
    #[error("attribute `{first}` cannot be used with `{second}`")]
    Conflict { first: String, second: String },
    /// The result is not of a kind that this exporter can put out.
    #[error("{0}")]
    Unsupported(String),
    /// The frontend gave an image config that no image can have.
    #[error("invalid image config: {0}")]
    Config(String),
    /// A document could not be written or read.
    #[error(transparent)]
    Json(#[from] kiln_oci::JsonError),
    /// Content of the store could not be had.
    #[error(transparent)]
    Store(#[from] kiln_store::StoreError),
    /// A layer that is elsewhere could not be fetched.
    #[error("cannot fetch layer {layer}: {why}")]
    Fetch { layer: String, why: String, class: ErrorClass, hint: Option<String> },
    /// The push failed.
    #[error("failed to push {name}: {source}")]
    Push { name: String, source: Box<kiln_registry::RegistryError> },
    /// The store of a remote cache does not take it.
    #[error(transparent)]
    Objects(Box<kiln_objects::ObjectError>),
    /// The client could not be reached, refused the output or failed with it.
    #[error(transparent)]
    Session(SessionError),
    /// A file of the result is not what was written.
    #[error("`{path}` of the result is damaged: {what}")]
    Damaged { path: String, what: String },
    /// Two platforms have the same file, and nothing keeps them apart.
    #[error("cannot overwrite {path} from {first} with {second} when split option is disabled (platform-split)")]
    Overlap { path: String, first: String, second: String },
    /// The output cannot be written.
    #[error("cannot write {what}: {source}")]
    Write { what: String, source: io::Error },
    /// A file of the result or of the store cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The receiver has it already or called the work off.
    #[error("canceled")]
    Canceled,
}

/// The result of most calls here.
pub type Result<T, E = ExportError> = std::result::Result<T, E>;

impl ExportError {
    /// Returns who has to act.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::UnknownType { .. }
            | Self::UnknownAttribute { .. }
            | Self::InvalidAttribute { .. }
            | Self::Conflict { .. }
            | Self::Unsupported(_)
            | Self::Config(_)
            | Self::Overlap { .. } => ErrorClass::UserInput,
            Self::Json(_) => ErrorClass::Bug,
            Self::Store(error) => error.class(),
            Self::Fetch { class, .. } => *class,
            Self::Push { source, .. } => source.class(),
            Self::Objects(error) => error.class(),
            // What is sent is checked as it is read, and only that says so.
            Self::Session(SessionError::Io { source, .. }) if source.kind() == io::ErrorKind::InvalidData => {
                ErrorClass::Damage
            }
            Self::Session(error) => error.class(),
            Self::Damaged { .. } => ErrorClass::Damage,
            Self::Write { .. } | Self::Read { .. } => ErrorClass::Environment,
            Self::Canceled => ErrorClass::Canceled,
        }
    }

    /// Returns what the user can do, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Push { source, .. } => source.hint(),
            Self::Fetch { hint, .. } => hint.clone(),
            Self::Objects(error) => error.hint().map(str::to_owned),
            Self::Write { source, .. } if source.raw_os_error() == Some(28) => {
                Some("the disk of the output is full; free some space or choose another destination".to_owned())
            }
            _ => None,
        }
    }

    pub(crate) fn invalid(name: &str, value: &str, why: impl Into<String>) -> Self {
        Self::InvalidAttribute { name: name.to_owned(), value: value.to_owned(), why: why.into() }
    }

    pub(crate) fn write(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Write { what, source }
    }
}

fn hint(suggestion: &Option<String>) -> String {
    suggestion.as_ref().map(|s| format!(", did you mean `{s}`?")).unwrap_or_default()
}
