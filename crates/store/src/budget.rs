//! The disk budget: asked before bytes are kept, so that what is idle makes room for what comes.
//!
//! The invariant: at every moment the cache takes no more than the budget, or nothing but what running builds hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use crate::disk;
use crate::prune::PrunePolicy;
use crate::store::{Inner, Store};

/// How long is waited after a collection that found nothing to free, unless something is let go.
const REST: Duration = Duration::from_secs(2);
/// How many times as long as it took is waited if something was let go meanwhile: that may have been anything.
const BREATH: u32 = 10;
/// Of the disk so much stays free of builds that are over the budget by themselves, at most; a part of small disks.
const FLOOR: u64 = 64 << 20;
const FLOOR_PART: u64 = 64;
/// The head start of a process is such a part of the budget, and so many bytes at most.
const HEAD_PART: u64 = 16;
const HEAD: u64 = 64 << 20;
/// What comes piece by piece is admitted in steps that grow with it, from the first to the second.
const STEPS: (u64, u64) = (64 << 10, 8 << 20);

#[derive(Default)]
pub(crate) struct Budget {
    rules: RwLock<Option<Arc<Rules>>>,
    /// Held by whoever collects.
    collecting: Mutex<()>,
    /// Set by a collection that found nothing to free.
    futile: Mutex<Option<Futile>>,
}

/// A collection that found nothing to free.
#[derive(Clone, Copy)]
struct Futile {
    ended: Instant,
    took: Duration,
    /// [`LET_GO`] when it began.
    let_go: u64,
}

impl Futile {
    /// Returns whether another would find nothing either, or comes too soon. Where only the disk is full, that is mostly of
    /// others' files: it does not haste.
    fn holds(self, large: bool) -> bool {
        let same = LET_GO.load(Ordering::Acquire) == self.let_go;
        self.ended.elapsed() < if same || !large { REST } else { self.took * BREATH }
    }
}

/// Counts what was let go in this process: handles of layers and blobs, cache mounts. From then on it may be collected.
static LET_GO: AtomicU64 = AtomicU64::new(0);

/// Counts as let go when it is dropped: the last field of a handle, so that the rest of it is gone by then.
#[derive(Clone, Default)]
pub(crate) struct LetGo;

impl Drop for LetGo {
    fn drop(&mut self) {
        LET_GO.fetch_add(1, Ordering::Release);
    }
}

/// Returns by how much to go beyond what one `had` asked for, where that is too little by `short`.
pub(crate) fn step(had: u64, short: u64) -> u64 {
    short.max(had.clamp(STEPS.0, STEPS.1))
}

/// The rules of collection, and what follows from them.
#[derive(Default)]
struct Rules {
    policies: Vec<PrunePolicy>,
    /// What the cache may take.
    most: Option<u64>,
    /// What stays free, at the price of the cache.
    free: u64,
    /// Collection begins so much below the budget, for metadata and cache mounts grow without asking, and frees as much
    /// again, so that the next few need nothing.
    grain: u64,
    /// So much is kept free for each step that runs, ahead of what it was last seen to have written.
    head: u64,
}

/// Builds hold more than the budget allows, and the disk is full up to its floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overrun {
    /// What the store takes, in bytes; all of it is held.
    pub used: u64,
    /// The budget, in bytes.
    pub budget: u64,
    /// Free bytes of the disk.
    pub free: u64,
}

/// Room that was made for bytes that are still to come. Dropping it gives it back.
pub struct Reservation {
    store: Store,
    bytes: u64,
}

impl Rules {
    fn new(policies: Vec<PrunePolicy>) -> Self {
        // Rules for some records only, or old ones, are applied now and then; what follows from the others holds always.
        let always = || policies.iter().filter(|p| p.filters.is_empty() && p.keep_duration.is_zero());
        let sizes = always().filter(|p| p.max_used_space > 0);
        let most = sizes.map(|p| p.max_used_space.max(p.reserved_space)).min();
        let free = always().map(|p| p.min_free_space).max().unwrap_or_default();
        let grain = most.map_or(16 << 20, |most| (most / 64).clamp(64 << 10, 32 << 20));
        let head = most.map_or(0, |most| (most / HEAD_PART).min(HEAD));
        Self { most, free, grain, head, policies }
    }
}

impl Store {
    /// Sets the rules of collection, whose sizes hold from now on; none means no budget.
    pub fn set_budget(&self, policies: Vec<PrunePolicy>) {
        *self.0.budget.rules.write() = (!policies.is_empty()).then(|| Arc::new(Rules::new(policies)));
    }

    /// Makes room for `bytes` that are about to be written, and counts them until they are dropped: by then they have been
    /// published, or are gone. Collects what is idle as far as it has to; waits for that.
    pub fn reserve(&self, bytes: u64) -> Reservation {
        let mut reservation = Reservation { store: self.clone(), bytes: 0 };
        reservation.grow(bytes, bytes);
        reservation
    }

    /// As [`Store::reserve`], for what lies on the disk and is about to be published.
    pub(crate) fn reserve_written(&self, bytes: u64) -> Reservation {
        let mut reservation = Reservation { store: self.clone(), bytes: 0 };
        reservation.grow(bytes, 0);
        reservation
    }

    /// Collects if the cache takes more than the budget. Tells if it still does, all of it is held, and the disk is full up
    /// to its floor: then a build has to be stopped.
    pub fn keep_budget(&self) -> Option<Overrun> {
        let rules = self.0.budget.rules.read().clone()?;
        self.0.admit(0);
        let used = self.0.cache_bytes() + self.0.growing();
        let budget = rules.most.filter(|most| used > *most)?;
        let (free, total) = self.disk_space();
        let floor = rules.free.max(FLOOR.min(total / FLOOR_PART));
        (free < floor).then_some(Overrun { used, budget, free })
    }

    /// A build has ended: what it held can be collected, at once.
    pub fn released(&self) {
        *self.0.budget.futile.lock() = None;
    }

    /// Tells whether more is kept, or coming, than the budget allows, as it was last measured.
    pub fn is_over_budget(&self) -> bool {
        let rules = self.0.budget.rules.read().clone();
        rules.is_some_and(|rules| self.0.is_large(&rules))
    }
}

impl Reservation {
    /// Makes room for `bytes` more, of which `unwritten` are not on the disk.
    fn grow(&mut self, bytes: u64, unwritten: u64) {
        // Counted first: of two who come at once each sees the other.
        self.store.0.counters.coming.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        self.store.0.admit(unwritten);
    }

    /// Makes room up to `bytes` in all, in steps.
    pub(crate) fn grow_to(&mut self, bytes: u64) {
        if bytes > self.bytes {
            let more = step(self.bytes, bytes - self.bytes);
            self.grow(more, more);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.store.0.counters.coming.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Inner {
    /// Returns whether less of the disk is free than should be, once so much more is written.
    fn is_short(&self, rules: &Rules, unwritten: u64) -> bool {
        rules.free > 0 && disk::space(&self.layout.root).0.saturating_sub(unwritten) < rules.free
    }

    /// Returns whether the cache, with what is coming, is larger than it may be.
    fn is_large(&self, rules: &Rules) -> bool {
        let limit = |used: u64| rules.most.is_some_and(|most| used > most.saturating_sub(rules.grain));
        limit(self.cache_bytes() + self.coming(rules))
    }

    /// Returns what is being made, and what has been promised of that.
    fn coming(&self, rules: &Rules) -> u64 {
        self.growing() + self.counters.rooms.left(rules.head)
    }

    /// Makes room for what is counted as growing, of which `unwritten` bytes are not on the disk yet.
    pub(crate) fn admit(&self, unwritten: u64) {
        let Some(rules) = self.budget.rules.read().clone() else { return };
        let is_over = || self.is_large(&rules) || self.is_short(&rules, unwritten);
        if !is_over() {
            return;
        }
        let _one = self.budget.collecting.lock();
        if !is_over() {
            return;
        }
        let mut large = self.is_large(&rules);
        while !self.budget.futile.lock().is_some_and(|futile| futile.holds(large)) {
            let (begun, let_go) = (Instant::now(), LET_GO.load(Ordering::Acquire));
            if !self.collect(&rules, unwritten) {
                *self.budget.futile.lock() = Some(Futile { ended: Instant::now(), took: begun.elapsed(), let_go });
            }
            // Others reserve while this one collects: once is not always enough. What a disk has free is not asked again:
            // some file systems tell of freed bytes only after a while.
            large = self.is_large(&rules);
            if !large {
                return;
            }
        }
    }

    /// Applies the rules; returns whether anything went.
    fn collect(&self, rules: &Rules, unwritten: u64) -> bool {
        let ahead = crate::prune::Ahead { used: self.coming(rules) + 2 * rules.grain, unwritten };
        let before = self.cache_bytes();
        let mut records = 0;
        for policy in &rules.policies {
            match self.prune(policy, ahead, |_| {}) {
                Ok(pruned) => records += pruned.records,
                Err(error) => tracing::warn!(%error, "garbage cannot be collected"),
            }
        }
        if records > 0 {
            let bytes = before.saturating_sub(self.cache_bytes());
            tracing::info!(records, bytes, "garbage was collected to make room");
        }
        records > 0
    }
}

#[cfg(test)]
mod tests;
