//! Cache mounts that many threads want at once.

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const THREADS: usize = 12;
const ROUNDS: usize = 40;

/// Takes a mount as a step does: it waits for others, and fills a new one.
fn wait_for(store: &Store, key: &MountKey, sharing: Sharing) -> CacheMount {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let changed = store.cache_mounts_changed();
        loop {
            let wake = changed.notified();
            let Some(mut mount) = store.try_cache_mount(key, sharing, MountOwner::default(), "d").unwrap() else {
                wake.await;
                continue;
            };
            if mount.is_fresh() {
                fs::File::create_new(mount.path().join("first content")).unwrap();
                mount.mark_ready().unwrap();
            }
            return mount;
        }
    })
}

/// Lets all threads do the same at once and returns what they have.
fn at_once<T: Send>(work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let (begin, work) = (Barrier::new(THREADS), &work);
    std::thread::scope(|scope| {
        let thread = |n| {
            let begin = &begin;
            scope.spawn(move || {
                begin.wait();
                work(n)
            })
        };
        let threads: Vec<_> = (0..THREADS).map(thread).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn a_shared_one_is_made_once() {
    let f = fixture(Duration::ZERO);
    for round in 0..ROUNDS {
        let key = MountKey::named(&format!("key {round}"));
        let mounts = at_once(|n| {
            let mount = wait_for(&f.store, &key, Sharing::Shared);
            assert!(mount.path().join("first content").exists());
            fs::write(mount.path().join(n.to_string()), b"x").unwrap();
            mount
        });
        let ids: BTreeSet<&str> = mounts.iter().map(CacheMount::id).collect();
        assert_eq!(ids.len(), 1, "{ids:?}");
        assert_eq!(fs::read_dir(mounts[0].path()).unwrap().count(), THREADS + 1);
    }
    assert_eq!(f.store.cache_mounts(false).len(), ROUNDS);
}

#[test]
fn a_locked_one_is_never_with_two() {
    let f = fixture(Duration::ZERO);
    for round in 0..ROUNDS {
        let key = MountKey::named(&format!("key {round}"));
        let inside = AtomicUsize::new(0);
        at_once(|n| {
            let mount = wait_for(&f.store, &key, Sharing::Locked);
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
            fs::write(mount.path().join(n.to_string()), b"x").unwrap();
            inside.fetch_sub(1, Ordering::SeqCst);
        });
        let mount = wait_for(&f.store, &key, Sharing::Locked);
        assert_eq!(fs::read_dir(mount.path()).unwrap().count(), THREADS + 1);
    }
    assert_eq!(f.store.cache_mounts(false).len(), ROUNDS);
}

#[test]
fn private_ones_are_each_their_own_and_used_again() {
    let f = fixture(Duration::ZERO);
    let key = MountKey::named("key");
    for round in 0..ROUNDS {
        let mounts = at_once(|n| {
            let mount = wait_for(&f.store, &key, Sharing::Private);
            fs::write(mount.path().join(format!("{round} {n}")), b"x").unwrap();
            mount
        });
        let ids: BTreeSet<&str> = mounts.iter().map(CacheMount::id).collect();
        assert_eq!(ids.len(), THREADS);
        for mount in &mounts {
            assert_eq!(fs::read_dir(mount.path()).unwrap().count(), round + 2, "one more in each round");
        }
    }
    assert_eq!(f.store.cache_mounts(false).len(), THREADS);
}
