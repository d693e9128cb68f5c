//! Taking away what is least worth keeping, by BuildKit's policies.

mod order;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use kiln_stdx::Digest;

use crate::disk;
use crate::error::Result;
use crate::filter::Filters;
use crate::layout::LayerId;
use crate::record::RecordType;
use crate::store::{Inner, Store};
use crate::usage::{Held, UsageRecord};
use order::Turn;

/// What may go, and until when. With all three sizes zero everything that may go goes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PrunePolicy {
    /// Also internal records and frontends.
    pub all: bool,
    /// Only records that pass one of these.
    pub filters: Vec<String>,
    /// Only records that were not used for so long.
    pub keep_duration: Duration,
    /// Never go below so many bytes in use.
    pub reserved_space: u64,
    /// Stop at so many bytes in use.
    pub max_used_space: u64,
    /// Go on until so many bytes of the file system are free.
    pub min_free_space: u64,
    /// What the policy is called when somebody asks where a record is; `prune` when empty.
    pub rule: String,
}

/// What a prune did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Number of records.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl PrunePolicy {
    fn rule(&self) -> &str {
        if self.rule.is_empty() { "prune" } else { &self.rule }
    }

    /// Returns how many bytes may stay, or `None` if the policy has no limit.
    fn keep_bytes(&self, used: u64, free: u64) -> Option<u64> {
        if (self.reserved_space, self.max_used_space, self.min_free_space) == (0, 0, 0) {
            return None;
        }
        let mut keep = self.max_used_space;
        let excess = self.min_free_space.saturating_sub(free);
        if excess > 0 {
            let target = used.saturating_sub(excess);
            keep = if keep == 0 { target } else { keep.min(target) };
        }
        Some(keep.max(self.reserved_space))
    }
}

/// What is to be made room for, beside what a policy says.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ahead {
    /// Bytes that count as used.
    pub used: u64,
    /// Those of them that are not on the disk yet.
    pub unwritten: u64,
}

impl Store {
    /// Removes records by a policy; `removed` hears of each after it is gone.
    ///
    /// # Errors
    /// A filter is malformed; the image store cannot be read.
    pub fn prune(&self, policy: &PrunePolicy, removed: impl FnMut(&UsageRecord)) -> Result<Pruned> {
        self.0.prune(policy, Ahead::default(), removed)
    }

    /// Applies policies one after the other.
    ///
    /// # Errors
    /// As [`Store::prune`].
    pub fn gc(&self, policies: &[PrunePolicy], mut removed: impl FnMut(&UsageRecord)) -> Result<Pruned> {
        let mut total = Pruned::default();
        for policy in policies {
            let pruned = self.prune(policy, &mut removed)?;
            total.records += pruned.records;
            total.bytes += pruned.bytes;
        }
        self.0.trim_listings();
        self.0.carry_account();
        Ok(total)
    }
}

impl Inner {
    /// See [`Store::prune`]; nothing is listed where nothing has to go.
    pub(crate) fn prune(
        &self,
        policy: &PrunePolicy,
        ahead: Ahead,
        mut removed: impl FnMut(&UsageRecord),
    ) -> Result<Pruned> {
        let filters = Filters::parse(&policy.filters)?;
        self.settle_doubt();
        let held = self.held()?;
        // Nobody misses these, so they go first.
        let mut pruned = Pruned { records: 0, bytes: self.drop_partials() };
        let used = || self.cache_bytes() + ahead.used;
        let free = disk::space(&self.layout.root).0.saturating_sub(ahead.unwritten);
        let keep = policy.keep_bytes(used(), free);
        if keep.is_some_and(|keep| used() <= keep) {
            return Ok(pruned);
        }
        let records: HashMap<String, UsageRecord> =
            self.records(&held, false).map(|record| (record.id.clone(), record)).collect();
        let now = self.clock.unix();
        let may_go = |r: &UsageRecord| {
            let kind = policy.all || !matches!(r.record_type, RecordType::Internal | RecordType::Frontend);
            let idle = Duration::from_secs(now.saturating_sub(r.last_used_at)) >= policy.keep_duration;
            !r.in_use && kind && idle && filters.matches(r)
        };
        let mut needed_by = self.dependents();
        let free_of = |id: &str, needed: &HashMap<String, usize>| needed.get(id).copied().unwrap_or(0) == 0;
        let ready = records.values().filter(|r| may_go(r) && free_of(&r.id, &needed_by));
        let mut queue: BTreeSet<Turn> = ready.map(|record| Turn::of(record, now)).collect();
        while let Some(Turn { id, .. }) = queue.pop_first() {
            if keep.is_some_and(|keep| used() <= keep) {
                break;
            }
            let Some(record) = records.get(&id) else { continue };
            let Some(below) = self.prune_record(record, &held, policy.rule()) else { continue };
            pruned.records += 1;
            pruned.bytes += record.size;
            removed(record);
            // A parent's turn comes when the last layer on it is gone.
            for parent in below {
                if let Some(count) = needed_by.get_mut(&parent) {
                    *count = count.saturating_sub(1);
                }
                if free_of(&parent, &needed_by)
                    && let Some(record) = records.get(&parent).filter(|r| may_go(r))
                {
                    queue.insert(Turn::of(record, now));
                }
            }
        }
        if pruned.records > 0 {
            self.forget_trees();
            self.trim_evicted();
        }
        Ok(pruned)
    }

    /// Returns how many layers need each layer.
    fn dependents(&self) -> HashMap<String, usize> {
        let mut count: HashMap<LayerId, usize> = HashMap::new();
        for cell in self.layers.lock().by_id.values() {
            for id in &cell.record().chain {
                *count.entry(*id).or_default() += 1;
            }
        }
        count.into_iter().map(|(id, n)| (id.to_string(), n)).collect()
    }

    /// Removes what a record stands for, if it is still unused, and returns the ids of the layers below it.
    fn prune_record(&self, record: &UsageRecord, held: &Held, rule: &str) -> Option<Vec<String>> {
        if record.mutable {
            return self.prune_mount(&record.id).then(Vec::new);
        }
        if let Ok(digest) = record.id.parse::<Digest>() {
            return self.prune_blob(&digest).then(Vec::new);
        }
        let id: LayerId = record.id.parse().ok()?;
        let layer = {
            // Whoever takes a handle does so under this lock.
            let mut layers = self.layers.lock();
            let cell = layers.by_id.get(&id)?;
            let needed = layers.by_id.values().any(|c| c.record().chain.contains(&id));
            if Arc::strong_count(cell) > 1 || needed {
                return None;
            }
            layers.take(id)?.record()
        };
        self.forget_layer(id);
        self.note_evicted(id, rule);
        for variant in &layer.variants {
            let digest = variant.descriptor.digest;
            let shared = {
                let layers = self.layers.lock();
                layers.by_id.values().any(|c| c.record().variants.iter().any(|v| v.descriptor.digest == digest))
            };
            // The image layout has links of its own; without a second link the bytes of others would be in danger.
            if !shared && !held.pins.contains(&digest) && !held.blobs.contains(&digest) {
                self.prune_blob(&digest);
            }
        }
        Some(layer.chain.iter().map(ToString::to_string).collect())
    }

    fn prune_blob(&self, digest: &Digest) -> bool {
        let gone = {
            let mut blobs = self.blobs.lock();
            match blobs.get(digest) {
                Some(cell) if Arc::strong_count(cell) == 1 => blobs.remove(digest),
                _ => return false,
            }
        };
        if let Some(cell) = gone {
            self.account_blob(cell.row.lock().size, false);
        }
        self.forget_blob(digest);
        true
    }
}

#[cfg(test)]
mod tests;
