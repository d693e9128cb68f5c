//! The store's keys as the simulated solver sees them: every load and save waits at the gate.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use kiln_engine::keystore::StoreKeys;
use kiln_solver::{
    Backlink, Gone, KeyId, KeyStore, KeyStoreError, LinkFrom, Loaded, OpContext, RecordId, RecordsFound, Save,
    SlotRecord, StepSlot, Target,
};
use kiln_stdx::ErrorClass;
use kiln_store::{ImmutableRef, LayerId};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::Planted;
use crate::op::Shared;

pub struct SimKeys {
    inner: StoreKeys,
    sim: Arc<Shared>,
    /// What was saved, for the planted fault.
    saved: Mutex<BTreeMap<RecordId, Vec<LayerId>>>,
}

impl SimKeys {
    pub fn new(sim: Arc<Shared>) -> Self {
        Self { inner: StoreKeys::new(sim.store.clone()), sim, saved: Mutex::default() }
    }

    /// The planted fault: a record is believed, and what is left of its layers taken for its result.
    fn believe(&self, id: &RecordId) -> Option<ImmutableRef> {
        let saved = self.saved.lock();
        let store = &self.sim.store;
        Some(store.ref_of_layers(saved.get(id)?.iter().filter_map(|layer| store.layer(*layer)).collect()))
    }
}

fn called_off() -> KeyStoreError {
    KeyStoreError::new(ErrorClass::Canceled, "called off")
}

#[async_trait]
impl KeyStore<ImmutableRef> for SimKeys {
    async fn targets(&self, asks: &[LinkFrom]) -> Result<Vec<Target>, KeyStoreError> {
        self.inner.targets(asks).await
    }

    async fn records(&self, keys: &[KeyId]) -> Result<RecordsFound, KeyStoreError> {
        self.inner.records(keys).await
    }

    fn made(&self, key: KeyId, record: &RecordId) -> Option<u64> {
        self.inner.made(key, record)
    }

    async fn load(&self, cx: &OpContext, key: KeyId, record: &RecordId) -> Result<Loaded<ImmutableRef>, KeyStoreError> {
        if !self.sim.gate.pass(format!("load {}", record.0), cx.cancel()).await || self.sim.machine.is_dead() {
            return Err(called_off());
        }
        if self.sim.planted == Some(Planted::BelieveRecords)
            && let Some(result) = self.believe(record)
        {
            return Ok(Loaded::Hit(result));
        }
        let _busy = self.sim.gate.busy();
        self.inner.load(cx, key, record).await
    }

    fn at_hand(&self, key: KeyId, record: &RecordId) -> Option<ImmutableRef> {
        self.inner.at_hand(key, record)
    }

    async fn save(&self, save: Save<'_, ImmutableRef>) -> Result<Option<RecordId>, KeyStoreError> {
        let Some(result) = save.result else { return self.inner.save(save).await };
        if !self.sim.gate.pass(format!("save {}", save.key), &CancellationToken::new()).await
            || self.sim.machine.is_dead()
        {
            return Err(called_off());
        }
        let record = self.inner.save(save.clone()).await?;
        self.sim.checks.lock().saved(result);
        if let Some(record) = &record {
            self.saved.lock().insert(record.clone(), result.layer_ids());
        }
        self.sim.gate.touch();
        Ok(record)
    }

    async fn forget(&self, key: KeyId, record: &RecordId, why: &Gone) {
        self.sim.checks.lock().note(&format!("forget {}", record.0));
        self.inner.forget(key, record, why).await;
    }

    async fn recall(&self, slot: &StepSlot) -> Result<Option<SlotRecord>, KeyStoreError> {
        self.inner.recall(slot).await
    }

    async fn remember(&self, slots: Vec<(StepSlot, SlotRecord)>) -> Result<(), KeyStoreError> {
        self.inner.remember(slots).await
    }

    async fn backlinks(&self, key: KeyId) -> Result<Vec<Backlink>, KeyStoreError> {
        self.inner.backlinks(key).await
    }
}
