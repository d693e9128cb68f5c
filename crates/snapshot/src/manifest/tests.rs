//! Tests of manifests and their binary form.

use std::collections::BTreeMap;

use kiln_stdx::{Digest, Fingerprint};

use super::*;

fn sample() -> LayerManifest {
    let xattrs =
        BTreeMap::from([(b"user.note".to_vec(), b"\x00\xff".to_vec()), (b"security.capability".to_vec(), vec![])]);
    LayerManifest::new(vec![
        Entry::dir(""),
        Entry { opaque: true, mode: 0o1777, uid: 70_000, gid: u32::MAX, xattrs, ..Entry::dir("a") },
        Entry {
            size: u64::MAX,
            ino: u64::MAX,
            mtime: (-1, 999_999_999),
            nlink_group: Some(0),
            digest: Some(Fingerprint::of("x")),
            ..Entry::new("a/\u{fe}", Kind::File)
        },
        Entry { target: b"../\xff".to_vec(), mtime: (i64::MIN, 1), ..Entry::new("a/link", Kind::Symlink) },
        Entry::new("a/pipe", Kind::Fifo),
        Entry { rdev: (8, 1), ..Entry::new("a-b", Kind::BlockDevice) },
        Entry { rdev: (5, 0), mtime: (i64::MAX, 0), ..Entry::new("c", Kind::CharDevice) },
        Entry::whiteout("gone"),
    ])
    .unwrap()
}

#[test]
fn round_trip_is_exact_and_deterministic() {
    let manifest = sample();
    let bytes = manifest.encode();
    let again = LayerManifest::decode(&bytes).unwrap();
    assert_eq!(again, manifest);
    assert_eq!(again.encode(), bytes);
}

#[test]
fn every_damaged_byte_and_every_cut_is_noticed() {
    let bytes = sample().encode();
    for i in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[i] ^= 0x20;
        assert!(LayerManifest::decode(&bad).is_err(), "byte {i}");
        assert!(LayerManifest::decode(&bytes[..i]).is_err(), "cut at {i}");
    }
}

#[test]
fn garbage_behind_a_right_checksum_does_not_panic() {
    let good = sample().encode();
    let body = &good[..good.len() - 32];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut accepted = 0;
    for _ in 0..20_000 {
        let mut bad = body.to_vec();
        for _ in 0..1 + next() % 4 {
            let at = 8 + (next() as usize) % (bad.len() - 8);
            bad[at] = next() as u8;
        }
        bad.truncate(bad.len() - (next() as usize) % 3);
        bad.extend_from_slice(Digest::of(&bad).as_bytes());
        if let Ok(manifest) = LayerManifest::decode(&bad) {
            accepted += 1;
            assert_eq!(LayerManifest::decode(&manifest.encode()).as_ref(), Ok(&manifest));
        }
    }
    assert!(accepted > 0, "mutations of metadata alone must stay readable");
}

#[test]
fn versions_and_strangers_are_told_apart() {
    assert_eq!(LayerManifest::decode(b""), Err(DecodeError::NotAManifest));
    assert_eq!(LayerManifest::decode(b"kilnLM\x00\x03xx"), Err(DecodeError::Version(3)));
}

#[test]
fn broken_rules_are_refused() {
    let file = |path: &str| Entry { digest: Some(Fingerprint::of("")), ..Entry::new(path, Kind::File) };
    let cases: Vec<(&str, Vec<Entry>)> = vec![
        ("no root", vec![Entry::dir("a")]),
        ("file as root", vec![file("")]),
        ("missing parent", vec![Entry::dir(""), file("a/b")]),
        ("file as parent", vec![Entry::dir(""), file("a"), file("a/b")]),
        ("twice", vec![Entry::dir(""), file("a"), file("a")]),
        ("no digest", vec![Entry::dir(""), Entry::new("a", Kind::File)]),
        ("opaque file", vec![Entry::dir(""), Entry { opaque: true, ..file("a") }]),
        ("dots", vec![Entry::dir(""), Entry::dir("..")]),
    ];
    for (name, entries) in cases {
        assert!(LayerManifest::new(entries).is_err(), "{name}");
    }
}

#[test]
fn sizes_count_an_inode_once() {
    let file = |path: &str, group| Entry {
        size: 10,
        ino: 4,
        nlink_group: group,
        digest: Some(Fingerprint::of("0123456789")),
        ..Entry::new(path, Kind::File)
    };
    let manifest =
        LayerManifest::new(vec![file("c", None), file("b", Some(1)), file("a", Some(1)), Entry::dir("")]).unwrap();
    assert_eq!(manifest.total_size(), 20);
    assert_eq!(manifest.get(b"b").map(|e| e.size), Some(10));
    assert!(manifest.get(b"d").is_none());
    assert!(manifest.holds_inode(4) && !manifest.holds_inode(0));
}
