//! Errors of a build: what failed, where it was written, who has to act, and a hint where there is one.

use kiln_llb::pb;
use kiln_solver::{LoadError, OpError, SolveError};
use kiln_stdx::{Digest, ErrorClass};

use crate::wreck::{Wreck, WreckIds};

/// Why a build failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct EngineError {
    message: String,
    class: ErrorClass,
    /// The vertex that failed.
    pub vertex: Option<Digest>,
    /// Where it was written.
    pub source_location: Option<Box<Location>>,
    /// What few errors have.
    further: Option<Box<Further>>,
    /// What to do about it.
    pub hint: Option<String>,
    /// Exit code of the step that failed.
    pub exit_code: Option<i32>,
}

/// What few errors have.
#[derive(Debug, Clone, Default)]
pub struct Further {
    /// Where else it was written, from the innermost place outwards.
    pub locations: Vec<Location>,
    /// Why a client's policy denied a source.
    pub denials: Vec<String>,
    /// Details of a client's frontend that mean nothing here: type URL and value of each.
    pub foreign: Vec<(String, Vec<u8>)>,
    /// What a caller asked of a frontend that it does not do.
    pub unsupported: Option<Unsupported>,
    /// What is missing could be had if the build were not offline.
    pub offline: bool,
    /// What the failed step leaves, for as long as this error is kept.
    pub wreck: Option<std::sync::Arc<Wreck>>,
    /// The names of that for the client.
    pub wreck_ids: Option<WreckIds>,
    /// Whether something else came than was asked for.
    pub damaged: bool,
}

/// What a frontend does not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unsupported {
    /// A subrequest, by its name.
    Subrequest(String),
    /// A capability that the caller relies on.
    Capability(String),
}

/// A place in a source file that a client can show.
#[derive(Debug, Clone)]
pub struct Location {
    pub info: pb::SourceInfo,
    pub ranges: Vec<pb::Range>,
}

impl EngineError {
    /// Returns an error of this class.
    pub fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            class,
            vertex: None,
            source_location: None,
            further: None,
            hint: None,
            exit_code: None,
        }
    }

    /// Returns an error of the user's input.
    pub fn user(message: impl Into<String>) -> Self {
        Self::new(ErrorClass::UserInput, message)
    }

    /// Returns the error of a caller that asks a frontend for what it does not do.
    pub fn unsupported(what: Unsupported) -> Self {
        let mut error = Self::user(match &what {
            Unsupported::Subrequest(name) => format!("unsupported request {name}"),
            Unsupported::Capability(name) => format!("unsupported frontend capability {name}"),
        });
        error.further_mut().unsupported = Some(what);
        error
    }

    /// Returns the error of a build that was called off.
    pub fn canceled() -> Self {
        Self::new(ErrorClass::Canceled, "context canceled")
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says what to do about a disk that is `full`.
    #[must_use]
    pub(crate) fn hinting_at(self, full: bool) -> Self {
        match full {
            true => self.with_hint("the disk of the state root is full; free space there, or with `kiln prune`"),
            false => self,
        }
    }

    /// Returns what few errors have.
    pub fn further(&self) -> Option<&Further> {
        self.further.as_deref()
    }

    /// As [`EngineError::further`], to add to it.
    pub fn further_mut(&mut self) -> &mut Further {
        self.further.get_or_insert_default()
    }

    /// Tells whether something else came than was asked for.
    pub fn tells_damage(&self) -> bool {
        self.further().is_some_and(|further| further.damaged)
    }

    /// Returns who has to act.
    pub fn class(&self) -> ErrorClass {
        self.class
    }

    /// Wraps any typed error of a lower crate.
    pub fn from_error(class: ErrorClass, error: impl std::error::Error) -> Self {
        Self::new(class, chain(&error))
    }
}

/// Returns the texts of an error and its causes, each once, joined as people read them.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.ends_with(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}

impl From<SolveError> for EngineError {
    fn from(error: SolveError) -> Self {
        match error {
            SolveError::Vertex { vertex, cause, .. } => {
                let mut this = Self::from(cause);
                this.vertex = this.vertex.or(Some(vertex.0));
                this
            }
            SolveError::Canceled => Self::canceled(),
            other => Self::new(other.class(), other.to_string()),
        }
    }
}

impl From<OpError> for EngineError {
    fn from(error: OpError) -> Self {
        if let Some(inner) = error.source().downcast_ref::<EngineError>() {
            return inner.clone();
        }
        if error.kind() == kiln_solver::OpErrorKind::Canceled {
            return Self::canceled();
        }
        Self::new(error.class(), chain(error.source()))
    }
}

impl From<EngineError> for OpError {
    fn from(error: EngineError) -> Self {
        match error.class {
            ErrorClass::Canceled => Self::canceled(),
            class => Self::new(class, error),
        }
    }
}

macro_rules! from_typed {
    ($($error:ty),+ $(,)?) => {$(
        impl From<$error> for EngineError {
            fn from(error: $error) -> Self {
                Self::from_error(error.class(), error)
            }
        }
    )+};
}

from_typed!(LoadError, kiln_llb::LlbError);

impl From<kiln_oci::JsonError> for EngineError {
    fn from(error: kiln_oci::JsonError) -> Self {
        Self::from_error(ErrorClass::UserInput, error)
    }
}

impl From<std::io::Error> for EngineError {
    fn from(error: std::io::Error) -> Self {
        let full = matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
        Self::from_error(ErrorClass::Environment, error).hinting_at(full)
    }
}
