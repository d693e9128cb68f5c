//! A key store in memory: for tests, and for imported caches, which are read into one.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::context::OpContext;
use crate::key::{KeyId, Link, LinkFrom};
use crate::keystore::{Backlink, KeyStore, KeyStoreError, Loaded, RecordId, RecordsFound, Save, Target};
use crate::miss::{Gone, SlotRecord};
use crate::vertex::StepSlot;

/// Links, records and slots in ordered maps; results are kept as they are.
pub struct MemoryKeyStore<R> {
    tables: Mutex<Tables<R>>,
}

/// The same without a lock, and without futures: the simulator steps it directly.
pub(crate) struct Tables<R> {
    links: BTreeMap<LinkFrom, BTreeSet<KeyId>>,
    backlinks: BTreeMap<KeyId, BTreeSet<LinkFrom>>,
    /// By key; numbers grow, so the last is the newest.
    records: BTreeMap<KeyId, BTreeMap<u64, R>>,
    /// What became of the last record of a key.
    gone: BTreeMap<KeyId, Gone>,
    slots: BTreeMap<StepSlot, SlotRecord>,
    next: u64,
}

impl<R> Default for Tables<R> {
    fn default() -> Self {
        Self {
            links: BTreeMap::new(),
            backlinks: BTreeMap::new(),
            records: BTreeMap::new(),
            gone: BTreeMap::new(),
            slots: BTreeMap::new(),
            next: 0,
        }
    }
}

impl<R: Clone> Tables<R> {
    pub(crate) fn targets(&self, asks: &[LinkFrom]) -> Vec<Target> {
        let mut found = Vec::new();
        for (ask, from) in asks.iter().enumerate() {
            let targets = self.links.get(from).into_iter().flatten();
            found.extend(targets.map(|&key| Target { ask, key }));
        }
        found
    }

    pub(crate) fn records(&self, keys: &[KeyId]) -> RecordsFound {
        let mut numbered: Vec<(u64, KeyId)> = Vec::new();
        for key in keys {
            let records = self.records.get(key).into_iter().flatten();
            numbered.extend(records.map(|(number, _)| (*number, *key)));
        }
        numbered.sort_unstable_by(|a, b| b.cmp(a));
        numbered.dedup();
        let gone = if numbered.is_empty() { keys.iter().find_map(|key| self.gone.get(key)).cloned() } else { None };
        let records = numbered.into_iter().map(|(number, key)| (key, RecordId(number.to_string()))).collect();
        RecordsFound { records, gone }
    }

    pub(crate) fn load(&self, key: KeyId, record: &RecordId) -> Loaded<R> {
        let number = record.0.parse::<u64>().ok();
        match number.and_then(|number| self.records.get(&key)?.get(&number)) {
            Some(result) => Loaded::Hit(result.clone()),
            None => Loaded::Gone(self.gone.get(&key).cloned().unwrap_or(Gone::Evicted { eviction: None })),
        }
    }

    pub(crate) fn save(&mut self, save: &Save<'_, R>) -> Option<RecordId> {
        for from in save.links {
            self.links.entry(*from).or_default().insert(save.key);
            self.backlinks.entry(save.key).or_default().insert(*from);
        }
        let result = save.result?;
        self.next += 1;
        self.records.entry(save.key).or_default().insert(self.next, result.clone());
        self.gone.remove(&save.key);
        Some(RecordId(self.next.to_string()))
    }

    pub(crate) fn forget(&mut self, key: KeyId, record: &RecordId, why: &Gone) {
        let Some(records) = self.records.get_mut(&key) else { return };
        if let Ok(number) = record.0.parse::<u64>() {
            records.remove(&number);
        }
        if records.is_empty() {
            self.records.remove(&key);
            self.gone.insert(key, why.clone());
        }
    }

    pub(crate) fn recall(&self, slot: &StepSlot) -> Option<SlotRecord> {
        self.slots.get(slot).cloned()
    }

    pub(crate) fn remember(&mut self, slot: StepSlot, mut record: SlotRecord) {
        if let Some(old) = self.slots.get(&slot) {
            record.inherit(old);
        }
        self.slots.insert(slot, record);
    }

    pub(crate) fn backlinks(&self, key: KeyId) -> Vec<Backlink> {
        let links = self.backlinks.get(&key).into_iter().flatten();
        links.map(|at| Backlink { from: at.from, link: at.link }).collect()
    }

    /// Returns every record, for tests that damage some.
    pub(crate) fn all_records(&self) -> Vec<(KeyId, RecordId)> {
        let all = self.records.iter();
        all.flat_map(|(key, records)| records.keys().map(|number| (*key, RecordId(number.to_string())))).collect()
    }
}

impl<R> Default for MemoryKeyStore<R> {
    fn default() -> Self {
        Self { tables: Mutex::new(Tables::default()) }
    }
}

impl<R: Clone> MemoryKeyStore<R> {
    /// Returns an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a link.
    pub fn add_link(&self, from: KeyId, link: Link, to: KeyId) {
        let mut tables = self.tables.lock();
        tables.links.entry(LinkFrom { from, link }).or_default().insert(to);
        tables.backlinks.entry(to).or_default().insert(LinkFrom { from, link });
    }

    /// Adds a record. Among records of a node the one added last is tried first.
    pub fn add_record(&self, key: KeyId, result: R) -> RecordId {
        let mut tables = self.tables.lock();
        tables.next += 1;
        let number = tables.next;
        tables.records.entry(key).or_default().insert(number, result);
        RecordId(number.to_string())
    }

    /// Returns all records.
    pub fn all_records(&self) -> Vec<(KeyId, RecordId)> {
        self.tables.lock().all_records()
    }

    /// Removes a record, leaving `why` behind.
    pub fn remove_record(&self, key: KeyId, record: &RecordId, why: &Gone) {
        self.tables.lock().forget(key, record, why);
    }
}

#[async_trait]
impl<R: Clone + Send + Sync + 'static> KeyStore<R> for MemoryKeyStore<R> {
    async fn targets(&self, asks: &[LinkFrom]) -> Result<Vec<Target>, KeyStoreError> {
        Ok(self.tables.lock().targets(asks))
    }

    async fn records(&self, keys: &[KeyId]) -> Result<RecordsFound, KeyStoreError> {
        Ok(self.tables.lock().records(keys))
    }

    fn made(&self, _key: KeyId, record: &RecordId) -> Option<u64> {
        // There is no clock here: the numbers of records take its place.
        record.0.parse().ok()
    }

    async fn load(&self, _cx: &OpContext, key: KeyId, record: &RecordId) -> Result<Loaded<R>, KeyStoreError> {
        Ok(self.tables.lock().load(key, record))
    }

    async fn save(&self, save: Save<'_, R>) -> Result<Option<RecordId>, KeyStoreError> {
        Ok(self.tables.lock().save(&save))
    }

    async fn forget(&self, key: KeyId, record: &RecordId, why: &Gone) {
        self.tables.lock().forget(key, record, why);
    }

    async fn recall(&self, slot: &StepSlot) -> Result<Option<SlotRecord>, KeyStoreError> {
        Ok(self.tables.lock().recall(slot))
    }

    async fn remember(&self, slots: Vec<(StepSlot, SlotRecord)>) -> Result<(), KeyStoreError> {
        let mut tables = self.tables.lock();
        for (slot, record) in slots {
            tables.remember(slot, record);
        }
        Ok(())
    }

    async fn backlinks(&self, key: KeyId) -> Result<Vec<Backlink>, KeyStoreError> {
        Ok(self.tables.lock().backlinks(key))
    }
}
