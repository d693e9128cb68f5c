//! Taking away what was not used for longest, by BuildKit's policies.

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

/// The order in which records go: least recently used first, then those used least.
type Turn = (u64, u64, String);

fn turn(record: &UsageRecord) -> Turn {
    (record.last_used_at, record.usage_count, record.id.clone())
}

impl Store {
    /// Removes records by a policy; `removed` hears of each after it is gone.
    ///
    /// # Errors
    /// A filter is malformed; the image store cannot be read.
    pub fn prune(&self, policy: &PrunePolicy, mut removed: impl FnMut(&UsageRecord)) -> Result<Pruned> {
        let inner = &self.0;
        let filters = Filters::parse(&policy.filters)?;
        let held = inner.held()?;
        let mut records: HashMap<String, UsageRecord> = HashMap::new();
        for record in inner.layer_usage(&held).into_iter().chain(inner.mount_usage()).chain(inner.loose_blobs(&held)) {
            records.insert(record.id.clone(), record);
        }
        // Nobody misses these, so they go first.
        let mut pruned = Pruned { records: 0, bytes: inner.drop_partials() };
        let mut used = records.values().map(|r| r.size).sum::<u64>() + inner.meta.size();
        let (free, _) = disk::space(&inner.layout.root);
        let keep = policy.keep_bytes(used, free);
        let now = inner.clock.unix();
        let may_go = |r: &UsageRecord| {
            let kind = policy.all || !matches!(r.record_type, RecordType::Internal | RecordType::Frontend);
            let idle = Duration::from_secs(now.saturating_sub(r.last_used_at)) >= policy.keep_duration;
            !r.in_use && kind && idle && filters.matches(r)
        };
        let mut needed_by = inner.dependents();
        let free_of = |id: &str, needed: &HashMap<String, usize>| needed.get(id).copied().unwrap_or(0) == 0;
        let ready = records.values().filter(|r| may_go(r) && free_of(&r.id, &needed_by));
        let mut queue: BTreeSet<Turn> = ready.map(turn).collect();
        while let Some((_, _, id)) = queue.pop_first() {
            if keep.is_some_and(|keep| used <= keep) {
                break;
            }
            let Some(record) = records.get(&id) else { continue };
            let Some(below) = inner.prune_record(record, &held, policy.rule()) else { continue };
            used = used.saturating_sub(record.size);
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
                    queue.insert(turn(record));
                }
            }
        }
        if pruned.records > 0 {
            inner.forget_trees();
            inner.trim_evicted();
        }
        Ok(pruned)
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
        Ok(total)
    }
}

impl Inner {
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
        {
            let mut blobs = self.blobs.lock();
            match blobs.get(digest) {
                Some(cell) if Arc::strong_count(cell) == 1 => drop(blobs.remove(digest)),
                _ => return false,
            }
        }
        self.forget_blob(digest);
        true
    }
}

#[cfg(test)]
mod tests;
