//! The rules for sharing inodes between layers, and what builder operations leave behind.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use kiln_snapshot::layer::{FileMeta, LayerBuilder, Overrides, Placed, scan, verify_stat};
use kiln_snapshot::{Error, Kind, LayerManifest, Tree};

use crate::support::*;

/// A chain with one layer that holds `f`, as the source of copies.
fn source() -> Chain {
    let mut chain = Chain::new();
    chain.build(|b| b.file_from_bytes(b"f", &meta(0o644), b"content").unwrap());
    chain
}

fn place(source: &Chain, lower: &Tree, dest: &str, copies: &[(&str, Overrides)]) -> (LayerManifest, Vec<Placed>) {
    let mut builder = LayerBuilder::new(&source.path(dest), lower, &[]).unwrap();
    let entry = source.layers[0].get(b"f").unwrap();
    let from = source.dirs[0].join("f");
    let placed =
        copies.iter().map(|(to, with)| builder.link_or_copy(&from, entry, to.as_bytes(), with).unwrap()).collect();
    (builder.finish().unwrap(), placed)
}

#[test]
fn a_copy_between_layers_shares_the_inode() {
    root_only!();
    let source = source();
    let (manifest, placed) = place(&source, &Tree::default(), "new", &[("a/g", Overrides::default())]);
    assert_eq!(placed, [Placed::Linked]);
    assert_eq!(inode(&source.path("new").join("a/g")), inode(&source.dirs[0].join("f")));
    assert_eq!(manifest.get(b"a/g").unwrap().digest, source.layers[0].get(b"f").unwrap().digest);
    assert_eq!(scan(&source.path("new")).unwrap(), manifest);
    assert_eq!(verify_stat(&source.layers[0], &source.dirs[0]), Ok(()), "linking changes nothing that is checked");
}

#[test]
fn two_copies_in_a_layer_are_two_inodes() {
    root_only!();
    let source = source();
    let copies = [("a", Overrides::default()), ("b", Overrides::default())];
    let (manifest, placed) = place(&source, &Tree::default(), "new", &copies);
    assert_eq!(placed, [Placed::Linked, Placed::Copied]);
    assert_ne!(manifest.get(b"a").unwrap().ino, manifest.get(b"b").unwrap().ino);
    assert!(manifest.entries().iter().all(|e| e.nlink_group.is_none()));
}

#[test]
fn a_chain_that_holds_the_inode_gets_a_copy() {
    root_only!();
    let source = source();
    let (_, placed) = place(&source, &source.tree(), "new", &[("g", Overrides::default())]);
    assert_eq!(placed, [Placed::Copied]);
}

#[test]
fn other_metadata_means_a_copy() {
    root_only!();
    let source = source();
    let cases = [
        Overrides { owner: Some((5, 0)), ..Overrides::default() },
        Overrides { mode: Some(0o755), ..Overrides::default() },
        Overrides { mtime: Some((1, 0)), ..Overrides::default() },
        Overrides { xattrs: Some([(b"user.a".to_vec(), b"b".to_vec())].into()), ..Overrides::default() },
        Overrides { owner: Some((0, 0)), mode: Some(0o644), ..Overrides::default() },
    ];
    for (i, with) in cases.into_iter().enumerate() {
        let (manifest, placed) = place(&source, &Tree::default(), &format!("new{i}"), &[("g", with)]);
        assert_eq!(placed, [if i == 4 { Placed::Linked } else { Placed::Copied }], "case {i}");
        let stat = std::fs::metadata(source.dirs[0].join("f")).unwrap();
        assert_eq!((stat.uid(), stat.mode() & 0o7777, stat.mtime()), (0, 0o644, 1_700_000_000), "case {i}");
        assert_eq!(scan(&source.path(&format!("new{i}"))).unwrap(), manifest);
    }
}

#[test]
fn the_limit_of_links_means_a_copy() {
    root_only!();
    let source = source();
    let dir = source.path("links");
    std::fs::create_dir(&dir).unwrap();
    for i in 0..70_000 {
        if std::fs::hard_link(source.dirs[0].join("f"), dir.join(i.to_string())).is_err() {
            let (_, placed) = place(&source, &Tree::default(), "new", &[("g", Overrides::default())]);
            assert_eq!(placed, [Placed::Copied]);
            return;
        }
    }
    kiln_testkit::report_skip("the file system has no limit of links below 70000");
}

#[test]
fn copies_keep_holes() {
    root_only!();
    let temp = tempfile::tempdir().unwrap();
    let lower = temp.path().join("lower");
    std::fs::create_dir(&lower).unwrap();
    let file = std::fs::File::create(lower.join("sparse")).unwrap();
    file.write_all_at(b"middle", 8 << 20).unwrap();
    file.set_len(16 << 20).unwrap();
    drop(file);
    let before = std::fs::metadata(lower.join("sparse")).unwrap();
    if before.blocks() * 512 > 1 << 20 {
        kiln_testkit::skip!("the file system has no holes");
    }
    let manifest = scan(&lower).unwrap();
    let empty = Tree::default();
    let dest = temp.path().join("dest");
    let mut builder = LayerBuilder::new(&dest, &empty, &[]).unwrap();
    let with = Overrides { mode: Some(0o600), ..Overrides::default() };
    let entry = manifest.get(b"sparse").unwrap();
    assert_eq!(builder.link_or_copy(&lower.join("sparse"), entry, b"copy", &with).unwrap(), Placed::Copied);
    let copied = builder.finish().unwrap();
    assert_eq!(scan(&dest).unwrap(), copied, "the copy has the digest of its source");
    assert!(std::fs::metadata(dest.join("copy")).unwrap().blocks() * 512 <= 1 << 20);
}

#[test]
fn operations_see_the_chain_and_themselves() {
    root_only!();
    let mut chain = Chain::new();
    chain.build(|b| {
        b.file_from_bytes(b"d/low", &meta(0o644), b"").unwrap();
        b.symlink(b"to-d", b"/d", &meta(0)).unwrap();
    });
    let manifest = chain.build(|b| {
        b.file_from_bytes(b"e/own", &meta(0o644), b"").unwrap();
        assert!(b.lookup(b"d/low").is_some() && b.lookup(b"e/own").is_some());
        assert_eq!(b.resolve(b"to-d/low", true).unwrap().path, b"d/low");
        assert!(!b.remove(b"nothing").unwrap());
        assert!(b.remove(b"d").unwrap() && !b.remove(b"d").unwrap());
        assert!(b.lookup(b"d/low").is_none() && b.lookup(b"d").is_none());
        assert!(!b.resolve(b"to-d/low", true).unwrap().exists);
        assert!(b.remove(b"e/own").unwrap(), "what only this layer has leaves no whiteout");
        b.mkdir(b"d", &meta(0o700)).unwrap();
        assert!(b.lookup(b"d/low").is_none(), "a directory made anew does not show the old one's content");
        let refused = b.file_from_bytes(b"to-d/x", &meta(0o644), b"");
        assert!(matches!(refused, Err(Error::NotADirectory(path)) if path == "/to-d"));
    });
    assert_eq!(names(&manifest), ["", "!d", "e"]);
    assert_eq!(scan(&chain.dirs[1]).unwrap(), *manifest);
}

#[test]
fn parents_that_exist_nowhere_get_the_implicit_metadata() {
    root_only!();
    let mut chain = Chain::new();
    let manifest = chain.build(|b| {
        b.set_implicit(FileMeta { uid: 4, ..FileMeta::new(0o711, (77, 0)) });
        b.file_from_bytes(b"a/b/c", &meta(0o644), b"").unwrap();
        b.mkdir_all(b"x/y", &FileMeta { gid: 6, ..FileMeta::new(0o700, (88, 0)) }).unwrap();
        b.mkdir(b"x", &meta(0o755)).unwrap();
    });
    let of = |path: &[u8]| manifest.get(path).map(|e| (e.mode, e.uid, e.gid, e.mtime.0)).unwrap();
    assert_eq!((of(b"a"), of(b"a/b")), ((0o711, 4, 0, 77), (0o711, 4, 0, 77)));
    assert_eq!((of(b"x"), of(b"x/y")), ((0o755, 0, 0, 1_700_000_000), (0o700, 0, 6, 88)));
}

#[test]
fn bad_requests_are_refused() {
    root_only!();
    let mut chain = Chain::new();
    let occupied = chain.path("occupied");
    std::fs::create_dir_all(occupied.join("x")).unwrap();
    let empty = Tree::default();
    assert!(matches!(LayerBuilder::new(&occupied, &empty, &[]), Err(Error::Io { .. })));
    chain.build(|b| {
        b.mkdir(b"d", &meta(0o755)).unwrap();
        assert!(matches!(b.hard_link(b"none", b"x"), Err(Error::NotFound(_))));
        assert!(matches!(b.hard_link(b"d", b"x"), Err(Error::BadPath { .. })));
        assert!(matches!(b.node(b"x", Kind::CharDevice, (0, 0), &meta(0)), Err(Error::BadPath { .. })));
        assert!(matches!(b.node(b"x", Kind::File, (0, 0), &meta(0)), Err(Error::BadPath { .. })));
        for path in [&b"../x"[..], b"/x", b"x/", b""] {
            assert!(b.file_from_bytes(path, &meta(0), b"").is_err());
        }
        assert!(b.remove(b"").is_err());
    });
}
