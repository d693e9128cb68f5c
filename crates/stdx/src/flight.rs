//! Single-flight: of equal calls at once, one works and all get its result.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Weak};

use tokio::sync::Mutex;

/// Runs at most one call per key at a time; callers that arrive meanwhile share its success.
///
/// A failed call is not shared: the next waiter tries itself, so one caller's cancellation or error never
/// becomes another's.
pub struct SingleFlight<K, V> {
    slots: parking_lot::Mutex<HashMap<K, Weak<Mutex<Option<V>>>>>,
}

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self { slots: parking_lot::Mutex::new(HashMap::new()) }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> SingleFlight<K, V> {
    /// Returns an empty set of flights.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `work`, or waits for an equal call that is under way and takes its value.
    ///
    /// # Errors
    /// Whatever this caller's own `work` fails with.
    pub async fn run<E>(&self, key: K, work: impl Future<Output = Result<V, E>>) -> Result<V, E> {
        let slot = {
            let mut slots = self.slots.lock();
            match slots.get(&key).and_then(Weak::upgrade) {
                Some(slot) => slot,
                None => {
                    slots.retain(|_, slot| slot.strong_count() > 0);
                    let slot = Arc::new(Mutex::new(None));
                    slots.insert(key, Arc::downgrade(&slot));
                    slot
                }
            }
        };
        let mut value = slot.lock().await;
        if let Some(value) = value.as_ref() {
            return Ok(value.clone());
        }
        let result = work.await?;
        *value = Some(result.clone());
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn equal_calls_share_one_run() {
        let flights = SingleFlight::<u8, usize>::new();
        let runs = AtomicUsize::new(0);
        let barrier = tokio::sync::Notify::new();
        let first = flights.run(1, async {
            barrier.notified().await;
            Ok::<_, ()>(runs.fetch_add(1, Ordering::SeqCst))
        });
        let second = flights.run(1, async { Ok::<_, ()>(runs.fetch_add(1, Ordering::SeqCst)) });
        let release = async { barrier.notify_one() };
        let (a, b, ()) = tokio::join!(first, second, release);
        assert_eq!((a, b, runs.load(Ordering::SeqCst)), (Ok(0), Ok(0), 1));
    }

    #[tokio::test]
    async fn an_error_is_not_shared() {
        let flights = SingleFlight::<u8, u8>::new();
        assert_eq!(flights.run(1, async { Err::<u8, _>("bad") }).await, Err("bad"));
        assert_eq!(flights.run(1, async { Ok::<_, ()>(2) }).await, Ok(2));
    }
}
