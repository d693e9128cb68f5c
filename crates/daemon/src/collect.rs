//! Garbage collection by itself: which rules hold, and when they are applied.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kiln_engine::Engine;
use kiln_store::PrunePolicy;
use tokio_util::sync::CancellationToken;

use crate::space::Space;

/// How long after a build ends, at the earliest, and how often at most.
const AFTER: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_secs(60);
/// How often is looked at the disk while builds run, and how many times as long as it took the rules rest afterwards.
const LOOK: Duration = Duration::from_millis(10);
const REST: u32 = 10;
/// How often the rules are applied while builds by themselves need more than there may be.
const OVER: Duration = Duration::from_millis(250);
const HOUR: Duration = Duration::from_secs(3600);
const GIGA: u64 = 1_000_000_000;

/// What an administrator says of garbage collection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcSettings {
    /// Never go below so much in use.
    pub reserved: Space,
    /// Go down to so much in use.
    pub maximum: Space,
    /// Go on until so much of the file system is free.
    pub free: Space,
    /// Rules in place of those that follow from the sizes.
    pub rules: Vec<GcRule>,
}

/// One rule, applied after those before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcRule {
    /// Also internal records and frontends.
    pub all: bool,
    /// Only records that pass one of these.
    pub filters: Vec<String>,
    /// Only records that were not used for so long.
    pub keep: Duration,
    pub reserved: Space,
    pub maximum: Space,
    pub free: Space,
}

impl GcSettings {
    /// Returns the rules for a store at `root`.
    pub fn policies(&self, root: &Path) -> Vec<PrunePolicy> {
        let total = rustix::fs::statvfs(root).ok().map(|s| s.f_blocks.saturating_mul(s.f_frsize));
        if !self.rules.is_empty() {
            return policies(&self.rules, total);
        }
        let mut sizes = (self.reserved, self.maximum, self.free);
        if [sizes.0, sizes.1, sizes.2].into_iter().all(Space::is_zero) {
            let most = |part: u64, bytes: u64| Space::Bytes(Space::Percent(part).bytes(total).min(bytes));
            sizes = (most(10, 10 * GIGA), most(80, 100 * GIGA), Space::Percent(20));
        }
        let (reserved, maximum, free) = sizes;
        let general = GcRule { reserved, maximum, free, ..GcRule::default() };
        // What is most easily had again goes first, once it is many.
        let easy = ["type==source.local", "type==exec.cachemount", "type==source.git.checkout"];
        let rules = [
            GcRule {
                filters: easy.map(str::to_owned).to_vec(),
                keep: 48 * HOUR,
                maximum: Space::Bytes(512_000_000),
                ..GcRule::default()
            },
            GcRule { keep: 60 * 24 * HOUR, ..general.clone() },
            general.clone(),
            GcRule { all: true, ..general },
        ];
        policies(&rules, total)
    }
}

fn policies(rules: &[GcRule], total: Option<u64>) -> Vec<PrunePolicy> {
    rules.iter().enumerate().map(|(at, rule)| PrunePolicy { rule: rule.name(at + 1), ..rule.policy(total) }).collect()
}

impl GcRule {
    fn policy(&self, total: Option<u64>) -> PrunePolicy {
        PrunePolicy {
            all: self.all,
            filters: self.filters.clone(),
            keep_duration: self.keep,
            reserved_space: self.reserved.bytes(total),
            max_used_space: self.maximum.bytes(total),
            min_free_space: self.free.bytes(total),
            ..PrunePolicy::default()
        }
    }

    /// Names the rule for people who ask why something is gone.
    fn name(&self, number: usize) -> String {
        let idle = match self.keep.as_secs() / 3600 {
            0 => String::new(),
            hours => format!(", unused for {hours} h"),
        };
        format!("garbage collection, rule {number}{idle}")
    }
}

/// Applies the rules when the engine starts, after builds, and while builds fill the disk, until `stop`.
pub async fn run(engine: Engine, policies: Arc<Vec<PrunePolicy>>, stop: CancellationToken) {
    tokio::select! {
        () = after_builds(engine.clone(), policies.clone(), stop) => {}
        () = during_builds(engine, policies) => {}
    }
}

/// Follows what builds write, so that the budget holds while they do, and collects what they let go as they end. The store
/// itself asks the budget before it keeps anything; what processes write is seen here.
async fn during_builds(engine: Engine, policies: Arc<Vec<PrunePolicy>>) {
    let mut active = engine.active();
    let grain = grain(&policies);
    let store = &engine.parts().store;
    store.set_budget(policies.to_vec());
    let mut free = store.disk_space().0;
    let (mut before, mut woken) = (0, true);
    let mut followed = tokio::time::Instant::now();
    loop {
        let running = *active.borrow_and_update();
        let ended = woken && running <= before;
        before = running;
        let now = store.disk_space().0;
        let mut pause = if running == 0 { Duration::MAX } else { LOOK };
        let over = running > 0 && followed.elapsed() >= OVER && store.is_over_budget();
        if ended || over || free.saturating_sub(now) >= grain {
            free = now;
            let begun = tokio::time::Instant::now();
            follow(&engine, ended).await;
            // Where there is much to look through it is done less often.
            followed = tokio::time::Instant::now();
            pause = pause.max((followed - begun) * REST);
        }
        free = free.max(store.disk_space().0);
        woken = tokio::select! {
            () = tokio::time::sleep(pause) => false,
            changed = active.changed() => match changed {
                Ok(()) => true,
                Err(_) => return,
            },
        };
        if running == 0 {
            // What others wrote meanwhile is not of builds.
            free = store.disk_space().0;
        }
    }
}

/// Looks at what is being written and makes room for it; stops a step where there is none left to make.
async fn follow(engine: &Engine, ended: bool) {
    let parts = engine.parts().clone();
    let work = move || {
        if ended {
            parts.store.released();
        }
        parts.store.measure();
        if let Some(overrun) = parts.store.keep_budget() {
            parts.running.stop_largest(&parts.store, overrun);
        }
    };
    if let Err(error) = tokio::task::spawn_blocking(work).await {
        tracing::warn!(%error, "the disk budget cannot be followed");
    }
}

/// Returns how many bytes may be written before what is written is measured again: a small part of the tightest budget.
fn grain(policies: &[PrunePolicy]) -> u64 {
    let tightest = policies.iter().map(|policy| policy.max_used_space).filter(|bytes| *bytes > 0).min();
    (tightest.unwrap_or(u64::MAX) / 32).clamp(1 << 20, 64 << 20)
}

/// Applies the rules when the engine starts and after builds, until `stop`.
async fn after_builds(engine: Engine, policies: Arc<Vec<PrunePolicy>>, stop: CancellationToken) {
    let mut active = engine.active();
    loop {
        let quiet = async {
            tokio::time::sleep(AFTER).await;
            apply(&engine, policies.clone()).await;
            tokio::time::sleep(PAUSE - AFTER).await;
            // A build has to have begun or ended since.
            active.mark_unchanged();
            if active.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = quiet => {}
        }
    }
}

/// Applies the rules once.
pub async fn apply(engine: &Engine, policies: Arc<Vec<PrunePolicy>>) {
    let store = engine.parts().store.clone();
    match tokio::task::spawn_blocking(move || store.gc(&policies, |_| {})).await {
        Ok(Ok(pruned)) if pruned.records > 0 => {
            tracing::info!(records = pruned.records, bytes = pruned.bytes, "garbage was collected");
        }
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "garbage cannot be collected"),
        Err(error) => tracing::warn!(%error, "garbage collection failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_word_there_are_four_rules() {
        let policies = GcSettings::default().policies(Path::new("/"));
        assert_eq!(policies.len(), 4);
        assert_eq!(policies[0].max_used_space, 512_000_000);
        assert_eq!(policies[1].keep_duration, Duration::from_secs(60 * 24 * 3600));
        assert!(policies[2].max_used_space > 0 && policies[2].max_used_space <= 100 * GIGA);
        assert!(policies[3].all && !policies[2].all);
    }

    #[test]
    fn the_tightest_budget_says_how_often() {
        let of = |sizes: &[u64]| {
            let policy = |bytes: &u64| PrunePolicy { max_used_space: *bytes, ..PrunePolicy::default() };
            grain(&sizes.iter().map(policy).collect::<Vec<_>>())
        };
        assert_eq!(of(&[]), 64 << 20);
        assert_eq!(of(&[0, 320 << 20, 3200 << 20]), 10 << 20);
        assert_eq!((of(&[5]), of(&[1 << 40])), (1 << 20, 64 << 20));
    }

    #[test]
    fn sizes_and_rules_take_their_place() {
        let sizes = GcSettings { maximum: Space::Bytes(5), ..GcSettings::default() };
        let policies = sizes.policies(Path::new("/"));
        assert_eq!((policies[2].max_used_space, policies[2].min_free_space), (5, 0));
        let rules = vec![GcRule { all: true, reserved: Space::Bytes(9), ..GcRule::default() }];
        let policies = GcSettings { rules, ..sizes }.policies(Path::new("/"));
        assert_eq!((policies.len(), policies[0].reserved_space), (1, 9));
    }
}
