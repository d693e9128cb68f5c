//! Cache keys: nodes of a link graph that has the shape of BuildKit's, so that remote caches interoperate.
//!
//! A *key node* ([`KeyId`]) stands for "this result, however it is made". A *link* leads from the key of an input to the
//! key of what is made from it: `input key --(output key of the operation, input number, selector)--> result key`.
//! A result is found by following, for every input, the links of all keys known for that input, and keeping the nodes
//! that all inputs lead to. One input may have several keys (by definition, by content), and several nodes may be found.
//!
//! Identity of nodes, all SHA-256:
//!
//! | node | id |
//! |---|---|
//! | operation without inputs | its output key: `sha256("<op digest>@<output>")`, as BuildKit has it |
//! | content of an input | `sha256("<content digest>@-1")`, as BuildKit has it |
//! | operation with inputs | found through links; a new one is [`derived`] from output key and all known input keys |
//!
//! The remote cache format has no node ids but for the first two; there, nodes are told apart by their links.

use std::collections::BTreeMap;
use std::fmt;

use kiln_stdx::{Digest, StableHasher};
use serde::{Deserialize, Serialize};

/// Names a key node. Ids of different stores may be mixed: equal ids mean equal keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyId(pub Digest);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An operation's digest joined with an output number: `sha256("<op digest>@<output>")`. It is what BuildKit writes as
/// the `digest` of a cache record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OutputKey(pub Digest);

impl OutputKey {
    /// Returns the key of output `index` of the operation with digest `op`.
    pub fn new(op: &Digest, index: u32) -> Self {
        Self(Digest::of(format!("{op}@{index}")))
    }

    /// Returns the key node of an operation without inputs.
    pub fn root(self) -> KeyId {
        KeyId(self.0)
    }
}

/// Returns the key node of an input's content.
pub fn content_key_id(content: &Digest) -> KeyId {
    KeyId(Digest::of(format!("{content}@-1")))
}

/// The label of a link between two key nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Link {
    /// The operation and output that the link leads to.
    pub op: OutputKey,
    /// Which input of the operation it comes from.
    pub input: u32,
    /// What part of the input counts; never set for content keys, whose digest is already of that part.
    pub selector: Option<Digest>,
}

/// A link and the node it starts at: a question to a key store, or half of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LinkFrom {
    /// The key of the input.
    pub from: KeyId,
    /// The label.
    pub link: Link,
}

/// Returns the id of a new node: a stable hash (domain `kiln.key.v1`) of output key, and for each input in order the
/// sorted list of (key, selector) known for it.
pub fn derived(op: OutputKey, inputs: &[Vec<(KeyId, Option<Digest>)>]) -> KeyId {
    let mut hasher = StableHasher::new("kiln.key.v1").digest("op", &op.0).u64("inputs", inputs.len() as u64);
    for known in inputs {
        let mut known = known.clone();
        known.sort_unstable();
        known.dedup();
        hasher = hasher.u64("keys", known.len() as u64);
        for (key, selector) in &known {
            hasher = hasher.digest("key", &key.0);
            hasher = match selector {
                Some(selector) => hasher.digest("selector", selector),
                None => hasher.bool("selector", false),
            };
        }
    }
    KeyId(hasher.finish())
}

/// The named fields that an operation's own key is made of, for telling what changed. Values are short texts fit to be
/// shown; secrets do not belong here.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KeyRecord(pub BTreeMap<String, String>);

impl KeyRecord {
    /// Returns an empty record.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a field.
    #[must_use]
    pub fn with(mut self, field: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.insert(field.into(), value.into());
        self
    }
}
