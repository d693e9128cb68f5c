//! Questions to several key stores in order. A store that cannot answer is left out, with a note in the log.

use super::Stores;
use crate::core::Answer;
use crate::key::{KeyId, LinkFrom};
use crate::keystore::{RecordRef, Save};
use crate::miss::{Gone, SlotRecord};
use crate::vertex::StepSlot;

pub(super) async fn targets<R>(stores: &Stores<R>, asks: &[LinkFrom]) -> Vec<Answer> {
    let mut answers = Vec::new();
    for (id, store) in stores {
        match store.targets(asks).await {
            Ok(targets) => {
                answers.extend(targets.into_iter().map(|t| Answer { ask: t.ask, key: t.key, store: *id }));
            }
            Err(error) => tracing::warn!(%error, "cache links were not read"),
        }
    }
    answers
}

pub(super) async fn records<R>(stores: &Stores<R>, keys: &[KeyId]) -> (Vec<RecordRef>, Option<Gone>) {
    let (mut records, mut gone) = (Vec::new(), None);
    for (id, store) in stores {
        match store.records(keys).await {
            Ok(found) => {
                let found_here =
                    found.records.into_iter().map(|(key, record)| RecordRef { store: *id, key, id: record });
                records.extend(found_here);
                gone = gone.or(found.gone);
            }
            Err(error) => tracing::warn!(%error, "cache records were not read"),
        }
    }
    let gone = if records.is_empty() { gone } else { None };
    (records, gone)
}

pub(super) async fn recall<R>(stores: &Stores<R>, slots: &[StepSlot]) -> Option<SlotRecord> {
    for (_, store) in stores {
        for slot in slots {
            match store.recall(slot).await {
                Ok(Some(record)) => return Some(record),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "a step slot was not read"),
            }
        }
    }
    None
}

/// Saves to the first of the stores.
pub(super) async fn save<R>(stores: &Stores<R>, save: Save<'_, R>) -> Option<RecordRef> {
    let (id, store) = stores.first()?;
    let key = save.key;
    match store.save(save).await {
        Ok(record) => record.map(|record| RecordRef { store: *id, key, id: record }),
        Err(error) => {
            tracing::warn!(%error, "a result was not kept in the cache");
            None
        }
    }
}
