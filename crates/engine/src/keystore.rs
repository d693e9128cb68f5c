//! The solver's keys, records and slots in the store's metadata.
//!
//! Tables, all keys binary so that a prefix scan answers a question:
//!
//! | table | key | value |
//! |---|---|---|
//! | `link` | from, op, input (4 bytes), selector (1 or 33 bytes), target | – |
//! | `backlink` | target, from, op, input, selector | – |
//! | `record` | key node, newest first (8 bytes), record id | JSON: the layers of the result |
//! | `gone` | key node | JSON: what became of its records |
//! | `slot` | SHA-256 of the step's place, or of its stage and words | JSON: how the step was keyed last |
//!
//! A record is only a claim: loading it checks that its layers are there and whole, and what is not is forgotten.

use std::collections::HashMap;

use async_trait::async_trait;
use kiln_solver::{
    Backlink, Eviction, Gone, KeyId, KeyStore, KeyStoreError, Link, LinkFrom, Loaded, OpContext, OutputKey, RecordId,
    RecordsFound, Save, SlotRecord, StepSlot, Target,
};
use kiln_stdx::{Digest, ErrorClass, Fingerprint, rand_id};
use kiln_store::{ImmutableRef, LayerId, Store, Table};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::source::fetch::only_cached;

/// Most records kept on one key node; an older one is dropped for a newer one.
const RECORDS_PER_KEY: usize = 4;

/// Keeps the solver's keys in a store.
pub struct StoreKeys {
    store: Store,
    links: Table,
    backlinks: Table,
    records: Table,
    gone: Table,
    slots: Table,
    remembered: Mutex<Remembered>,
}

/// What rows of slots hold, so that a build in which nothing changed need not read and compare them all.
#[derive(Default)]
struct Remembered {
    /// The file of metadata that this is true of.
    generation: u64,
    /// What was last remembered in a row.
    rows: HashMap<Digest, Fingerprint>,
}

impl Remembered {
    /// Most rows that are known; beyond it all are read again.
    const MAX: usize = 1 << 16;

    /// Forgets what is not true of this file of metadata, and what is too much.
    fn refresh(&mut self, generation: u64) {
        if self.generation != generation || self.rows.len() > Self::MAX {
            *self = Self { generation, rows: HashMap::new() };
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    layers: Vec<LayerId>,
}

impl StoreKeys {
    /// Returns the keys of `store`.
    pub fn new(store: Store) -> Self {
        let table = |name: &str| store.meta().table(name);
        Self {
            links: table("link"),
            backlinks: table("backlink"),
            records: table("record"),
            gone: table("gone"),
            slots: table("slot"),
            remembered: Mutex::default(),
            store,
        }
    }

    fn load_record(store: &Store, record: &Record) -> Result<ImmutableRef, Gone> {
        let damaged = |detail: String| Gone::Damaged { detail };
        let Some(reference) = store.ref_of(&record.layers) else {
            let Some(evicted) = store.evicted(&record.layers) else {
                return Err(damaged("a layer of it is gone".to_owned()));
            };
            let at = i64::try_from(evicted.at).unwrap_or(i64::MAX);
            return Err(Gone::Evicted { eviction: Some(Eviction { rule: evicted.rule, at }) });
        };
        // A build that does not import that cache cannot read it, and one that does finds it there.
        if reference.layers().iter().any(|layer| only_cached(store, layer)) {
            return Err(damaged("it lies in a remote cache and was never fetched".to_owned()));
        }
        match store.check(&reference) {
            Ok(()) => Ok(reference),
            Err(e) => Err(damaged(e.to_string())),
        }
    }
}

#[async_trait]
impl KeyStore<ImmutableRef> for StoreKeys {
    async fn targets(&self, asks: &[LinkFrom]) -> Result<Vec<Target>, KeyStoreError> {
        let mut targets = Vec::new();
        for (ask, from) in asks.iter().enumerate() {
            let prefix = link_key(from.from, &from.link);
            for (key, _) in self.links.scan_prefix(&prefix) {
                if let Some(target) = key.get(prefix.len()..).and_then(key_id) {
                    targets.push(Target { ask, key: target });
                }
            }
        }
        Ok(targets)
    }

    async fn records(&self, keys: &[KeyId]) -> Result<RecordsFound, KeyStoreError> {
        let mut found = Vec::new();
        let mut gone = None;
        for key in keys {
            for (row, _) in self.records.scan_prefix(key.0.as_bytes()) {
                if let Some((age, id)) = row.get(32..).and_then(|rest| rest.split_at_checked(8)) {
                    found.push((age.to_vec(), *key, RecordId(String::from_utf8_lossy(id).into_owned())));
                }
            }
            if gone.is_none() {
                gone = self.gone.get(key.0.as_bytes()).and_then(|json| serde_json::from_slice(&json).ok());
            }
        }
        found.sort();
        let records: Vec<_> = found.into_iter().map(|(_, key, id)| (key, id)).collect();
        let gone = gone.filter(|_| records.is_empty());
        Ok(RecordsFound { records, gone })
    }

    fn made(&self, key: KeyId, id: &RecordId) -> Option<u64> {
        let (row, _) = self.find(key, id)?;
        Some(u64::MAX - u64::from_be_bytes(row.get(32..40)?.try_into().ok()?))
    }

    async fn load(&self, _: &OpContext, key: KeyId, id: &RecordId) -> Result<Loaded<ImmutableRef>, KeyStoreError> {
        let damaged = |detail: &str| Ok(Loaded::Gone(Gone::Damaged { detail: detail.to_owned() }));
        let Some((_, json)) = self.find(key, id) else { return damaged("the record is gone") };
        let Ok(record) = serde_json::from_slice::<Record>(&json) else { return damaged("the record is unreadable") };
        let store = self.store.clone();
        let loaded = tokio::task::spawn_blocking(move || Self::load_record(&store, &record)).await;
        match loaded.map_err(|e| KeyStoreError::new(ErrorClass::Bug, e))? {
            Ok(reference) => Ok(Loaded::Hit(reference)),
            Err(gone) => Ok(Loaded::Gone(gone)),
        }
    }

    async fn save(&self, save: Save<'_, ImmutableRef>) -> Result<Option<RecordId>, KeyStoreError> {
        let mut links = Vec::with_capacity(save.links.len());
        let mut backlinks = Vec::with_capacity(save.links.len());
        for from in save.links {
            let label = link_key(from.from, &from.link);
            links.push(([label.as_slice(), save.key.0.as_bytes()].concat(), Some(Vec::new())));
            backlinks.push(([save.key.0.as_bytes().as_slice(), &label].concat(), Some(Vec::new())));
        }
        self.links.batch(links);
        self.backlinks.batch(backlinks);
        let Some(result) = save.result else { return Ok(None) };
        let layers = result.layers().iter().map(|layer| layer.id()).collect::<Vec<_>>();
        let existing = self.records.scan_prefix(save.key.0.as_bytes());
        for (row, json) in &existing {
            if serde_json::from_slice::<Record>(json).is_ok_and(|record| record.layers == layers)
                && let Some(id) = row.get(40..)
            {
                return Ok(Some(RecordId(String::from_utf8_lossy(id).into_owned())));
            }
        }
        let json = serde_json::to_vec(&Record { layers }).map_err(|e| KeyStoreError::new(ErrorClass::Bug, e))?;
        let id = RecordId(rand_id());
        let now = self.store.clock().unix_nanos();
        let mut changes = vec![(record_key(save.key, &id, now, save.made), Some(json))];
        changes.extend(existing.into_iter().skip(RECORDS_PER_KEY - 1).map(|(row, _)| (row, None)));
        self.records.batch(changes);
        if self.gone.get(save.key.0.as_bytes()).is_some() {
            self.gone.delete(save.key.0.as_bytes());
        }
        Ok(Some(id))
    }

    async fn forget(&self, key: KeyId, record: &RecordId, why: &Gone) {
        if let Some((row, _)) = self.find(key, record) {
            self.records.delete(&row);
        }
        if let Ok(json) = serde_json::to_vec(why) {
            self.gone.put(key.0.as_bytes(), &json);
        }
    }

    async fn recall(&self, slot: &StepSlot) -> Result<Option<SlotRecord>, KeyStoreError> {
        // A step that was moved is best compared with itself, and one that was changed with what stood in its place.
        let mut rows = slot_rows(slot).into_iter().filter_map(|row| self.slots.get(row.as_bytes()));
        Ok(rows.find_map(|json| serde_json::from_slice(&json).ok()))
    }

    async fn remember(&self, slots: Vec<(StepSlot, SlotRecord)>) -> Result<(), KeyStoreError> {
        let mut changes = Vec::new();
        let failed = |e| KeyStoreError::new(ErrorClass::Bug, e);
        let mut remembered = self.remembered.lock();
        remembered.refresh(self.slots.generation());
        for (slot, record) in slots {
            let now = Fingerprint::of(serde_json::to_vec(&record).map_err(failed)?);
            for row in slot_rows(&slot) {
                if remembered.rows.insert(row, now) == Some(now) {
                    continue;
                }
                let key = row.as_bytes().to_vec();
                let (mut record, old) = (record.clone(), self.slots.get(&key));
                if let Some(old) = old.as_ref().and_then(|json| serde_json::from_slice::<SlotRecord>(json).ok()) {
                    record.inherit(&old);
                }
                let json = serde_json::to_vec(&record).map_err(failed)?;
                if old.as_ref() != Some(&json) {
                    changes.push((key, Some(json)));
                }
            }
        }
        self.slots.batch(changes);
        Ok(())
    }

    async fn backlinks(&self, key: KeyId) -> Result<Vec<Backlink>, KeyStoreError> {
        let rows = self.backlinks.scan_prefix(key.0.as_bytes());
        Ok(rows.iter().filter_map(|(row, _)| parse_link(row.get(32..)?)).collect())
    }
}

impl StoreKeys {
    fn find(&self, key: KeyId, id: &RecordId) -> Option<(Vec<u8>, Vec<u8>)> {
        let rows = self.records.scan_prefix(key.0.as_bytes());
        rows.into_iter().find(|(row, _)| row.get(40..) == Some(id.0.as_bytes()))
    }
}

/// Returns the rows of a slot: by the words of the step in its stage, and by its place; then the same for the step on any
/// platform, for one that was never built on its own.
fn slot_rows(slot: &StepSlot) -> Vec<Digest> {
    let (any, own) = slot.0.split_once('\0').unwrap_or(("", &slot.0));
    let (place, words) = own.split_once('\0').unwrap_or((own, ""));
    let mut names = rows_of(place, words);
    if let Some((_, step)) = place.split_once('\n') {
        // Where several platforms are built at once, a stage is named by its platform, too.
        let step = match step.split_once(' ') {
            Some((platform, rest)) if platform.contains('/') => rest,
            _ => step,
        };
        names.extend(rows_of(&format!("{any}\n{step}"), words));
    }
    names.into_iter().map(Digest::of).collect()
}

fn rows_of(place: &str, words: &str) -> Vec<String> {
    let stage = place.rsplit_once('\n').map_or(place, |(stage, _)| stage);
    vec![format!("{stage}\0{words}"), place.to_owned()]
}

fn key_id(bytes: &[u8]) -> Option<KeyId> {
    Some(KeyId(Digest::from_bytes(bytes.try_into().ok()?)))
}

fn link_key(from: KeyId, link: &Link) -> Vec<u8> {
    let mut key = Vec::with_capacity(32 + 32 + 4 + 33 + 32);
    key.extend_from_slice(from.0.as_bytes());
    key.extend_from_slice(link.op.0.as_bytes());
    key.extend_from_slice(&link.input.to_be_bytes());
    match &link.selector {
        None => key.push(0),
        Some(selector) => {
            key.push(1);
            key.extend_from_slice(selector.as_bytes());
        }
    }
    key
}

fn parse_link(bytes: &[u8]) -> Option<Backlink> {
    let digest = |range: std::ops::Range<usize>| -> Option<Digest> {
        Some(Digest::from_bytes(bytes.get(range)?.try_into().ok()?))
    };
    let input = u32::from_be_bytes(bytes.get(64..68)?.try_into().ok()?);
    let selector = match bytes.get(68)? {
        0 => None,
        _ => Some(digest(69..101)?),
    };
    Some(Backlink { from: KeyId(digest(0..32)?), link: Link { op: OutputKey(digest(32..64)?), input, selector } })
}

/// Newest first: the age field counts down, in nanoseconds since 1970. A result that was not made just now is as old as it
/// was where it comes from.
fn record_key(key: KeyId, id: &RecordId, now: u64, made: Option<u64>) -> Vec<u8> {
    let age = u64::MAX - made.unwrap_or(now).min(now);
    [key.0.as_bytes().as_slice(), &age.to_be_bytes(), id.0.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[tokio::test]
    async fn a_result_is_as_old_as_it_was_where_it_comes_from() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(kiln_store::StoreConfig::new(dir.path())).unwrap();
        let keys = StoreKeys::new(store.clone());
        let (result, op) = (store.scratch(), OutputKey(Digest::of("op")));
        let mut ages = Vec::new();
        for (name, made) in
            [("imported", Some(5)), ("of no age", Some(0)), ("of the future", Some(u64::MAX)), ("own", None)]
        {
            let key = KeyId(Digest::of(name));
            let save = Save { key, op, links: &[], result: Some(&result), made };
            let record = keys.save(save).await.unwrap().unwrap();
            ages.push(keys.made(key, &record).unwrap());
        }
        let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap();
        assert_eq!(ages[..2], [5, 0]);
        assert!(ages[2] <= now && ages[2] > 5 && ages[3] <= now && ages[3] > 5, "{ages:?}");
    }
}
