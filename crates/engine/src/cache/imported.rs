//! An imported cache as its build knows it: where its layers are, which blobs it offers, and how it has behaved.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use kiln_exporter::cacheconfig::ParsedCache;
use kiln_oci::Descriptor;
use kiln_stdx::{Digest, ErrorClass};
use kiln_store::Store;
use parking_lot::Mutex;

use crate::build::{BuildContext, Progress};
use crate::error::EngineError;
use crate::source::stack::StackSource;

/// Transfers in a row that may fail before a cache is given up for the rest of a build: each takes its time to fail.
const FAILURES: u32 = 2;
/// How long next to nothing may come before a transfer is given up.
const STALL: Duration = Duration::from_secs(60);
/// Fewest bytes that have to come in that time.
const LEAST: u64 = 4 << 10;
/// How long a cache may take to tell whether it has a blob.
const TELLING: Duration = Duration::from_secs(20);

/// An imported cache of one build.
pub struct Imported {
    source: Arc<dyn StackSource>,
    locator: String,
    offered: BTreeSet<Digest>,
    health: Arc<Health>,
    stall: Duration,
}

/// How a cache has behaved in a build. Further attempts of the build go on with it.
#[derive(Default)]
struct Health {
    failures: AtomicU32,
    warned: AtomicBool,
    /// Blobs that it was found to have.
    present: Mutex<BTreeSet<Digest>>,
}

impl Imported {
    /// Makes a cache known to a build: `locator` is where it is, in the words of layers' origins, `caches` what was read of
    /// it, `stall` how long nothing may come, if not the usual time.
    pub fn add(
        build: &BuildContext,
        (locator, source): (String, Arc<dyn StackSource>),
        caches: &[ParsedCache],
        stall: Option<Duration>,
    ) -> Arc<Self> {
        let results = caches.iter().flat_map(|cache| &cache.nodes).flat_map(|node| &node.results);
        let offered = results.flat_map(|result| result.layers.iter().map(|layer| layer.digest)).collect();
        let mut known = build.caches.lock();
        let before = known.iter().find(|other| other.locator == locator).map(|other| other.health.clone());
        let stall = stall.unwrap_or(STALL);
        let this = Arc::new(Self { source, locator, offered, health: before.unwrap_or_default(), stall });
        known.push(this.clone());
        this
    }

    /// Tells whether the cache says that it has a blob.
    pub fn offers(&self, digest: &Digest) -> bool {
        self.offered.contains(digest)
    }

    /// Returns how many blobs the cache says that it has.
    pub fn blobs(&self) -> usize {
        self.offered.len()
    }

    /// Says once in a build that a result of this cache cannot be used.
    pub fn warn(&self, progress: &Progress, error: &EngineError) {
        if !self.health.warned.swap(true, Ordering::Relaxed) {
            progress.warn(&format!("a result cannot be taken from cache {}: {error}", self.name()));
        }
    }

    fn check_health(&self) -> Result<(), EngineError> {
        if self.health.failures.load(Ordering::Relaxed) < FAILURES {
            return Ok(());
        }
        let text = format!("{}: given up after {FAILURES} transfers that failed", self.name());
        Err(EngineError::new(ErrorClass::Remote, text))
    }

    /// Notes how a request ended.
    fn note<T>(&self, outcome: &Result<T, EngineError>) {
        match outcome {
            Ok(_) => self.health.failures.store(0, Ordering::Relaxed),
            // One damaged blob says nothing of others, and is told soon; so is one that is refused or missing.
            Err(error) if error.class() == ErrorClass::Remote && !error.tells_damage() => {
                self.health.failures.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {}
        }
    }

    fn slow(&self, what: &str, time: Duration) -> EngineError {
        EngineError::new(ErrorClass::Remote, format!("{}: timed out: {what} for {time:?}", self.name()))
    }
}

#[async_trait]
impl StackSource for Imported {
    fn name(&self) -> String {
        self.source.name()
    }

    fn locator(&self) -> String {
        self.locator.clone()
    }

    async fn has(&self, descriptor: &Descriptor) -> Result<bool, EngineError> {
        self.check_health()?;
        if self.health.present.lock().contains(&descriptor.digest) {
            return Ok(true);
        }
        let limit = TELLING.min(self.stall);
        let asked = tokio::time::timeout(limit, self.source.has(descriptor)).await;
        let outcome = asked.unwrap_or_else(|_| Err(self.slow("no answer", limit)));
        self.note(&outcome);
        if let Ok(true) = outcome {
            self.health.present.lock().insert(descriptor.digest);
        }
        outcome
    }

    async fn layer(
        &self,
        descriptor: &Descriptor,
        store: &Store,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), EngineError> {
        self.check_health()?;
        let come = AtomicU64::new(0);
        let report = |bytes: u64| {
            come.store(bytes, Ordering::Relaxed);
            progress(bytes);
        };
        let outcome = {
            let mut transfer = pin!(self.source.layer(descriptor, store, &report));
            let mut before = 0;
            loop {
                tokio::select! {
                    done = &mut transfer => break done,
                    () = tokio::time::sleep(self.stall) => {
                        let now = come.load(Ordering::Relaxed);
                        if now.saturating_sub(before) < LEAST {
                            break Err(self.slow("next to nothing came", self.stall));
                        }
                        before = now;
                    }
                }
            }
        };
        self.note(&outcome);
        outcome
    }
}

#[cfg(test)]
mod tests;
