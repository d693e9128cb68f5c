//! Why a vertex was executed instead of being loaded.

use std::fmt;

use kiln_stdx::Digest;
use serde::{Deserialize, Serialize};

use crate::key::{KeyId, KeyRecord};
use crate::vertex::VertexDigest;

/// Why there was no result to load, and where it can be told, what differs from the step's last run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum MissReason {
    /// The step was never solved before, or nothing is remembered of it.
    NoRecord,
    /// The step's own definition changed.
    OpChanged {
        /// The fields that differ, by name.
        changes: Vec<FieldChange>,
    },
    /// An input is another one than last time and is not known by content.
    InputChanged {
        /// Which input.
        input: u32,
        /// Its vertex.
        vertex: VertexDigest,
        /// The name of its vertex.
        name: String,
        /// Why the input itself was executed, if it was.
        cause: Option<Box<MissReason>>,
    },
    /// What the step sees of an input has other content than last time.
    ContentChanged {
        /// Which input.
        input: u32,
        /// Its vertex.
        vertex: VertexDigest,
        /// The name of its vertex.
        name: String,
        /// The content's digest last time.
        old: Digest,
        /// The content's digest this time.
        new: Digest,
        /// What differs, as the operation tells it: a path and what of it.
        detail: Option<String>,
    },
    /// Nothing changed, but the record was removed to make room.
    Evicted {
        /// By which rule and when, if that is still known.
        eviction: Option<Eviction>,
    },
    /// Nothing changed, but what the record led to was damaged or gone.
    Damaged {
        /// What was found.
        detail: String,
    },
    /// The caller asked for a run without cache.
    IgnoreCache,
}

/// A field of an operation's key that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldChange {
    /// The field.
    pub field: String,
    /// Its value last time, if it had one.
    pub old: Option<String>,
    /// Its value this time, if it has one.
    pub new: Option<String>,
}

/// How a record came to be removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eviction {
    /// The rule, as a text.
    pub rule: String,
    /// When, in seconds since the epoch.
    pub at: i64,
}

/// Why a record could not be loaded, or is no longer there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Gone {
    /// It was removed on purpose.
    Evicted {
        /// By which rule and when, if that is still known.
        eviction: Option<Eviction>,
    },
    /// What it leads to is damaged or missing.
    Damaged {
        /// What was found.
        detail: String,
    },
}

impl From<Gone> for MissReason {
    fn from(gone: Gone) -> Self {
        match gone {
            Gone::Evicted { eviction } => Self::Evicted { eviction },
            Gone::Damaged { detail } => Self::Damaged { detail },
        }
    }
}

/// What a [`StepSlot`](crate::StepSlot) remembers: how the step was keyed when it was last solved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRecord {
    /// The operation's own fields.
    pub op: KeyRecord,
    /// One for each input.
    pub inputs: Vec<SlotInput>,
    /// The key nodes of the result; a store that evicts their records can leave a tombstone.
    pub keys: Vec<KeyId>,
}

/// What a slot remembers of one input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotInput {
    /// The name of the input's vertex.
    pub name: String,
    /// The keys it was known by, sorted.
    pub keys: Vec<KeyId>,
    /// The digest of what the step saw of it, if that was computed.
    pub content: Option<Digest>,
}

impl SlotRecord {
    /// Takes over from `old` what this solve had no need to compute: the content digests of inputs that are still known
    /// by the same keys.
    pub fn inherit(&mut self, old: &Self) {
        for (new, old) in self.inputs.iter_mut().zip(&old.inputs) {
            if new.content.is_none() && new.keys.iter().any(|key| old.keys.contains(key)) {
                new.content = old.content;
            }
        }
    }
}

impl fmt::Display for MissReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRecord => f.write_str("no earlier result"),
            Self::OpChanged { changes } => match changes.as_slice() {
                [] => f.write_str("definition changed"),
                [first, rest @ ..] => {
                    write!(f, "`{}` changed", first.field)?;
                    for change in rest {
                        write!(f, ", `{}` changed", change.field)?;
                    }
                    Ok(())
                }
            },
            Self::InputChanged { name, .. } => write!(f, "input `{name}` changed"),
            Self::ContentChanged { name, detail: None, .. } => write!(f, "content of `{name}` changed"),
            Self::ContentChanged { name, detail: Some(detail), .. } => {
                write!(f, "content of `{name}` changed: {detail}")
            }
            Self::Evicted { eviction: None } => f.write_str("earlier result is no longer there"),
            Self::Evicted { eviction: Some(eviction) } => write!(f, "earlier result was evicted: {}", eviction.rule),
            Self::Damaged { detail } => write!(f, "earlier result was damaged: {detail}"),
            Self::IgnoreCache => f.write_str("cache is ignored for this step"),
        }
    }
}
