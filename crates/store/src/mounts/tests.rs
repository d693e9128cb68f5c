//! Tests of cache mounts.

use std::time::Duration;

use super::*;
use crate::testing::{fixture, open};

fn take(store: &Store, sharing: Sharing) -> Option<CacheMount> {
    store.try_cache_mount("key", sharing, MountOwner::default(), "cached mount /c").unwrap()
}

fn ready(store: &Store, sharing: Sharing) -> CacheMount {
    let mut mount = take(store, sharing).unwrap();
    if mount.is_fresh() {
        mount.mark_ready().unwrap();
    }
    mount
}

#[test]
fn sharing_modes() {
    let f = fixture(Duration::ZERO);
    let a = ready(&f.store, Sharing::Shared);
    let b = ready(&f.store, Sharing::Shared);
    assert_eq!(a.id(), b.id(), "shared users are together");
    assert!(take(&f.store, Sharing::Locked).is_none(), "a locked one waits for them");
    let p = ready(&f.store, Sharing::Private);
    assert_ne!(p.id(), a.id(), "a private one gets its own");
    let first = a.id().to_owned();
    drop((a, b));
    let locked = ready(&f.store, Sharing::Locked);
    assert_eq!(locked.id(), first);
    assert!(take(&f.store, Sharing::Locked).is_none());
    drop(p);
    drop(locked);
    assert!(!take(&f.store, Sharing::Locked).unwrap().is_fresh());
}

#[tokio::test]
async fn a_waiter_is_woken() {
    let f = fixture(Duration::ZERO);
    let held = ready(&f.store, Sharing::Locked);
    let changed = f.store.cache_mounts_changed();
    let waiting = changed.notified();
    assert!(take(&f.store, Sharing::Locked).is_none());
    drop(held);
    tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap();
    assert!(take(&f.store, Sharing::Locked).is_some());
}

#[test]
fn content_survives_but_half_filled_ones_do_not() {
    let f = fixture(Duration::ZERO);
    let fresh = take(&f.store, Sharing::Shared).unwrap();
    assert!(fresh.is_fresh());
    fs::write(fresh.path().join("half"), b"x").unwrap();
    assert!(take(&f.store, Sharing::Shared).is_none(), "nobody sees one that is being filled");
    drop(fresh);
    let full = ready(&f.store, Sharing::Shared);
    assert!(!full.path().join("half").exists());
    fs::write(full.path().join("x"), b"kept").unwrap();
    let half = take(&f.store, Sharing::Private).unwrap();
    let left = half.path().to_owned();
    drop((full, half));
    assert!(!left.exists());
}

#[test]
fn after_reopening() {
    let mut f = fixture(Duration::ZERO);
    let owner = MountOwner { mode: 0o1777, ..MountOwner::default() };
    let mut mount = f.store.try_cache_mount("key", Sharing::Shared, owner, "d").unwrap().unwrap();
    mount.mark_ready().unwrap();
    fs::write(mount.path().join("x"), b"kept").unwrap();
    let path = mount.path().to_owned();
    drop(mount);
    let (dir, clock) = (f.dir, f.clock);
    drop(f.store);
    f.store = open(&dir, &clock, Duration::ZERO);
    let again = take(&f.store, Sharing::Shared).unwrap();
    assert_eq!((again.path(), again.is_fresh()), (path.as_path(), false));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o1777);
    let usage = f.store.usage().unwrap();
    assert!(usage[0].in_use && usage[0].mutable && usage[0].size > 0, "{usage:?}");
    drop(again);
    f.store.reset_cache_mount("key");
    assert!(take(&f.store, Sharing::Shared).unwrap().is_fresh());
    assert!(!path.exists());
}

#[test]
fn a_deleted_directory_is_a_new_one() {
    let f = fixture(Duration::ZERO);
    let path = ready(&f.store, Sharing::Shared).path().to_owned();
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
    let new = take(&f.store, Sharing::Locked).unwrap();
    assert!(new.is_fresh() && new.path().is_dir());
    let events = f.store.repairs().events();
    assert_eq!(events.len(), 1, "{events:?}");
}
