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
        /// The step's name, where that is another one too.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        renamed: Option<Renamed>,
    },
    /// An input is another one than last time and is not known by content.
    InputChanged {
        /// Which input.
        input: u32,
        /// Its vertex.
        vertex: VertexDigest,
        /// The name of its vertex.
        name: String,
        /// The name of the vertex last time, where that was another one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        was: Option<String>,
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
        /// What differs, as the operation tells it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        difference: Option<Difference>,
        /// Why the input itself was executed, if it was.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cause: Option<Box<MissReason>>,
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
    /// Nothing changed, but the result is older than the caller takes.
    TooOld {
        /// The bound, in seconds.
        seconds: u64,
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

/// A step that has another name than last time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renamed {
    /// Last time.
    pub old: String,
    /// This time.
    pub new: String,
}

/// What differs between two contents.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The first parts that differ.
    pub parts: Vec<Part>,
    /// How many parts differ besides.
    pub more: u64,
}

/// A part of a content that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its name, such as a path.
    pub name: String,
    /// What of it differs: `added`, `removed`, or what was changed.
    pub what: String,
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
    /// It is there, but older than the caller takes.
    TooOld {
        /// The bound, in seconds.
        seconds: u64,
    },
}

impl From<Gone> for MissReason {
    fn from(gone: Gone) -> Self {
        match gone {
            Gone::Evicted { eviction } => Self::Evicted { eviction },
            Gone::Damaged { detail } => Self::Damaged { detail },
            Gone::TooOld { seconds } => Self::TooOld { seconds },
        }
    }
}

/// What a [`StepSlot`](crate::StepSlot) remembers: how the step was keyed when it was last solved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRecord {
    /// The step's name.
    #[serde(default)]
    pub name: String,
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

impl MissReason {
    /// Returns the reason that this one goes back to, with the names of the inputs on the way, nearest first. Of an input
    /// that nothing is remembered of there is nothing to tell.
    pub fn root(&self) -> (Vec<&str>, &Self) {
        let (mut path, mut reason) = (Vec::new(), self);
        while let Self::InputChanged { name, cause: Some(cause), .. }
        | Self::ContentChanged { name, cause: Some(cause), .. } = reason
        {
            if **cause == Self::NoRecord {
                break;
            }
            path.push(name.as_str());
            reason = cause;
        }
        (path, reason)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, part) in self.parts.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{} ({})", part.name, part.what)?;
        }
        match self.more {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

impl fmt::Display for FieldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.old, &self.new) {
            (None, Some(new)) => write!(f, "{} added: {new}", self.field),
            (Some(old), None) => write!(f, "{} removed: {old}", self.field),
            (Some(old), Some(new)) => write!(f, "{} changed: {old} -> {new}", self.field),
            (None, None) => f.write_str(&self.field),
        }
    }
}

impl fmt::Display for MissReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRecord => f.write_str("first build of this step"),
            Self::OpChanged { changes, renamed } => write_change(f, changes, renamed.as_ref()),
            Self::InputChanged { name, .. } => write!(f, "`{name}` is another one"),
            Self::ContentChanged { name, difference: None, .. } => write!(f, "content of `{name}` changed"),
            Self::ContentChanged { difference: Some(difference), .. } => write!(f, "content changed: {difference}"),
            Self::Evicted { eviction: None } => f.write_str("the earlier result is no longer there"),
            Self::Evicted { eviction: Some(eviction) } => {
                write!(f, "the earlier result was removed: {}", eviction.rule)
            }
            Self::Damaged { detail } => write!(f, "the earlier result was damaged: {detail}"),
            Self::TooOld { seconds } => {
                write!(f, "the earlier result is older than {}", kiln_stdx::age::show(*seconds))
            }
            Self::IgnoreCache => f.write_str("the cache is not used for this step"),
        }
    }
}

/// The step's new words say more than the fields that follow from them, but for those that are not in the words.
fn write_change(f: &mut fmt::Formatter<'_>, changes: &[FieldChange], renamed: Option<&Renamed>) -> fmt::Result {
    if let Some(Renamed { old, new }) = renamed {
        return write!(f, "instruction changed: {old} -> {new}");
    }
    match changes {
        [] => f.write_str("definition changed"),
        [first, rest @ ..] => {
            write!(f, "{first}")?;
            rest.iter().try_for_each(|change| write!(f, ", {change}"))
        }
    }
}
