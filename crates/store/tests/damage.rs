//! Damage between uses: whatever is deleted, cut or flipped below the root, the store opens, what it says is good has the
//! right bytes, and the same work gives the same results.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::{Choices, inspect, known, open, reference, work};
use kiln_store::{Store, StoreConfig};

/// Everything below the root by what it is, so that the many layer files do not get all the damage.
fn victims(root: &Path) -> Vec<(&'static str, Vec<PathBuf>)> {
    let mut all = Vec::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                dirs.push(entry.path());
            }
            all.push(entry.path());
        }
    }
    all.sort();
    let of = |test: &dyn Fn(&str, bool) -> bool| -> Vec<PathBuf> {
        let name = |p: &PathBuf| p.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        all.iter().filter(|p| test(&name(p), p.is_dir())).cloned().collect()
    };
    vec![
        ("blob", of(&|p, dir| p.starts_with("blobs/") && !dir)),
        ("blob directory", of(&|p, dir| p.starts_with("blobs") && dir)),
        ("layer file", of(&|p, dir| p.starts_with("layers/") && p.contains("/fs/") && !dir)),
        ("layer directory", of(&|p, dir| p.starts_with("layers/") && dir)),
        ("all layers", of(&|p, _| p == "layers")),
        ("manifest", of(&|p, _| p.starts_with("layers/") && p.ends_with("/manifest"))),
        ("info", of(&|p, _| p.starts_with("layers/") && p.ends_with("/info"))),
        ("sums", of(&|p, _| p.starts_with("layers/") && p.ends_with("/sums"))),
        ("metadata", of(&|p, _| p == "meta.db")),
        ("metadata log", of(&|p, _| p == "meta.db-wal")),
        ("version", of(&|p, _| p == "version")),
        ("epoch", of(&|p, _| p == "epoch")),
        ("lock", of(&|p, _| p == "lock")),
        ("image layout", of(&|p, dir| p.starts_with("images/") && !dir)),
        ("image directory", of(&|p, dir| p.starts_with("images") && dir)),
        ("cache mount", of(&|p, _| p.starts_with("mounts/"))),
        ("context index", of(&|p, _| p.starts_with("context/"))),
        ("other directory", of(&|p, _| ["tmp", "drafts", "damaged", "mounts", "context"].contains(&p))),
    ]
}

fn damage(path: &Path, choices: &mut Choices) -> &'static str {
    let meta = fs::symlink_metadata(path).unwrap();
    if meta.is_dir() {
        fs::remove_dir_all(path).unwrap();
        return "delete";
    }
    let mut bytes = fs::read(path).unwrap_or_default();
    match choices.below(3) {
        0 => {
            fs::remove_file(path).unwrap();
            "delete"
        }
        1 => {
            bytes.truncate(choices.below(bytes.len()));
            fs::write(path, &bytes).unwrap();
            "truncate"
        }
        _ => {
            for _ in 0..=choices.below(3) {
                let at = choices.below(bytes.len());
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << choices.below(8);
                }
            }
            fs::write(path, &bytes).unwrap();
            "flip"
        }
    }
}

#[test]
fn seeded_damage_is_a_miss_and_a_repair() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let mut choices = Choices(11);
    let mut store = Some(open(&root));
    work(store.as_ref().unwrap()).unwrap();
    let mut repairs = 0;
    let mut lost = 0;
    for round in 0..180 {
        // Half the damage comes while the store is open and idle, half while no process has it.
        let was_open = choices.below(2) == 0;
        if !was_open {
            repairs += store.take().map_or(0, |s| s.repairs().total());
        }
        let classes = victims(&root);
        let (class, paths) = &classes[round % classes.len()];
        if paths.is_empty() {
            store.get_or_insert_with(|| open(&root));
            continue;
        }
        let path = &paths[choices.below(paths.len())];
        let what = damage(path, &mut choices);
        let place = format!("round {round}: {what} of {class} {}, open: {was_open}", path.display());
        let current = store.get_or_insert_with(|| open(&root));
        inspect(current);
        lost += usize::from(known(current).len() < 4);
        match work(current) {
            Ok(outcome) => assert_eq!(outcome, reference(), "{place}"),
            Err(e) => panic!("{place}: {e}"),
        }
        inspect(current);
    }
    let store = store.unwrap();
    repairs += store.repairs().total();
    store.verify(true).unwrap();
    let left = store.verify(true).unwrap().problems;
    assert!(left.is_empty(), "{left:?}");
    assert!(repairs > 40, "damage is logged: {repairs}");
    assert!(lost > 4 && lost < 90, "some damage costs a miss, most does not: {lost}");
}

#[test]
fn what_was_found_good_is_believed_until_checks_are_doubted() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(StoreConfig::new(dir.path().join("root"))).unwrap();
    work(&store).unwrap();
    let chain = known(&store);
    store.check(&chain[3]).unwrap();
    fs::write(chain[3].dirs()[3].join("dir3/file2"), "damage").unwrap();
    store.check(&chain[3]).unwrap();
    assert_eq!(store.repairs().total(), 0);
    store.doubt_checks();
    store.check(&chain[3]).unwrap();
    assert_eq!(store.repairs().total(), 1, "it was unpacked again");
    common::assert_right(&chain[3], 4);
}

/// Changes a byte and puts size and times back.
fn flip_unseen(path: &Path) {
    let meta = fs::metadata(path).unwrap();
    let mut bytes = fs::read(path).unwrap();
    bytes[3] ^= 1;
    fs::write(path, &bytes).unwrap();
    let times = fs::FileTimes::new().set_modified(meta.modified().unwrap());
    fs::File::options().write(true).open(path).unwrap().set_times(times).unwrap();
    assert_eq!(fs::metadata(path).unwrap().mtime_nsec(), meta.mtime_nsec());
}

#[test]
fn what_no_stat_shows_is_found_by_verify_and_after_an_unclosed_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let store = open(&root);
    work(&store).unwrap();
    let chain = known(&store);
    let file = chain[3].dirs()[3].join("dir3/file2");
    flip_unseen(&file);
    store.check(&chain[3]).unwrap();
    let found = store.verify(false).unwrap().problems;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(chain[3].is_valid(), "without repair nothing changes");
    let found = store.verify(true).unwrap().problems;
    assert_eq!(found.len(), 1, "{found:?}");
    // The layer was archived: it is unpacked again.
    assert_eq!(found[0].action, Some(kiln_store::RepairAction::Repaired));
    store.check(&chain[3]).unwrap();
    common::assert_right(&chain[3], 4);
    // The repair published files in an epoch that is not closed when the process ends.
    drop(chain);
    drop(store);
    flip_unseen(&file);
    let store = open(&root);
    let chain = known(&store);
    store.check(&chain[3]).unwrap();
    common::assert_right(&chain[3], 4);
    assert!(store.repairs().total() > 0, "the open epoch's layers are verified by digest");
    store.close_epoch().unwrap();
    drop((chain, store));
    flip_unseen(&file);
    let store = open(&root);
    store.check(&known(&store)[3]).unwrap();
    assert_eq!(store.repairs().total(), 0, "a closed epoch is believed");
}

#[test]
fn a_copied_store_is_the_same_store() {
    let dir = tempfile::tempdir().unwrap();
    let (root, copy) = (dir.path().join("root"), dir.path().join("copy"));
    work(&open(&root)).unwrap();
    let status = std::process::Command::new("cp").arg("-a").arg(&root).arg(&copy).status().unwrap();
    assert!(status.success());
    let store = open(&copy);
    let chain = known(&store);
    assert_eq!(chain.len(), 4);
    store.check(&chain[3]).unwrap();
    common::assert_right(&chain[3], 4);
    work(&store).unwrap();
    assert!(store.verify(true).unwrap().problems.is_empty());
}

#[test]
fn a_second_opening_names_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let store = open(&root);
    let again = || Store::open(StoreConfig::new(&root)).err().map(|e| e.to_string());
    assert!(again().unwrap().contains(&format!("process {}", std::process::id())));
    fs::remove_file(root.join("lock")).unwrap();
    assert!(again().unwrap().contains("in use"), "deleting the lock file does not let a second one in");
    drop(store);
    assert_eq!(again(), None);
}

#[test]
fn a_newer_format_is_refused_and_a_damaged_version_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    drop(open(&root));
    let version = root.join("version");
    let good = fs::read(&version).unwrap();
    let check = &kiln_stdx::Digest::of("kiln store 3").hex()[..8];
    fs::write(&version, format!("kiln store 3 {check}\n")).unwrap();
    let error = Store::open(StoreConfig::new(&root)).err().unwrap();
    assert!(error.to_string().contains("format 3"), "{error}");
    fs::write(&version, b"kiln store 3 deadbeef\n").unwrap();
    assert_eq!(open(&root).repairs().total(), 1);
    assert_eq!(fs::read(&version).unwrap(), good);
}
