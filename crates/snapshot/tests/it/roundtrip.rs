//! Layer → archive → layer, for everything a layer can hold.

use std::collections::BTreeMap;
use std::io::Read as _;

use kiln_snapshot::layer::{FileMeta, LayerBuilder, TarOptions, scan, verify_digest, verify_stat, write_tar};
use kiln_snapshot::{Error, Kind, Tree};
use kiln_stdx::Digest;

use crate::support::*;

/// A file capability (version 2, `cap_net_raw` permitted and effective) as the kernel stores it.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn special(builder: &mut LayerBuilder<'_>) {
    let xattrs = BTreeMap::from([
        (b"security.capability".to_vec(), CAPABILITY.to_vec()),
        (b"user.binary=odd".to_vec(), vec![0, 10, 61, 255]),
        (b"trusted.mine".to_vec(), b"kept".to_vec()),
    ]);
    let ping = FileMeta { uid: 12, gid: 70_000, xattrs, ..meta(0o6755) };
    builder.file_from_bytes(b"bin/ping", &ping, b"\x7fELF").unwrap();
    builder.hard_link(b"bin/ping", b"a-first-name").unwrap();
    builder.hard_link(b"bin/ping", b"z/last-name").unwrap();
    builder.mkdir(b"tmp", &FileMeta { gid: 5, ..meta(0o3777) }).unwrap();
    builder.file_from_bytes(&[b"tmp/", &[b'n'; 255][..]].concat(), &meta(0), b"").unwrap();
    builder.file_from_bytes(b"tmp/\xff\xfe \n\t", &meta(0o400), b"not utf-8").unwrap();
    builder.file_from_bytes("tmp/ünï".as_bytes(), &FileMeta { mtime: (-86_400, 0), ..meta(0o644) }, b"x").unwrap();
    builder.symlink(b"link", b"../\xfe/target", &meta(0)).unwrap();
    builder.symlink(b"long-link", &[b't'; 300], &FileMeta { uid: 3, ..meta(0) }).unwrap();
    builder.node(b"dev/pipe", Kind::Fifo, (0, 0), &meta(0o622)).unwrap();
    builder.node(b"dev/null", Kind::CharDevice, (1, 3), &meta(0o666)).unwrap();
    builder.node(b"dev/disk", Kind::BlockDevice, (259, 70_000), &meta(0o660)).unwrap();
    builder.hard_link(b"dev/null", b"dev/zero-too").unwrap();
    builder.file_from_reader(b"big", &meta(0o644), std::io::repeat(7).take(700_001)).unwrap();
}

#[test]
fn everything_special_survives() {
    root_only!();
    let mut chain = Chain::new();
    chain.build(|b| {
        b.file_from_bytes(b"etc/old", &meta(0o644), b"1").unwrap();
        b.file_from_bytes(b"var/lib/x/y", &meta(0o644), b"2").unwrap();
        b.mkdir(b"var", &FileMeta { uid: 8, ..meta(0o2750) }).unwrap();
    });
    let (lower, dirs) = (chain.tree(), chain.dirs.clone());
    let manifest = chain.build(|b| {
        special(b);
        assert!(b.remove(b"etc/old").unwrap());
        b.set_opaque(b"var/lib").unwrap();
        b.file_from_bytes(b"var/lib/new", &meta(0o644), b"3").unwrap();
    });
    let dir = chain.dirs[1].clone();
    assert_eq!(verify_stat(&manifest, &dir), Ok(()));
    assert_eq!(verify_digest(&manifest, &dir), Ok(()));
    assert_eq!(scan(&dir).unwrap(), *manifest, "what is on disk is what the builder says");
    let var = manifest.get(b"var").unwrap();
    assert_eq!((var.uid, var.mode), (8, 0o2750), "implicit parents have the metadata of the layer below");
    let ping = manifest.get(b"bin/ping").unwrap();
    assert_eq!(ping.mode, 0o6755, "setuid bits outlive the change of owner");
    assert_eq!(ping.xattrs.len(), 3);
    assert_eq!(ping.nlink_group, manifest.get(b"z/last-name").unwrap().nlink_group);
    assert!(ping.nlink_group.is_some() && manifest.get(b"dev/null").unwrap().nlink_group != ping.nlink_group);

    let archive = tar_of(&manifest, &dir);
    let mut again = Chain::new();
    again.layers.push(std::sync::Arc::clone(&lower.layers()[0]));
    again.dirs.push(dirs[0].clone());
    let applied = again.unpack(&archive).unwrap();
    assert_eq!(applied.diff_id, Digest::of(&archive));
    assert_eq!(applied.archive_size, archive.len() as u64);
    assert_eq!(portable(&applied.manifest), portable(&manifest));
    assert_eq!(scan(&again.dirs[1]).unwrap(), applied.manifest);
    assert!(tar_of(&applied.manifest, &again.dirs[1]) == archive, "a second trip changes no byte");
}

#[test]
fn nanoseconds_survive_on_disk_and_seconds_in_archives() {
    root_only!();
    let mut chain = Chain::new();
    let manifest = chain.build(|b| b.file_from_bytes(b"d/f", &meta(0o644), b"").unwrap());
    assert_eq!(manifest.get(b"d/f").unwrap().mtime, (1_700_000_000, 123_456_789));
    let archive = tar_of(&manifest, &chain.dirs[0]);
    let applied = Chain::new().unpack(&archive).unwrap();
    assert_eq!(applied.manifest.get(b"d/f").unwrap().mtime, (1_700_000_000, 0));
}

#[test]
fn directory_times_are_those_asked_for_not_those_of_the_last_change() {
    root_only!();
    let archive = Archive::new().dir("d").file("d/a", "x").dir("d/e").file("d/e/b", "y").hard_link("d/c", "d/a").end();
    let mut chain = Chain::new();
    chain.unpack(&archive).unwrap();
    let scanned = scan(&chain.dirs[0]).unwrap();
    for path in [&b"d"[..], b"d/e", b"d/a"] {
        assert_eq!(scanned.get(path).unwrap().mtime, (1000, 0));
    }
    assert_eq!(scanned.get(b"").unwrap().mtime, (0, 0), "an implicit root has a fixed time");
}

#[test]
fn epoch_clamps_later_times_only() {
    root_only!();
    let mut chain = Chain::new();
    chain.build(|b| b.file_from_bytes(b"gone", &meta(0o644), b"").unwrap());
    let manifest = chain.build(|b| {
        b.file_from_bytes(b"new", &FileMeta::new(0o644, (2000, 5)), b"").unwrap();
        b.file_from_bytes(b"old", &FileMeta::new(0o644, (10, 5)), b"").unwrap();
        b.remove(b"gone").unwrap();
    });
    let mut out = Vec::new();
    write_tar(&manifest, &chain.dirs[1], &mut out, &TarOptions { epoch: Some(500) }).unwrap();
    let mut reader = kiln_snapshot::tar::Reader::new(&out[..]);
    let mut times = Vec::new();
    while let Some(member) = reader.next_member().unwrap() {
        times.push((String::from_utf8(member.path).unwrap(), member.mtime));
    }
    let at = |path: &str, time| (path.to_owned(), (time, 0));
    assert_eq!(times, [at(".wh.gone", 500), at("new", 500), at("old", 10)]);
}

#[test]
fn archives_do_not_depend_on_the_order_of_work() {
    root_only!();
    let files: Vec<String> = (0..40).map(|i| format!("d{}/f{i}", i % 5)).collect();
    let archive = |order: &[&String]| {
        let mut chain = Chain::new();
        let manifest = chain.build(|b| {
            for file in order {
                b.file_from_bytes(file.as_bytes(), &meta(0o644), file.as_bytes()).unwrap();
            }
        });
        tar_of(&manifest, &chain.dirs[0])
    };
    let forward: Vec<&String> = files.iter().collect();
    let backward: Vec<&String> = files.iter().rev().collect();
    assert!(archive(&forward) == archive(&backward));
}

#[test]
fn paths_beyond_the_kernels_limit_work() {
    root_only!();
    let mut path = Vec::new();
    for i in 0..40 {
        path.extend_from_slice(format!("{i:0200}/").as_bytes());
    }
    path.extend_from_slice(b"file");
    let mut chain = Chain::new();
    let manifest = chain.build(|b| {
        b.file_from_bytes(&path, &meta(0o644), b"deep").unwrap();
        b.hard_link(&path, b"top").unwrap();
    });
    let dir = chain.dirs[0].clone();
    assert_eq!(verify_digest(&manifest, &dir), Ok(()));
    let archive = tar_of(&manifest, &dir);
    let mut again = Chain::new();
    let applied = again.unpack(&archive).unwrap();
    assert_eq!(portable(&applied.manifest), portable(&manifest));
    again.build(|b| assert!(b.remove(&path[..200]).unwrap()));
    assert!(again.tree().get(&path).is_none());
}

#[test]
fn paths_beyond_our_limit_are_a_clear_error() {
    root_only!();
    let mut chain = Chain::new();
    let deep = "d/".repeat(20_000);
    let error = chain.unpack(&Archive::new().dir(&deep).end()).unwrap_err();
    assert!(error.to_string().contains("longer than 32 KiB"), "{error}");
    let error = chain.unpack(&Archive::new().file(&"n".repeat(256), "").end());
    assert!(error.is_err_and(|e| e.to_string().contains("longer than 255 bytes")));
}

#[test]
fn names_that_mean_deletions_cannot_be_written() {
    root_only!();
    let mut chain = Chain::new();
    let manifest = chain.build(|b| b.file_from_bytes(b"d/.wh.real", &meta(0o644), b"").unwrap());
    let result = write_tar(&manifest, &chain.dirs[0], std::io::sink(), &TarOptions::default());
    assert!(matches!(result, Err(Error::Unstorable { path, .. }) if path == "/d/.wh.real"));
}

#[test]
fn the_root_directory_is_written_only_when_it_is_not_plain() {
    root_only!();
    let mut chain = Chain::new();
    let manifest = chain.build(|b| b.mkdir(b"", &FileMeta::new(0o755, (5, 0))).unwrap());
    assert_eq!(tar_of(&manifest, &chain.dirs[0]).len(), 1024);
    let mut chain = Chain::new();
    let manifest = chain.build(|b| b.mkdir(b"", &FileMeta::new(0o1777, (5, 0))).unwrap());
    let archive = tar_of(&manifest, &chain.dirs[0]);
    let applied = Chain::new().unpack(&archive).unwrap();
    assert_eq!(applied.manifest.get(b"").unwrap().mode, 0o1777);
}

#[test]
fn default_access_lists_reach_no_file_of_the_layer() {
    root_only!();
    // user::rwx, group::r-x, other::--x in the kernel's form: version 2, then tag, permissions, id.
    let acl = [&2u32.to_le_bytes()[..], &[1, 0, 7, 0], &[255; 4], &[4, 0, 5, 0], &[255; 4], &[32, 0, 1, 0], &[255; 4]];
    let xattrs = BTreeMap::from([(b"system.posix_acl_default".to_vec(), acl.concat())]);
    let mut chain = Chain::new();
    let manifest = chain.build(|b| {
        b.mkdir(b"d", &FileMeta { xattrs, ..meta(0o755) }).unwrap();
        b.mkdir(b"d/sub", &meta(0o700)).unwrap();
        b.file_from_bytes(b"d/file", &meta(0o666), b"").unwrap();
    });
    if manifest.get(b"d").unwrap().xattrs.is_empty() {
        kiln_testkit::skip!("the file system has no access control lists");
    }
    assert_eq!(scan(&chain.dirs[0]).unwrap(), *manifest);
    assert!(manifest.get(b"d/sub").unwrap().xattrs.is_empty());
}

#[test]
fn sockets_are_in_no_layer() {
    let temp = tempfile::tempdir().unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(temp.path().join("s")).unwrap();
    std::fs::write(temp.path().join("f"), "x").unwrap();
    let manifest = scan(temp.path()).unwrap();
    assert_eq!(names(&manifest), ["", "f"]);
    assert_eq!(verify_digest(&manifest, temp.path()), Ok(()));
    assert!(Tree::merge(&[manifest.into()]).get(b"s").is_none());
}
