//! Questions to several key stores in order. A store that cannot answer is left out, with a note in the log.

use super::Stores;
use crate::core::Answer;
use crate::key::{KeyId, LinkFrom};
use crate::keystore::{RecordRef, Save};
use crate::miss::{Gone, SlotRecord};
use crate::vertex::{MaxAge, StepSlot};

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

pub(super) async fn records<R>(
    stores: &Stores<R>,
    keys: &[KeyId],
    max_age: Option<MaxAge>,
) -> (Vec<RecordRef>, Option<Gone>) {
    let (mut records, mut gone) = (Vec::new(), None);
    for (id, store) in stores {
        match store.records(keys).await {
            Ok(mut found) => {
                if let Some(age) = max_age {
                    let before = found.records.len();
                    // Of unknown age is as good as too old.
                    found.records.retain(|(key, id)| store.made(*key, id).is_some_and(|made| made >= age.not_before));
                    if found.records.len() < before {
                        found.gone = Some(Gone::TooOld { seconds: age.seconds });
                    }
                }
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
