//! What became of layers that were taken away on purpose, so that a build that misses one can say by which rule it went.

use serde::{Deserialize, Serialize};

use crate::layout::LayerId;
use crate::store::{Inner, Store};

/// How long it is remembered, in seconds, and of how many layers.
const AGE: u64 = 60 * 24 * 3600;
const MOST: usize = 10_000;

/// A layer that was taken away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evicted {
    /// By which rule, for people.
    pub rule: String,
    /// When, in seconds since 1970.
    pub at: u64,
}

impl Store {
    /// Returns what became of the first of these layers that was taken away, if it is remembered.
    pub fn evicted(&self, layers: &[LayerId]) -> Option<Evicted> {
        let table = self.0.meta.table("evicted");
        let rows = layers.iter().filter_map(|id| table.get(&id.0.to_be_bytes()));
        rows.filter_map(|json| serde_json::from_slice(&json).ok()).next()
    }
}

impl Inner {
    pub(crate) fn note_evicted(&self, id: LayerId, rule: &str) {
        let evicted = Evicted { rule: rule.to_owned(), at: self.clock.unix() };
        if let Ok(json) = serde_json::to_vec(&evicted) {
            self.meta.table("evicted").put(&id.0.to_be_bytes(), &json);
        }
    }

    /// Forgets what is old, and the oldest of what is too much.
    pub(crate) fn trim_evicted(&self) {
        let table = self.meta.table("evicted");
        let now = self.clock.unix();
        let rows = table.scan_prefix(b"").into_iter();
        let mut known: Vec<(u64, Vec<u8>)> = rows
            .map(|(key, json)| (serde_json::from_slice::<Evicted>(&json).map_or(0, |evicted| evicted.at), key))
            .collect();
        known.sort_unstable_by(|a, b| b.cmp(a));
        let gone = known.into_iter().enumerate().filter(|(at, (time, _))| *at >= MOST || *time + AGE < now);
        table.batch(gone.map(|(_, (_, key))| (key, None)).collect::<Vec<_>>());
    }
}
