//! Differences of views, and many layers made one, on random chains.

use std::sync::Arc;

use kiln_snapshot::layer::{FileMeta, LayerBuilder, diff, difference, flatten, scan, touches};
use kiln_snapshot::{Kind, Tree, dump};

use crate::support::*;

/// Does random things to a layer. Few names, so that they meet.
fn scramble(builder: &mut LayerBuilder<'_>, numbers: &mut Numbers) {
    let names: [&[u8]; 4] = [b"a", b"a-", b"b", b"c"];
    for _ in 0..numbers.below(25) {
        let mut path = names[numbers.below(4)].to_vec();
        for _ in 0..numbers.below(3) {
            path = [&path, &b"/"[..], names[numbers.below(4)]].concat();
        }
        let meta = FileMeta { uid: numbers.below(2) as u32, ..FileMeta::new(0o600, (numbers.below(3) as i64, 0)) };
        let content = vec![b'x'; numbers.below(3)];
        // A parent that is a file is an error that leaves the layer as it was; everything else must work.
        let done = match numbers.below(8) {
            0 | 1 => builder.mkdir(&path, &meta),
            2 | 3 => builder.file_from_bytes(&path, &meta, &content),
            4 => builder.symlink(&path, b"a", &meta),
            5 => builder.node(&path, Kind::Fifo, (0, 0), &meta),
            6 => builder.remove(&path).map(|_| ()),
            _ => {
                let other = names[numbers.below(4)];
                match builder.lookup(other).map(|e| e.is_dir()) {
                    Some(false) if !path.starts_with(other) => builder.hard_link(other, &path),
                    _ => Ok(()),
                }
            }
        };
        match done {
            Ok(()) | Err(kiln_snapshot::Error::NotADirectory(_)) => {}
            Err(e) => panic!("{e:?}"),
        }
    }
}

fn text(tree: &Tree) -> String {
    dump::tree(tree, &dump::DumpOptions::default())
}

#[test]
fn a_difference_on_top_of_the_lower_view_is_the_upper_view() {
    root_only!();
    let (mut changed, mut deleted) = (0, 0);
    for seed in 0..60 {
        let mut numbers = Numbers::new(seed);
        let mut chain = Chain::new();
        for _ in 0..4 {
            chain.build(|b| scramble(b, &mut numbers));
        }
        for (i, dir) in chain.dirs.iter().enumerate() {
            assert_eq!(scan(dir).unwrap(), *chain.layers[i], "seed {seed} layer {i}");
        }
        // Both along one chain and between chains that share only their bottom.
        for (low, high) in [(0..2, 0..4), (0..4, 0..1), (0..0, 0..3), (0..3, 0..0)] {
            let lower = Tree::merge(&chain.layers[low.clone()]);
            let upper = Tree::merge(&chain.layers[high.clone()]);
            let dest = chain.path(&format!("diff{}-{}", low.end, high.end));
            let manifest = diff(&lower, &upper, &chain.dirs[high.clone()], &dest).unwrap();
            assert_eq!(scan(&dest).unwrap(), manifest, "seed {seed} {low:?} {high:?}");
            changed += manifest.len();
            deleted += manifest.entries().iter().filter(|e| e.kind == Kind::Whiteout).count();
            if !upper.is_empty() {
                let result = lower.with(Arc::new(manifest));
                assert_eq!(text(&result), text(&upper), "seed {seed} {low:?} {high:?}");
            } else {
                assert_eq!(lower.with(Arc::new(manifest)).len(), 1, "seed {seed}");
            }
        }
    }
    assert!(changed > 500 && deleted > 50, "{changed} {deleted}");
}

#[test]
fn equal_views_have_an_empty_difference() {
    root_only!();
    let mut chain = Chain::new();
    chain.build(|b| scramble(b, &mut Numbers::new(5)));
    let tree = chain.tree();
    let manifest = diff(&tree, &tree, &chain.dirs, &chain.path("diff")).unwrap();
    assert!(manifest.changes_nothing());
}

#[test]
fn a_directory_where_something_came_and_went_is_no_difference() {
    root_only!();
    let mut chain = Chain::new();
    let at = |seconds| FileMeta::new(0o755, (seconds, 0));
    chain.build(|b| {
        for dir in [b"a", b"b", b"c"] {
            b.mkdir(dir, &at(1)).unwrap();
        }
    });
    chain.build(|b| {
        b.mkdir(b"a", &at(2)).unwrap();
        b.mkdir(b"b", &at(2)).unwrap();
        b.file_from_bytes(b"b/f", &meta(0o644), b"x").unwrap();
        b.mkdir(b"c", &FileMeta { uid: 7, ..at(1) }).unwrap();
    });
    let lower = Tree::merge(&chain.layers[..1]);
    let manifest = difference(&lower, &chain.tree(), &chain.dirs, &chain.path("some")).unwrap();
    assert_eq!(names(&manifest), ["", "b", "b/f", "c"]);
    assert_eq!(manifest.get(b"b").unwrap().mtime, (2, 0), "the time comes with what it tells of");
    let exact = diff(&lower, &chain.tree(), &chain.dirs, &chain.path("all")).unwrap();
    assert_eq!(names(&exact), ["", "a", "b", "b/f", "c"]);
    assert!(touches(&chain.layers[1], &lower) && !touches(&manifest, &lower));
}

#[test]
fn a_changed_name_takes_its_other_names_along() {
    root_only!();
    let mut chain = Chain::new();
    chain.build(|b| b.file_from_bytes(b"a", &meta(0o644), b"x").unwrap());
    chain.build(|b| b.hard_link(b"a", b"b").unwrap());
    let lower = Tree::merge(&chain.layers[..1]);
    let manifest = diff(&lower, &chain.tree(), &chain.dirs, &chain.path("diff")).unwrap();
    assert_eq!(names(&manifest), ["", "a", "b"]);
    assert_eq!(manifest.get(b"a").unwrap().ino, manifest.get(b"b").unwrap().ino);
}

#[test]
fn a_flattened_chain_shows_the_same() {
    root_only!();
    for seed in 100..130 {
        let mut numbers = Numbers::new(seed);
        let mut chain = Chain::new();
        for _ in 0..4 {
            chain.build(|b| scramble(b, &mut numbers));
        }
        let dest = chain.path("flat");
        let flat = flatten(&chain.layers, &chain.dirs, &dest).unwrap();
        assert_eq!(scan(&dest).unwrap(), flat, "seed {seed}");
        assert_eq!(text(&Tree::merge(&[Arc::new(flat)])), text(&chain.tree()), "seed {seed}");
    }
}

#[test]
fn flattening_copies_no_bytes_that_can_be_shared() {
    root_only!();
    let mut chain = Chain::new();
    chain.build(|b| b.file_from_bytes(b"a", &meta(0o644), b"one").unwrap());
    chain.build(|b| b.file_from_bytes(b"b", &meta(0o644), b"two").unwrap());
    flatten(&chain.layers, &chain.dirs, &chain.path("flat")).unwrap();
    assert_eq!(inode(&chain.path("flat").join("a")), inode(&chain.dirs[0].join("a")));
    assert_eq!(inode(&chain.path("flat").join("b")), inode(&chain.dirs[1].join("b")));
}
