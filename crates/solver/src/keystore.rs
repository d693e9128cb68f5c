//! Where keys, records and slots are kept: the trait, and what its calls exchange.

use async_trait::async_trait;
use kiln_stdx::ErrorClass;
use serde::{Deserialize, Serialize};

use crate::context::OpContext;
use crate::key::{KeyId, Link, LinkFrom, OutputKey};
use crate::miss::{Gone, SlotRecord};
use crate::vertex::StepSlot;

/// Names a record within its store. Opaque to the solver.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RecordId(pub String);

/// Names a key store of a solver: 0 is the main one, the others are imported caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StoreId(pub u32);

impl StoreId {
    /// The store that results are saved to.
    pub const MAIN: Self = Self(0);
}

/// A record in one of a job's stores.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordRef {
    /// The store.
    pub store: StoreId,
    /// The key node it hangs on.
    pub key: KeyId,
    /// Its name there.
    pub id: RecordId,
}

/// An answer to [`KeyStore::targets`]: question number `ask` leads to `key`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Index into the questions.
    pub ask: usize,
    /// A node that the link leads to.
    pub key: KeyId,
}

/// An answer to [`KeyStore::records`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecordsFound {
    /// The records of all given keys, the one to be tried first at the front (newest first).
    pub records: Vec<(KeyId, RecordId)>,
    /// If none is there any more but one was: what became of it.
    pub gone: Option<Gone>,
}

/// An answer to [`KeyStore::load`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loaded<R> {
    /// The result.
    Hit(R),
    /// There is none; the solver will ask to `forget` the record.
    Gone(Gone),
}

/// What [`KeyStore::save`] is to keep: a node, links to it, and perhaps a record on it.
#[derive(Debug, Clone)]
pub struct Save<'a, R> {
    /// The node.
    pub key: KeyId,
    /// Its output key.
    pub op: OutputKey,
    /// Links from the keys of its inputs; empty for an operation without inputs.
    pub links: &'a [LinkFrom],
    /// The result to hang on the node; without one only links are saved.
    pub result: Option<&'a R>,
    /// When the result was made, in nanoseconds since 1970, if not just now.
    pub made: Option<u64>,
}

/// A link that leads to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backlink {
    /// Where it comes from.
    pub from: KeyId,
    /// Its label.
    pub link: Link,
}

/// Why a key store could not answer. The solver takes it as a miss and goes on.
#[derive(Debug, thiserror::Error)]
#[error("cache metadata: {source}")]
pub struct KeyStoreError {
    class: ErrorClass,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl KeyStoreError {
    /// Wraps an error.
    pub fn new(class: ErrorClass, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { class, source: source.into() }
    }

    /// Returns who has to act.
    pub fn class(&self) -> ErrorClass {
        self.class
    }
}

/// Keeps key nodes, links, records and slots. The main store is written; imported ones are only read (`save`,
/// `remember` and `recall` are not called for them).
///
/// `targets` and `records` are called for every vertex of every build and should answer at once from memory or a local
/// file; the solver polls them in place before it hands them to the runtime.
#[async_trait]
pub trait KeyStore<R>: Send + Sync {
    /// Follows links.
    ///
    /// # Errors
    /// Taken as no answers.
    async fn targets(&self, asks: &[LinkFrom]) -> Result<Vec<Target>, KeyStoreError>;

    /// Finds records.
    ///
    /// # Errors
    /// Taken as no records.
    async fn records(&self, keys: &[KeyId]) -> Result<RecordsFound, KeyStoreError>;

    /// Returns when the result of a record was made, in nanoseconds since 1970; nothing where that is not known.
    fn made(&self, _key: KeyId, _record: &RecordId) -> Option<u64> {
        None
    }

    /// Loads a record. May take long (a remote cache) and ends soon after `cx.cancel()` fires.
    ///
    /// # Errors
    /// Taken as a damaged record, which is not forgotten.
    async fn load(&self, cx: &OpContext, key: KeyId, record: &RecordId) -> Result<Loaded<R>, KeyStoreError>;

    /// Returns the result of a record if all of it is known here, so that nothing has to be fetched to name it.
    fn at_hand(&self, _key: KeyId, _record: &RecordId) -> Option<R> {
        None
    }

    /// Saves a node with links and perhaps a record; returns the record's name. What is there already is not an error.
    ///
    /// # Errors
    /// The result is used all the same, only not kept.
    async fn save(&self, save: Save<'_, R>) -> Result<Option<RecordId>, KeyStoreError>;

    /// Removes a record that could not be loaded.
    async fn forget(&self, key: KeyId, record: &RecordId, why: &Gone);

    /// Returns what a slot remembers.
    ///
    /// # Errors
    /// Taken as nothing.
    async fn recall(&self, slot: &StepSlot) -> Result<Option<SlotRecord>, KeyStoreError>;

    /// Lets slots remember. Implementations call [`SlotRecord::inherit`] with what was there and need not write what
    /// did not change.
    ///
    /// # Errors
    /// Logged.
    async fn remember(&self, slots: Vec<(StepSlot, SlotRecord)>) -> Result<(), KeyStoreError>;

    /// Returns the links that lead to a node, for cache export.
    ///
    /// # Errors
    /// The export goes on without them.
    async fn backlinks(&self, key: KeyId) -> Result<Vec<Backlink>, KeyStoreError>;
}
