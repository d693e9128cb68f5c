//! The keys of an imported cache, read-only and in memory. Results are loaded when the solver asks for one.
//!
//! The cache's config names no key nodes but roots and contents; the others get the id that the solver itself would
//! give to a node with these sources ([`derived`]), so that equal keys of several stores are one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use async_trait::async_trait;
use kiln_exporter::cacheconfig::{CacheResult, ParsedCache};
use kiln_oci::Descriptor;
use kiln_solver::{
    Backlink, Gone, KeyId, KeyStore, KeyStoreError, Link, LinkFrom, Loaded, OpContext, OutputKey, RecordId,
    RecordsFound, Save, SlotRecord, StepSlot, Target, derived,
};
use kiln_stdx::{ErrorClass, StableHasher};
use parking_lot::Mutex;

use crate::error::EngineError;

/// Turns the blobs of a record into a result.
#[async_trait]
pub trait StackLoader<R>: Send + Sync {
    /// Returns the result with these layers, bottom first. Ends soon after `cx.cancel()` fires.
    ///
    /// # Errors
    /// A blob cannot be had or is not what its descriptor says; the call was called off.
    async fn load(&self, cx: &OpContext, layers: &[Descriptor]) -> Result<R, EngineError>;

    /// Returns the result with these layers if all of them are known here.
    fn at_hand(&self, layers: &[Descriptor]) -> Option<R>;
}

/// An imported cache.
pub struct ImportedKeys<R> {
    links: HashMap<LinkFrom, BTreeSet<KeyId>>,
    backlinks: HashMap<KeyId, BTreeSet<Backlink>>,
    records: Mutex<Records>,
    loader: Box<dyn StackLoader<R>>,
}

#[derive(Default)]
struct Records {
    kept: HashMap<KeyId, BTreeMap<RecordId, CacheResult>>,
    /// What became of records that could not be loaded.
    gone: HashMap<KeyId, Gone>,
}

impl<R> ImportedKeys<R> {
    /// Returns the keys of `cache`, whose results `loader` brings.
    pub fn new(cache: ParsedCache, loader: Box<dyn StackLoader<R>>) -> Self {
        let mut this = Self { links: HashMap::new(), backlinks: HashMap::new(), records: Mutex::default(), loader };
        // A node whose sources were not usable leaves a hole, so that indexes keep their meaning.
        let mut keys: Vec<Option<KeyId>> = Vec::with_capacity(cache.nodes.len());
        for node in cache.nodes {
            let op = OutputKey(node.digest);
            let sources: Vec<Vec<_>> = node
                .inputs
                .iter()
                .map(|links| {
                    let known = |node: usize| keys.get(node).copied().flatten();
                    links.iter().filter_map(|link| Some((known(link.node)?, link.selector))).collect()
                })
                .collect();
            if sources.iter().any(Vec::is_empty) {
                keys.push(None);
                continue;
            }
            let key = if sources.is_empty() { op.root() } else { derived(op, &sources) };
            this.add_links(key, op, &sources);
            let records = this.records.get_mut();
            for result in node.results {
                records.kept.entry(key).or_default().insert(record_id(&result), result);
            }
            keys.push(Some(key));
        }
        this
    }

    fn add_links(&mut self, key: KeyId, op: OutputKey, sources: &[Vec<(KeyId, Option<kiln_stdx::Digest>)>]) {
        for (input, known) in (0..).zip(sources) {
            for &(from, selector) in known {
                let link = Link { op, input, selector };
                self.links.entry(LinkFrom { from, link }).or_default().insert(key);
                self.backlinks.entry(key).or_default().insert(Backlink { from, link });
            }
        }
    }
}

/// Names a result by its blobs.
fn record_id(result: &CacheResult) -> RecordId {
    let hasher = StableHasher::new("kiln.cache.record.v1");
    let hasher = result.layers.iter().fold(hasher, |hasher, layer| hasher.digest("layer", &layer.digest));
    RecordId(hasher.finish().hex())
}

#[async_trait]
impl<R: Send + Sync + 'static> KeyStore<R> for ImportedKeys<R> {
    async fn targets(&self, asks: &[LinkFrom]) -> Result<Vec<Target>, KeyStoreError> {
        let of = |(ask, from): (usize, &LinkFrom)| {
            let found = self.links.get(from).into_iter().flatten();
            found.map(move |&key| Target { ask, key }).collect::<Vec<_>>()
        };
        Ok(asks.iter().enumerate().flat_map(of).collect())
    }

    async fn records(&self, keys: &[KeyId]) -> Result<RecordsFound, KeyStoreError> {
        let records = self.records.lock();
        let mut found = Vec::new();
        for key in keys {
            let kept = records.kept.get(key).into_iter().flatten();
            found.extend(kept.map(|(id, result)| (Reverse(result.created), *key, id.clone())));
        }
        found.sort();
        let gone = if found.is_empty() { keys.iter().find_map(|key| records.gone.get(key)).cloned() } else { None };
        Ok(RecordsFound { records: found.into_iter().map(|(_, key, id)| (key, id)).collect(), gone })
    }

    fn made(&self, key: KeyId, record: &RecordId) -> Option<u64> {
        let created = self.records.lock().kept.get(&key)?.get(record)?.created;
        // Before 1970 is what caches say that do not tell.
        u64::try_from(created).ok().filter(|nanoseconds| *nanoseconds > 0)
    }

    async fn load(&self, cx: &OpContext, key: KeyId, record: &RecordId) -> Result<Loaded<R>, KeyStoreError> {
        let layers = self.records.lock().kept.get(&key).and_then(|kept| kept.get(record)).map(|r| r.layers.clone());
        let Some(layers) = layers else { return Ok(Loaded::Gone(Gone::Evicted { eviction: None })) };
        match self.loader.load(cx, &layers).await {
            Ok(result) => Ok(Loaded::Hit(result)),
            // Nothing is wrong with the record when nobody wants it any more.
            Err(error) if error.class() == ErrorClass::Canceled => Err(KeyStoreError::new(error.class(), error)),
            Err(error) => Ok(Loaded::Gone(Gone::Damaged { detail: error.to_string() })),
        }
    }

    fn at_hand(&self, key: KeyId, record: &RecordId) -> Option<R> {
        self.loader.at_hand(&self.records.lock().kept.get(&key)?.get(record)?.layers)
    }

    async fn save(&self, _: Save<'_, R>) -> Result<Option<RecordId>, KeyStoreError> {
        Ok(None)
    }

    async fn forget(&self, key: KeyId, record: &RecordId, why: &Gone) {
        let mut records = self.records.lock();
        if let Some(kept) = records.kept.get_mut(&key) {
            kept.remove(record);
        }
        records.gone.insert(key, why.clone());
    }

    async fn recall(&self, _: &StepSlot) -> Result<Option<SlotRecord>, KeyStoreError> {
        Ok(None)
    }

    async fn remember(&self, _: Vec<(StepSlot, SlotRecord)>) -> Result<(), KeyStoreError> {
        Ok(())
    }

    async fn backlinks(&self, key: KeyId) -> Result<Vec<Backlink>, KeyStoreError> {
        Ok(self.backlinks.get(&key).into_iter().flatten().copied().collect())
    }
}

#[cfg(test)]
mod tests;
