//! Archives that were made to do harm. Beside every layer lies a file that must stay as it is.

use std::collections::BTreeMap;

use kiln_snapshot::layer::scan;
use kiln_snapshot::{ArchiveProblem, Error, Kind};

use crate::support::*;

/// Unpacks beside a canary and checks that nothing but the layer changed.
fn unpack(archive: &[u8]) -> (Chain, Result<(), Error>) {
    let mut chain = Chain::new();
    let canary = chain.path("canary");
    std::fs::write(&canary, "untouched").unwrap();
    let before = std::fs::metadata(&canary).unwrap();
    let result = chain.unpack(archive).map(|_| ());
    assert_eq!(std::fs::read(&canary).unwrap(), b"untouched");
    let after = std::fs::metadata(&canary).unwrap();
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!((before.ino(), before.mode(), before.nlink()), (after.ino(), after.mode(), after.nlink()));
    let mut there: Vec<_> = std::fs::read_dir(chain.temp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    there.sort();
    assert_eq!(there, ["canary", "layer0"]);
    (chain, result)
}

fn problem(archive: Archive) -> ArchiveProblem {
    match unpack(&archive.end()).1 {
        Err(Error::Archive { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn paths_that_lead_out_are_refused() {
    root_only!();
    for path in ["../canary", "a/../../canary", "/../canary", "./../canary", "a/b/../../../canary"] {
        assert_eq!(problem(Archive::new().file(path, "evil")), ArchiveProblem::Escapes, "{path}");
    }
    assert_eq!(problem(Archive::new().dir("../dir")), ArchiveProblem::Escapes);
    assert_eq!(problem(Archive::new().file("../.wh.canary", "")), ArchiveProblem::Escapes);
}

#[test]
fn absolute_paths_mean_the_layers_root() {
    root_only!();
    let (chain, result) = unpack(&Archive::new().file("//canary", "mine").end());
    result.unwrap();
    assert_eq!(names(&chain.layers[0]), ["", "canary"]);
}

#[test]
fn links_do_not_lead_out() {
    root_only!();
    let outside = std::env::temp_dir();
    for target in ["..", "../..", "/", "../../../../../../..", outside.to_str().unwrap()] {
        let archive = Archive::new().symlink("l", target).file("l/canary", "evil").dir("l/d").symlink("l/d/m", "/..");
        let (chain, result) = unpack(&archive.file("l/d/m/canary2", "evil").end());
        result.unwrap();
        assert_eq!(scan(&chain.dirs[0]).unwrap(), *chain.layers[0]);
        assert!(chain.layers[0].get(b"canary2").is_some(), "{target}");
    }
    // A link in place of a directory that was used before.
    let archive = Archive::new().dir("d").file("d/a", "1").symlink("d", "..").file("d/canary", "evil");
    let (chain, result) = unpack(&archive.end());
    result.unwrap();
    assert_eq!(names(&chain.layers[0]), ["", "canary", "d"]);
}

#[test]
fn hard_links_do_not_lead_out() {
    root_only!();
    let canary = |target: &str| problem(Archive::new().hard_link("h", target));
    assert!(matches!(canary("../canary"), ArchiveProblem::BadLinkTarget(_)));
    assert!(matches!(canary("/canary"), ArchiveProblem::MissingLinkTarget(_)));
    assert!(matches!(canary(""), ArchiveProblem::BadLinkTarget(_)));
    let through = Archive::new().symlink("l", "..").hard_link("h", "l/canary");
    assert!(matches!(problem(through), ArchiveProblem::MissingLinkTarget(_)));
    // Linking to a link gives the link itself a second name, not its target.
    let (chain, result) = unpack(&Archive::new().symlink("l", "../canary").hard_link("h", "l").end());
    result.unwrap();
    assert_eq!(chain.layers[0].get(b"h").unwrap().kind, Kind::Symlink);
}

#[test]
fn impossible_links_and_parents() {
    root_only!();
    let dir = Archive::new().dir("d").hard_link("h", "d");
    assert!(matches!(problem(dir), ArchiveProblem::BadLinkTarget(_)));
    let own_parent = Archive::new().file("d/f", "x").hard_link("d", "d/f");
    assert!(matches!(problem(own_parent), ArchiveProblem::BadLinkTarget(_)));
    let under_file = Archive::new().file("f", "x").file("f/g", "y");
    assert_eq!(problem(under_file), ArchiveProblem::ParentNotDirectory("/f".into()));
    let cycle = Archive::new().symlink("a", "b").symlink("b", "a").file("a/x", "y");
    assert_eq!(problem(cycle), ArchiveProblem::TooManyLinks);
    assert!(matches!(problem(Archive::new().symlink("s", "")), ArchiveProblem::BadName(_)));
    assert!(matches!(problem(Archive::new().file("d/.wh.", "")), ArchiveProblem::BadName(_)));
    assert!(matches!(problem(Archive::new().file("d/.wh...", "")), ArchiveProblem::BadName(_)));
    assert!(matches!(problem(Archive::new().file(".", "x")), ArchiveProblem::BadName(_)));
}

#[test]
fn sizes_that_are_lies() {
    root_only!();
    let mut archive = Archive::new().member(b'0', b"f", b"", b"").bytes;
    for size in ["77777777777", "00000001000"] {
        archive[124..135].copy_from_slice(size.as_bytes());
        archive[148..156].fill(b' ');
        let sum: u32 = archive[..512].iter().map(|&b| u32::from(b)).sum();
        archive[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let (_, result) = unpack(&archive);
        assert!(matches!(result, Err(Error::Archive { problem: ArchiveProblem::Truncated, .. })), "{size}");
    }
    let bomb = b"30 GNU.sparse.size=1000000000000000000\n";
    let bomb = [format!("{} ", bomb.len() + 9 - 8).as_bytes(), &bomb[3..]].concat();
    let map = b"22 GNU.sparse.map=0,1\n";
    let archive = Archive::new().member(b'x', b"x", b"", &[fix_length(&bomb), map.to_vec()].concat());
    let problem = problem(archive.file("f", "x"));
    assert_eq!(problem, ArchiveProblem::TooLarge("the holes of a sparse file"));
}

/// Puts the length of a record right.
fn fix_length(record: &[u8]) -> Vec<u8> {
    let space = record.iter().position(|&b| b == b' ').unwrap();
    let rest = record.len() - space;
    let len = (rest..).find(|len| rest + len.to_string().len() == *len).unwrap();
    [len.to_string().as_bytes(), &record[space..]].concat()
}

#[test]
fn attributes_of_overlay_and_of_the_host_are_not_taken() {
    root_only!();
    let pairs = [
        ("trusted.overlay.opaque", "y"),
        ("trusted.overlay.redirect", "/etc"),
        ("trusted.overlay.metacopy", ""),
        ("user.overlay.opaque", "y"),
        ("security.selinux", "a:b:c"),
        ("user.fine", "1"),
    ];
    let xattrs: BTreeMap<_, _> = pairs.iter().map(|(k, v)| (k.as_bytes().to_vec(), v.as_bytes().to_vec())).collect();
    let (chain, result) = unpack(&Archive::new().with_xattrs(b"d/", &xattrs).with_xattrs(b"f", &xattrs).end());
    result.unwrap();
    for path in [&b"d"[..], b"f"] {
        let entry = chain.layers[0].get(path).unwrap();
        assert_eq!(entry.xattrs.keys().collect::<Vec<_>>(), [b"user.fine"]);
        assert!(!entry.opaque);
        let mut list = vec![0u8; 1024];
        let n = rustix::fs::listxattr(chain.dirs[0].join(os(path)), &mut list[..]).unwrap();
        assert_eq!(&list[..n], b"user.fine\0");
    }
}

#[test]
fn names_with_nul_bytes_are_refused() {
    root_only!();
    let archive = Archive::new().member(b'x', b"x", b"", b"12 path=a\0b\n").file("f", "x");
    assert!(matches!(problem(archive), ArchiveProblem::BadName(_)));
    let archive = Archive::new().member(b'x', b"x", b"", b"16 linkpath=a\0b\n").symlink("f", "x");
    assert!(matches!(problem(archive), ArchiveProblem::BadName(_)));
}

#[test]
fn mutated_archives_never_escape_and_never_lie() {
    root_only!();
    let seed = Archive::new()
        .dir("a")
        .file("a/f", "content")
        .symlink("a/up", "../..")
        .hard_link("a/g", "a/f")
        .file("a/up/x", "y")
        .member(b'x', b"x", b"", b"20 path=canary/../b\n")
        .file("b", "b")
        .file("a/.wh.f", "")
        .file(".wh..wh..opq", "")
        .device(b"n", b'3', (1, 3))
        .end();
    let names: [&[u8]; 8] = [b"..", b"../canary", b"/", b"a/up", b"a", b"a/up/../canary", b".wh.a", b"\xff"];
    let (mut good, mut bad) = (0, 0);
    for round in 0..300 {
        let mut numbers = Numbers::new(round);
        let mut archive = seed.clone();
        for _ in 0..1 + numbers.below(4) {
            let block = numbers.below(archive.len() / 512) * 512;
            match numbers.below(4) {
                0 => archive[block + numbers.below(100)] = numbers.below(256) as u8,
                1 => archive[block + 156] = b"0123456LKxgS"[numbers.below(12)],
                2 => {
                    let name = names[numbers.below(names.len())];
                    archive[block..block + 100].fill(0);
                    archive[block..block + name.len()].copy_from_slice(name);
                }
                _ => {
                    let name = names[numbers.below(names.len())];
                    archive[block + 157..block + 257].fill(0);
                    archive[block + 157..block + 157 + name.len()].copy_from_slice(name);
                }
            }
            archive[block + 148..block + 156].fill(b' ');
            let sum: u32 = archive[block..block + 512].iter().map(|&b| u32::from(b)).sum();
            archive[block + 148..block + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let (chain, result) = unpack(&archive);
        match result {
            Ok(()) => {
                good += 1;
                assert_eq!(scan(&chain.dirs[0]).unwrap(), *chain.layers[0], "round {round}");
            }
            Err(Error::Archive { .. }) => bad += 1,
            Err(e) => panic!("round {round}: {e:?}"),
        }
    }
    assert!(good > 20 && bad > 20, "{good} {bad}");
}
