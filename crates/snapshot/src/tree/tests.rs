//! Tests of merged views, against a map that applies every entry one by one.

use std::collections::BTreeMap;

use kiln_stdx::Fingerprint;

use super::*;

fn file(path: &str, content: &str) -> Entry {
    Entry { size: content.len() as u64, digest: Some(Fingerprint::of(content)), ..Entry::new(path, Kind::File) }
}

fn link(path: &str, target: &str) -> Entry {
    Entry { target: target.into(), ..Entry::new(path, Kind::Symlink) }
}

fn layer(entries: Vec<Entry>) -> Arc<LayerManifest> {
    Arc::new(LayerManifest::new(entries).unwrap())
}

fn paths(tree: &Tree) -> Vec<String> {
    tree.iter().map(|n| format!("{}@{}", String::from_utf8_lossy(&n.entry.path), n.layer)).collect()
}

#[test]
fn upper_layers_hide_replace_and_extend() {
    let tree = Tree::merge(&[
        layer(vec![
            Entry::dir(""),
            Entry::dir("d"),
            file("d/keep", ""),
            file("d/x", ""),
            Entry::dir("d-e"),
            Entry::dir("o"),
            file("o/old", ""),
            Entry::dir("r"),
            file("r/in", ""),
            file("z", ""),
        ]),
        layer(vec![
            Entry::dir(""),
            Entry::dir("d"),
            Entry::whiteout("d/x"),
            file("d/y", ""),
            Entry { opaque: true, ..Entry::dir("o") },
            file("o/new", ""),
            file("r", "now a file"),
            Entry::whiteout("z"),
        ]),
    ]);
    assert_eq!(paths(&tree), ["@1", "d@1", "d/keep@0", "d/y@1", "d-e@0", "o@1", "o/new@1", "r@1"]);
    assert!(tree.get(b"d/x").is_none() && tree.get(b"r/in").is_none());
    let names: Vec<_> = tree.children(b"").map(|n| n.entry.name().to_vec()).collect();
    assert_eq!(names, [&b"d"[..], b"d-e", b"o", b"r"]);
    assert_eq!(tree.walk(b"d").count(), 3);
    assert_eq!(tree.children(b"r").count(), 0);
    assert_eq!(tree.walk(b"nowhere").count(), 0);
}

#[test]
fn whiteouts_of_the_bottom_layer_are_not_seen() {
    let tree = Tree::merge(&[layer(vec![Entry::dir(""), Entry::whiteout("a")])]);
    assert_eq!(paths(&tree), ["@0"]);
    assert!(Tree::default().get(b"").is_none());
}

#[test]
fn a_walk_can_leave_out_subtrees() {
    let tree = Tree::merge(&[layer(vec![Entry::dir(""), Entry::dir("a"), file("a/b", ""), file("c", "")])]);
    let mut walk = tree.iter();
    let mut seen = Vec::new();
    while let Some(node) = walk.next() {
        seen.push(node.entry.path.clone());
        if node.entry.path == b"a" {
            walk.skip_below(node);
        }
    }
    assert_eq!(seen, [&b""[..], b"a", b"c"]);
}

#[test]
fn random_chains_agree_with_a_naive_merge() {
    for seed in 1..200u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = |n: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % n
        };
        let mut layers = Vec::new();
        let mut naive: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
        for at in 0..4 {
            let mut entries = BTreeMap::from([(Vec::new(), Entry::dir(""))]);
            for _ in 0..next(12) {
                let mut path = Vec::new();
                for _ in 0..next(3) {
                    path = path::join(&path, [&b"a"[..], b"a-", b"b"][next(3) as usize]);
                    let opaque = next(4) == 0;
                    let entry =
                        entries.entry(path.clone()).or_insert_with(|| Entry { opaque, ..Entry::dir(path.clone()) });
                    if !entry.is_dir() {
                        break;
                    }
                }
                let leaf = path::join(&path, [&b"x"[..], b"y", b"a"][next(3) as usize]);
                if entries.get(&path).is_some_and(Entry::is_dir) && !entries.contains_key(&leaf) {
                    let text = String::from_utf8(leaf.clone()).unwrap();
                    entries.insert(leaf, if next(2) == 0 { file(&text, "") } else { Entry::whiteout(text) });
                }
            }
            for (path, entry) in &entries {
                if !entry.is_dir() || entry.opaque {
                    naive.retain(|p, l| *l == at || !path::is_below(p, path));
                }
                if entry.kind == Kind::Whiteout {
                    naive.remove(path)
                } else {
                    naive.insert(path.clone(), at)
                };
            }
            layers.push(layer(entries.into_values().collect()));
        }
        let tree = Tree::merge(&layers);
        let merged: BTreeMap<Vec<u8>, usize> = tree.iter().map(|n| (n.entry.path.clone(), n.layer)).collect();
        assert_eq!(merged, naive, "seed {seed}");
        assert!(tree.iter().map(|n| &n.entry.path).is_sorted_by(|a, b| path::cmp(a, b).is_lt()), "seed {seed}");
        let grown = layers.iter().fold(Tree::default(), |tree, layer| tree.with(Arc::clone(layer)));
        assert_eq!(paths(&grown), paths(&tree), "seed {seed}");
    }
}

#[test]
fn links_stay_inside_the_root() {
    let tree = Tree::merge(&[layer(vec![
        Entry::dir(""),
        link("abs", "/usr/lib"),
        link("loop", "loop"),
        link("out", "../../../usr"),
        link("dangling", "nothing/here"),
        file("plain", ""),
        Entry::dir("usr"),
        Entry::dir("usr/lib"),
        file("usr/lib/so", ""),
        link("usr/up", "../abs/so"),
    ])]);
    let to =
        |path: &str, last| tree.resolve(path.as_bytes(), last).map(|r| (String::from_utf8(r.path).unwrap(), r.exists));
    assert_eq!(to("/abs/so", true), Ok(("usr/lib/so".into(), true)));
    assert_eq!(to("out/lib", true), Ok(("usr/lib".into(), true)));
    assert_eq!(to("usr/up", true), Ok(("usr/lib/so".into(), true)));
    assert_eq!(to("usr/up", false), Ok(("usr/up".into(), true)));
    assert_eq!(to("dangling", true), Ok(("nothing/here".into(), false)));
    assert_eq!(to("new/../abs/x/y", true), Ok(("usr/lib/x/y".into(), false)));
    assert_eq!(to("abs/../x", true), Ok(("usr/x".into(), false)));
    assert_eq!(to("../..", true), Ok((String::new(), true)));
    assert_eq!(to("loop", true), Err(ResolveError::TooManyLinks("/loop".into())));
    assert_eq!(to("plain/x", true), Err(ResolveError::NotADirectory("/plain".into())));
    assert_eq!(to("plain", true), Ok(("plain".into(), true)));
}
