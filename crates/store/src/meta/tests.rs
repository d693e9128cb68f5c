//! Tests of the metadata tables under damage.

use std::fs;
use std::path::Path;

use kiln_stdx::SystemClock;

use super::*;

fn open(dir: &Path) -> (Meta, RepairLog) {
    fs::create_dir_all(dir.join("damaged")).unwrap();
    let log = RepairLog::new(Arc::new(SystemClock));
    (Meta::open(dir.join("meta.db"), dir.join("damaged"), log.clone()), log)
}

#[test]
fn values_are_seen_at_once_and_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let (meta, _) = open(dir.path());
    let table = meta.table("t");
    for i in 0..1000u32 {
        table.put(&i.to_be_bytes(), format!("v{i}").as_bytes());
    }
    table.delete(&7u32.to_be_bytes());
    meta.table("t2").put(b"x", b"other");
    assert_eq!(table.get(&7u32.to_be_bytes()), None);
    assert_eq!(table.get(&8u32.to_be_bytes()).unwrap(), b"v8");
    assert_eq!(table.scan_prefix(b"").len(), 999);
    assert_eq!(table.scan_prefix(&[0, 0, 1]).len(), 256);
    drop(meta);
    let (meta, log) = open(dir.path());
    let rows = meta.table("t").scan_prefix(b"");
    assert_eq!(rows.len(), 999);
    assert!(rows.windows(2).all(|w| w[0].0 < w[1].0));
    assert!(log.events().is_empty());
    assert!(!dir.path().join("meta.db-shm").exists(), "exclusive mode needs no shared memory");
}

#[test]
fn what_comes_at_a_time_is_written_in_few_transactions() {
    let dir = tempfile::tempdir().unwrap();
    let (meta, _) = open(dir.path());
    let table = meta.table("t");
    for i in 0..400u32 {
        table.put(&i.to_be_bytes(), b"v");
    }
    meta.flush();
    let queue = meta.shared.queue.lock();
    assert!(queue.ops.is_empty() && queue.overlay.is_empty(), "everything is written");
    assert!(queue.commits >= 2 && queue.commits < 100, "{} transactions", queue.commits);
}

#[test]
fn any_damage_is_a_miss_and_a_new_file_is_seeded() {
    let mut replaced = 0;
    for round in 0..60u64 {
        let dir = tempfile::tempdir().unwrap();
        {
            let (meta, _) = open(dir.path());
            let table = meta.table("t");
            for i in 0..400u32 {
                table.put(&i.to_be_bytes(), &[i as u8; 100]);
            }
        }
        let path = dir.path().join("meta.db");
        let mut bytes = fs::read(&path).unwrap();
        let at = (round * 7919) as usize % bytes.len();
        match round % 3 {
            0 => bytes[at] ^= 0x55,
            1 => bytes.truncate(at),
            _ => bytes[at..].iter_mut().take(64).for_each(|b| *b = 0xa5),
        }
        fs::write(&path, &bytes).unwrap();
        let (meta, log) = open(dir.path());
        let seed = meta.table("seed").change(b"k", b"v");
        meta.on_replaced(move || vec![seed.clone()]);
        let table = meta.table("t");
        for i in 0..400u32 {
            if let Some(value) = table.get(&i.to_be_bytes()) {
                assert_eq!(value, [i as u8; 100], "round {round}: a wrong value is worse than none");
            }
        }
        for (key, value) in table.scan_prefix(b"") {
            assert_eq!(value, [key[3]; 100]);
        }
        table.put(b"new", b"works");
        meta.flush();
        assert_eq!(table.get(b"new").unwrap(), b"works");
        replaced += usize::from(!log.events().is_empty());
    }
    assert!(replaced > 15, "most damage is noticed: {replaced}");
}

#[test]
fn damage_under_an_open_file_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let (meta, log) = open(dir.path());
    let table = meta.table("t");
    let seed = meta.table("seed").change(b"k", b"v");
    meta.on_replaced(move || vec![seed.clone()]);
    for i in 0..3000u32 {
        table.put(&i.to_be_bytes(), &[1; 3000]);
    }
    meta.flush();
    for name in ["meta.db", "meta.db-wal"] {
        if let Ok(file) = fs::OpenOptions::new().write(true).open(dir.path().join(name)) {
            file.set_len(0).unwrap();
        }
    }
    for i in 0..3000u32 {
        if let Some(value) = table.get(&i.to_be_bytes()) {
            assert_eq!(value, [1; 3000]);
        }
    }
    assert!(!log.events().is_empty());
    table.put(b"after", b"1");
    meta.flush();
    assert_eq!(table.get(b"after").unwrap(), b"1");
    meta.flush();
    assert_eq!(meta.table("seed").get(b"k").unwrap(), b"v");
}
