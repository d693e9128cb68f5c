//! What can be wrong with a build graph.

use kiln_stdx::{Digest, ErrorClass};

/// Why a definition is refused, or cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LlbError {
    /// There is no operation at all.
    #[error("invalid empty definition")]
    Empty,
    /// A definition needs one operation and the entry that names the result.
    #[error("invalid LLB with {0} vertexes")]
    TooFew(usize),
    /// More operations than `limits::LLB_OPS`.
    #[error("the build graph has more than {max} operations, which is the most it may have", max = kiln_stdx::limits::LLB_OPS)]
    TooMany,
    /// The bytes are no message.
    #[error("failed to parse llb proto op {index}: {cause}")]
    Decode { index: usize, cause: String },
    /// The last entry names no result.
    #[error("invalid LLB with no inputs on last vertex")]
    NoResult,
    /// An input names an operation that is not in the definition.
    #[error("invalid missing input digest {0}")]
    MissingInput(String),
    /// The operations depend on each other in a circle.
    #[error("the build graph has a cycle through {0}")]
    Cycle(Digest),
    /// An operation's own fields are wrong.
    #[error("{what} (operation {vertex})")]
    Invalid { vertex: Digest, what: String },
    /// The definition asks for what this engine does not know.
    #[error("unknown LLB capability {capability:?} requested by {vertex}: the client is newer than this engine")]
    UnknownCapability { vertex: String, capability: String },
    /// A builder's argument is wrong.
    #[error("{0}")]
    Argument(String),
}

impl LlbError {
    /// Returns the class: a wrong graph is always the caller's input.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::UserInput
    }
}
