//! Keeps the engine small: memory that builds needed goes back to the system when they are over.

use std::time::Duration;

use kiln_store::Store;
use tokio::sync::watch;

/// How long there has to be no build before memory is given back.
const QUIET: Duration = Duration::from_secs(2);
/// How long there has to be none before it is also forgotten what a next build would read again.
const REST: Duration = Duration::from_secs(30);
/// Most heaps of the C library. It would make eight per core, each keeping what its threads once had.
const HEAPS: i32 = 2;

/// Bounds the number of heaps; to be called before there are threads.
pub fn bound() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number that later calls of the allocator read; there is no other thread yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}

/// Gives unused memory back each time the last running build has ended, and later what `store` can do without. Ends with
/// the sender of `active`.
pub async fn give_back(mut active: watch::Receiver<usize>, store: Store) {
    while active.changed().await.is_ok() {
        if *active.borrow_and_update() > 0 {
            continue;
        }
        tokio::time::sleep(QUIET).await;
        if *active.borrow() > 0 {
            continue;
        }
        let _ = tokio::task::spawn_blocking(trim).await;
        if tokio::time::timeout(REST, active.wait_for(|count| *count > 0)).await.is_err() {
            let store = store.clone();
            let rest = move || {
                store.rest();
                trim();
            };
            let _ = tokio::task::spawn_blocking(rest).await;
        }
    }
}

fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
