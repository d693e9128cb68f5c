//! What callers get when a solve does not end in a result.

use kiln_stdx::ErrorClass;

use crate::op::OpError;
use crate::vertex::{Edge, VertexDigest};

/// Why an edge was not solved.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SolveError {
    /// A vertex failed.
    #[error("{name}: {cause}")]
    Vertex {
        /// The vertex that failed, which need not be the one that was asked for.
        vertex: VertexDigest,
        /// Its name.
        name: String,
        /// Why.
        #[source]
        cause: OpError,
    },
    /// The job was cancelled, or is over.
    #[error("canceled")]
    Canceled,
    /// The edge was never loaded into the job.
    #[error("vertex {} is not part of the job", .0.vertex)]
    Unknown(Edge),
    /// The solver was shut down.
    #[error("the solver has ended")]
    Ended,
}

impl SolveError {
    /// Returns who has to act.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Vertex { cause, .. } => cause.class(),
            Self::Canceled => ErrorClass::Canceled,
            Self::Unknown(_) | Self::Ended => ErrorClass::Bug,
        }
    }
}

/// Why vertices were not loaded. None of a refused batch is loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// An input is neither in the batch nor loaded before.
    #[error("vertex {vertex} has the unknown input {input}")]
    UnknownInput {
        /// The vertex.
        vertex: VertexDigest,
        /// The vertex it needs.
        input: VertexDigest,
    },
    /// The batch has a cycle.
    #[error("vertex {0} depends on itself")]
    Cycle(VertexDigest),
    /// The job was cancelled, or is over.
    #[error("canceled")]
    Canceled,
    /// The solver was shut down.
    #[error("the solver has ended")]
    Ended,
}

impl LoadError {
    /// Returns who has to act.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::UnknownInput { .. } | Self::Cycle(_) => ErrorClass::UserInput,
            Self::Canceled => ErrorClass::Canceled,
            Self::Ended => ErrorClass::Bug,
        }
    }
}
