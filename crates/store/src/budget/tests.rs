//! Tests of the budget: what it takes away, when, and that it knows what the disk says.

use std::io::Write as _;
use std::time::Duration;

use super::*;
use crate::testing::{Fixture, commit, fixture, meta, one_file, open};
use crate::{LayerInfo, MountKey, MountOwner, Sharing};

const MIB: u64 = 1 << 20;

fn budget(most: u64) -> Vec<PrunePolicy> {
    vec![PrunePolicy { all: true, max_used_space: most, ..PrunePolicy::default() }]
}

/// What the program says that everybody asks.
fn du(f: &Fixture) -> u64 {
    let du = std::process::Command::new("du").args(["-s", "--block-size=1"]).arg(f.store.root()).output().unwrap();
    String::from_utf8(du.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

#[track_caller]
fn assert_true_to_du(f: &Fixture, what: &str) {
    f.store.meta().flush();
    f.store.finish_sweep();
    f.store.0.files_changed();
    let accounts = f.store.accounts().unwrap();
    let (counted, found) = (accounts.cache + accounts.growing + accounts.images, du(f));
    // A hundredth; what is left over of a store this small is a few directories.
    let most = found / 100 + 256 * 1024;
    assert!(counted.abs_diff(found) <= most, "{what}: {counted} counted, {found} on disk, {accounts:?}");
}

#[test]
fn the_account_is_what_du_says() {
    let mut f = fixture(Duration::from_secs(60));
    let (files, base) = commit(&f.store.scratch(), LayerInfo::default(), |b| {
        for i in 0..2000 {
            b.file_from_bytes(format!("d{}/f{i}", i % 50).as_bytes(), &meta(0o644), &vec![7; i % 300]).unwrap();
        }
        b.file_from_bytes(b"large", &meta(0o644), &vec![1; 9_000_000]).unwrap();
        b.hard_link(b"large", b"again").unwrap();
        b.symlink(b"link", b"large", &meta(0o777)).unwrap();
    });
    assert_true_to_du(&f, "small files");
    assert!(files.size() < 10 * MIB, "as people see it");
    let flat = f.store.draft_of_view().unwrap();
    let manifest = kiln_snapshot::layer::flatten(&base.manifests().unwrap(), &base.dirs(), &flat.fs()).unwrap();
    let linked = f.store.commit(flat, manifest, LayerInfo::default()).unwrap();
    assert_true_to_du(&f, "a layer of links");
    let draft = f.store.draft().unwrap();
    let sparse = std::fs::File::create(draft.fs().join("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    drop(sparse);
    std::os::unix::fs::symlink("x".repeat(200), draft.fs().join("long")).unwrap();
    let manifest = kiln_snapshot::layer::scan(&draft.fs()).unwrap();
    let holes = f.store.commit(draft, manifest, LayerInfo::default()).unwrap();
    assert_true_to_du(&f, "holes");
    for size in [1, 4096, 5000, 3_000_001] {
        f.store.put_blob(&vec![3; size]).unwrap();
    }
    let mut partial = f.store.resume(kiln_stdx::Digest::of("nothing"), 5 * MIB).unwrap();
    partial.write_all(&vec![1; 2 << 20]).unwrap();
    drop(partial);
    let key = MountKey::named("k");
    let mut mount = f.store.try_cache_mount(&key, Sharing::Shared, MountOwner::default(), "m").unwrap().unwrap();
    for i in 0..300 {
        std::fs::write(mount.path().join(i.to_string()), [1; 5000]).unwrap();
    }
    mount.mark_ready().unwrap();
    drop(mount);
    f.store.measure();
    assert_true_to_du(&f, "blobs, a beginning of one, a cache mount");
    drop((files, base));
    // The layer of links keeps the bytes of the first.
    let gone = f.store.prune(&PrunePolicy { max_used_space: MIB, ..PrunePolicy::default() }, |_| {}).unwrap();
    assert!(gone.records > 0);
    assert_true_to_du(&f, "after pruning");
    f.store.close_epoch().unwrap();
    drop((linked, holes));
    let (dir, clock) = (&f.dir, &f.clock);
    let root = f.store.root().to_owned();
    drop(std::mem::replace(&mut f.store, {
        let other = tempfile::tempdir().unwrap();
        Store::open(crate::StoreConfig::new(other.path())).unwrap()
    }));
    f.store = open(dir, clock, Duration::from_secs(60));
    assert_eq!(f.store.root(), root);
    assert_true_to_du(&f, "opened again");
    f.store.prune(&PrunePolicy { all: true, ..PrunePolicy::default() }, |_| {}).unwrap();
    assert_true_to_du(&f, "emptied");
    f.store.verify(true).unwrap();
    assert_true_to_du(&f, "verified");
}

#[test]
fn room_is_made_before_bytes_are_kept() {
    let f = fixture(Duration::from_secs(60));
    f.store.set_budget(budget(8 * MIB));
    for i in 0..40 {
        let (layer, held) = one_file(&f.store.scratch(), &format!("f{i}"), &[1; 1 << 20]);
        let accounts = f.store.accounts().unwrap();
        assert!(accounts.cache <= 8 * MIB, "{i}: {accounts:?}");
        assert!(!layer.is_gone());
        drop(held);
        f.clock.advance(Duration::from_secs(10));
    }
    let left: Vec<String> = f.store.usage().unwrap().into_iter().map(|r| r.description).collect();
    assert!(left.len() >= 4 && left.contains(&"f39".to_owned()) && !left.contains(&"f0".to_owned()), "{left:?}");
    let reserved = f.store.reserve(6 * MIB);
    assert!(f.store.accounts().unwrap().cache <= 2 * MIB);
    let mut ingest = f.store.ingest(None, None).unwrap();
    ingest.write_all(&vec![5; 3 << 20]).unwrap();
    drop(reserved);
    ingest.commit().unwrap();
    assert!(f.store.accounts().unwrap().cache <= 8 * MIB);
}

#[test]
fn room_is_made_before_something_is_written() {
    let f = fixture(Duration::from_secs(60));
    f.store.set_budget(budget(16 * MIB));
    let kept = |f: &Fixture| f.store.accounts().unwrap().cache;
    let fill = |f: &Fixture| {
        (0..15_u8).for_each(|i| drop(one_file(&f.store.scratch(), &format!("f{i}"), &vec![i; 1 << 20])));
        assert!(kept(f) > 13 * MIB);
    };
    fill(&f);
    let draft = f.store.draft().unwrap();
    draft.room().take(4 * MIB);
    assert!(kept(&f) <= 12 * MIB, "a size that is known");
    fill_draft(&draft, 4 * MIB);
    f.store.measure();
    let before = kept(&f);
    draft.room().take(0);
    assert_eq!(kept(&f), before, "what has come is not counted twice");
    drop(draft);
    fill(&f);
    let draft = f.store.draft().unwrap();
    draft.room().runs();
    assert!(kept(&f) <= 15 * MIB - MIB / 2, "a head start of a sixteenth");
    fill_draft(&draft, 5 * MIB);
    f.store.measure();
    f.store.keep_budget();
    assert!(kept(&f) <= 10 * MIB, "on top of what was measured");
    draft.room().settle();
    drop(draft);
    fill(&f);
}

fn fill_draft(draft: &crate::LayerDraft, bytes: u64) {
    std::fs::write(draft.fs().join("file"), vec![1; usize::try_from(bytes).unwrap()]).unwrap();
}

#[test]
fn what_is_held_stays_and_goes_when_it_is_let_go() {
    let f = fixture(Duration::from_secs(60));
    let (idle, r) = one_file(&f.store.scratch(), "idle", &[1; 1 << 20]);
    drop((idle, r));
    f.store.set_budget(budget(3 * MIB));
    let held: Vec<_> = (0..6).map(|i| one_file(&f.store.scratch(), &format!("f{i}"), &[1; 1 << 20])).collect();
    let names = |store: &Store| store.usage().unwrap().into_iter().map(|r| r.description).collect::<Vec<_>>();
    assert_eq!(names(&f.store).len(), 6, "nothing idle is left");
    assert!(held.iter().all(|(layer, r)| !layer.is_gone() && r.is_valid()));
    assert_eq!(f.store.keep_budget(), None, "there is room on the disk");
    let total = f.store.disk_space().1;
    f.store.set_budget(vec![PrunePolicy { min_free_space: total, ..budget(3 * MIB).remove(0) }]);
    let overrun = f.store.keep_budget().expect("more is held than there may be, and the disk is full");
    assert!(overrun.used > 6 * MIB && overrun.budget == 3 * MIB, "{overrun:?}");
    f.store.set_budget(budget(3 * MIB));
    drop(held);
    f.store.released();
    assert!(names(&f.store).len() <= 2);
    assert_eq!(f.store.keep_budget(), None);
}

#[test]
fn many_at_once_each_find_room() {
    let f = fixture(Duration::from_secs(60));
    f.store.set_budget(budget(16 * MIB));
    let keep = &|thread: u8| {
        for i in 0..40_u8 {
            let (_, held) = one_file(&f.store.scratch(), &format!("{thread}-{i}"), &[thread ^ i; 1 << 20]);
            let standing = f.store.standing().unwrap();
            assert!(standing.accounts.cache <= 16 * MIB, "{thread}, {i}: {standing:?}");
            drop(held);
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|thread| scope.spawn(move || keep(thread))).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    assert!(f.store.standing().unwrap().held < 16 * MIB);
}

#[test]
fn after_something_was_let_go_another_collection_is_worth_it() {
    let ago = Instant::now().checked_sub(Duration::from_millis(100)).unwrap();
    let futile = |took, let_go| Futile { ended: ago, took, let_go };
    let before = LET_GO.load(Ordering::Acquire);
    drop(LetGo);
    assert!(!futile(Duration::from_millis(5), before).holds(true));
    assert!(futile(Duration::from_millis(5), before).holds(false), "a full disk is not looked at so often");
    assert!(futile(Duration::from_secs(20), before).holds(true), "but not all the time");
}

#[test]
fn rules_for_some_records_do_not_bind_the_rest() {
    let of = |most, filter: &str, keep| PrunePolicy {
        max_used_space: most,
        filters: (!filter.is_empty()).then(|| filter.to_owned()).into_iter().collect(),
        keep_duration: Duration::from_secs(keep),
        ..PrunePolicy::default()
    };
    let rules = Rules::new(vec![of(5, "type==exec.cachemount", 0), of(6, "", 9), of(8, "", 0), of(7 << 20, "", 0)]);
    assert_eq!((rules.most, rules.free), (Some(8), 0));
    let reserved = PrunePolicy { reserved_space: 20, min_free_space: 3, ..of(8, "", 0) };
    let rules = Rules::new(vec![reserved]);
    assert_eq!((rules.most, rules.free), (Some(20), 3));
    assert_eq!(Rules::new(vec![of(0, "", 0)]).most, None);
}
