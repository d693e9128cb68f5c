//! Tests of cache mounts.

mod at_once;

use std::time::Duration;

use super::*;
use crate::testing::{fixture, open};

fn take(store: &Store, sharing: Sharing) -> Option<CacheMount> {
    store.try_cache_mount(&MountKey::named("key"), sharing, MountOwner::default(), "cached mount /c").unwrap()
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
    let mut mount = f.store.try_cache_mount(&MountKey::named("key"), Sharing::Shared, owner, "d").unwrap().unwrap();
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
    f.store.reset_cache_mount(&MountKey::named("key"));
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

#[test]
fn each_platform_has_its_own() {
    let f = fixture(Duration::ZERO);
    let of = |platform: &str| {
        let key = MountKey { platform: platform.to_owned(), ..MountKey::named("key") };
        let mut mount = f.store.try_cache_mount(&key, Sharing::Shared, MountOwner::default(), "d").unwrap().unwrap();
        mount.mark_ready().unwrap();
        mount.id().to_owned()
    };
    let (a, b) = (of("linux/amd64"), of("linux/arm64"));
    assert_ne!(a, b);
    assert_eq!((of("linux/amd64"), of("linux/arm64")), (a, b));
    let listed = f.store.cache_mounts(false);
    let listed: Vec<_> = listed.iter().map(|m| (m.id.as_str(), m.platform.as_str(), m.uses)).collect();
    assert_eq!(listed, [("key", "linux/amd64", 2), ("key", "linux/arm64", 2)]);
}

#[test]
fn a_writer_that_was_cut_off_leaves_a_mark() {
    let f = fixture(Duration::ZERO);
    let mark = || f.store.cache_mounts(false)[0].mark.clone().map(|mark| mark.why);
    let write = |end: Option<WriteEnd<'_>>| {
        let mut mount = ready(&f.store, Sharing::Shared);
        mount.begin_write();
        let seen = mount.mark().cloned();
        end.into_iter().for_each(|end| mount.end_write(end));
        seen.map(|mark| mark.why)
    };
    drop(ready(&f.store, Sharing::Shared));
    assert_eq!(mark(), None, "who never wrote leaves none");
    write(Some(WriteEnd::Failed));
    assert_eq!(mark(), None, "a failure by itself is none");
    write(Some(WriteEnd::CutOff("was killed")));
    assert_eq!(mark().as_deref(), Some("was killed"));
    assert_eq!(write(Some(WriteEnd::Failed)).as_deref(), Some("was killed"), "the next one is told");
    assert_eq!(mark().as_deref(), Some("was killed"));
    write(Some(WriteEnd::Well));
    assert_eq!(mark(), None);
    write(None);
    assert_eq!(mark().as_deref(), Some("was called off"), "dropped in the middle");

    let mut early = ready(&f.store, Sharing::Shared);
    early.begin_write();
    f.clock.advance(Duration::from_secs(1));
    write(Some(WriteEnd::CutOff("ran out of space")));
    early.end_write(WriteEnd::Well);
    assert_eq!(mark().as_deref(), Some("ran out of space"), "one that began before says nothing of it");
}

#[test]
fn marks_outlive_the_engine() {
    let f = fixture(Duration::ZERO);
    let mut mount = ready(&f.store, Sharing::Shared);
    mount.begin_write();
    // The engine is killed: nothing is dropped, the lock goes with the process.
    let root = f.store.root().to_owned();
    let copy = tempfile::tempdir().unwrap();
    let status = std::process::Command::new("cp").arg("-a").arg(&root).arg(copy.path().join("root")).status().unwrap();
    assert!(status.success());
    let again = open(&copy, &f.clock, Duration::ZERO);
    let listed = again.cache_mounts(true);
    assert_eq!(listed[0].mark.as_ref().map(|m| m.why.as_str()), Some("was cut off when the engine ended"));
    let mut next = ready(&again, Sharing::Locked);
    next.begin_write();
    next.end_write(WriteEnd::Well);
    drop((next, again));
    assert_eq!(open(&copy, &f.clock, Duration::ZERO).cache_mounts(false)[0].mark, None);
    mount.end_write(WriteEnd::Well);
}

#[test]
fn what_is_in_use_is_not_removed() {
    let f = fixture(Duration::ZERO);
    let held = ready(&f.store, Sharing::Shared);
    let other = {
        let key = MountKey::named("other");
        let mut mount = f.store.try_cache_mount(&key, Sharing::Shared, MountOwner::default(), "d").unwrap().unwrap();
        mount.mark_ready().unwrap();
        mount.id().to_owned()
    };
    let both = [other.clone(), held.id().to_owned()];
    let error = f.store.remove_cache_mounts(&both).unwrap_err();
    assert_eq!(error.to_string(), "cache mount key is in use by a step");
    assert_eq!(f.store.cache_mounts(false).len(), 2, "all or none");
    let path = held.path().to_owned();
    drop(held);
    f.store.remove_cache_mounts(&both).unwrap();
    assert!(f.store.cache_mounts(true).is_empty() && !path.exists());
    assert!(f.store.remove_cache_mounts(&[other]).is_err());
}

#[test]
fn no_path_leads_out() {
    use std::io::Read;
    let f = fixture(Duration::ZERO);
    let mount = ready(&f.store, Sharing::Shared);
    let top = mount.path();
    fs::create_dir_all(top.join("a/b")).unwrap();
    fs::write(top.join("a/file"), b"inside").unwrap();
    let outside = f.dir.path().join("outside");
    fs::write(&outside, b"outside").unwrap();
    for (link, to) in [("in", "a/file"), ("dir", "a"), ("up", "../../.."), ("abs", outside.to_str().unwrap())] {
        std::os::unix::fs::symlink(to, top.join(link)).unwrap();
    }
    let status = std::process::Command::new("mkfifo").arg(top.join("pipe")).status().unwrap();
    assert!(status.success());
    let read = |path: &str| {
        let mut text = String::new();
        let mut file = f.store.open_cache_file(mount.id(), path).map_err(|e| e.to_string())?;
        file.read_to_string(&mut text).unwrap();
        Ok::<_, String>(text)
    };
    for inside in ["a/file", "/a/file", "//a/./file", "in", "dir/file"] {
        assert_eq!(read(inside).as_deref(), Ok("inside"), "{inside}");
    }
    for outside in ["../info", "a/../../info", "up/info", "abs", "pipe", "a", "a/file/x", "none", "up"] {
        assert!(read(outside).is_err(), "{outside}");
        assert!(outside == "pipe" || outside == "a" || f.store.cache_mount_files(mount.id(), outside).is_err());
    }
    assert!(f.store.cache_mount_files("../..", "/").is_err());
    let names = |path: &str| -> Vec<String> {
        let files = f.store.cache_mount_files(mount.id(), path).unwrap();
        files.iter().map(|file| String::from_utf8_lossy(&file.name).into_owned()).collect()
    };
    assert_eq!(names("/"), ["a", "abs", "dir", "in", "pipe", "up"]);
    assert_eq!(names("dir"), ["b", "file"]);
    assert_eq!(names("/a/file"), ["file"]);
    let files = f.store.cache_mount_files(mount.id(), "").unwrap();
    assert_eq!((files[2].target.as_slice(), files[2].mode & 0o170000), (&b"a"[..], 0o120000));
}

#[test]
fn verify_finds_what_is_missing_and_repairs_it() {
    let f = fixture(Duration::ZERO);
    let (lost, kept) = {
        let made = |key: &str| {
            let key = MountKey::named(key);
            let mut mount =
                f.store.try_cache_mount(&key, Sharing::Shared, MountOwner::default(), "d").unwrap().unwrap();
            mount.mark_ready().unwrap();
            mount.path().to_owned()
        };
        (made("lost"), made("kept"))
    };
    assert!(f.store.verify(false).unwrap().problems.is_empty());
    fs::remove_dir_all(&lost).unwrap();
    fs::write(kept.parent().unwrap().join("info"), b"noise").unwrap();
    let told = f.store.verify(false).unwrap();
    assert_eq!((told.mounts, told.problems.len()), (2, 2), "{told:?}");
    assert!(told.problems.iter().all(|p| p.subject.starts_with("cache mount ") && p.action.is_none()));
    assert_eq!(f.store.verify(true).unwrap().problems.len(), 2);
    assert!(f.store.verify(false).unwrap().problems.is_empty());
    let left = f.store.cache_mounts(false);
    assert_eq!(left.iter().map(|m| m.id.as_str()).collect::<Vec<_>>(), ["kept"]);
}

#[test]
fn a_mount_is_read_as_it_is_between_writers() {
    let f = fixture(Duration::ZERO);
    let mut writer = ready(&f.store, Sharing::Shared);
    let directory = writer.id().to_owned();
    writer.begin_write();
    assert!(matches!(f.store.read_cache_mount(&directory), MountReading::Busy));
    writer.end_write(WriteEnd::Well);
    let uses = f.store.cache_mounts(false)[0].uses;
    let MountReading::Free(reading) = f.store.read_cache_mount(&directory) else { panic!("nobody writes") };
    assert_eq!(f.store.cache_mounts(false)[0].uses, uses, "it is no use");
    drop(writer);
    assert!(take(&f.store, Sharing::Locked).is_none(), "it waits for the reader");
    drop(reading);
    let alone = ready(&f.store, Sharing::Locked);
    assert!(matches!(f.store.read_cache_mount(&directory), MountReading::Busy));
    drop(alone);
    assert!(f.store.0.prune_mount(&directory));
    assert!(matches!(f.store.read_cache_mount(&directory), MountReading::Gone));
}

#[test]
fn a_new_mount_begins_with_a_directory() {
    let f = fixture(Duration::ZERO);
    let key = MountKey::named("key");
    let first = ready(&f.store, Sharing::Shared).id().to_owned();
    f.store.drop_empty_cache_mounts(&key);
    let mut mount = take(&f.store, Sharing::Shared).unwrap();
    assert!(mount.is_fresh() && mount.id() != first, "an empty one gives way");
    let filled = f.dir.path().join("filled");
    fs::create_dir(&filled).unwrap();
    fs::write(filled.join("file"), "came").unwrap();
    mount.begin_with(&filled).unwrap();
    mount.mark_ready().unwrap();
    let id = mount.id().to_owned();
    f.store.drop_empty_cache_mounts(&key);
    drop(mount);
    f.store.drop_empty_cache_mounts(&key);
    let mut again = ready(&f.store, Sharing::Shared);
    assert_eq!(again.id(), id, "what holds something stays");
    assert_eq!(fs::read(again.path().join("file")).unwrap(), b"came");
    fs::create_dir(&filled).unwrap();
    assert!(again.begin_with(&filled).is_err() && filled.is_dir(), "what is there is not replaced");
}
