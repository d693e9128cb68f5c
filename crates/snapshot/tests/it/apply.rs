//! Unpacking on top of other layers: deletions, replacements, links into lower layers.

use kiln_snapshot::layer::{ExtractOptions, LayerBuilder, extract, scan};
use kiln_snapshot::{Kind, Tree};

use crate::support::*;

fn base() -> Chain {
    let mut chain = Chain::new();
    chain.build(|b| {
        b.mkdir(b"usr", &kiln_snapshot::layer::FileMeta { uid: 9, ..meta(0o750) }).unwrap();
        b.file_from_bytes(b"usr/lib/a", &meta(0o600), b"library a").unwrap();
        b.file_from_bytes(b"usr/lib/b", &meta(0o644), b"library b").unwrap();
        b.symlink(b"lib", b"usr/lib", &meta(0)).unwrap();
        b.file_from_bytes(b"etc/conf", &meta(0o644), b"old").unwrap();
    });
    chain
}

fn merged(chain: &Chain) -> Vec<String> {
    chain.tree().iter().map(|n| String::from_utf8_lossy(&n.entry.path).into_owned()).collect()
}

#[test]
fn whiteouts_hide_and_parents_keep_their_metadata() {
    root_only!();
    let mut chain = base();
    let applied = chain.unpack(&Archive::new().file("usr/lib/.wh.a", "").file("etc/.wh.none", "").end()).unwrap();
    assert_eq!(names(&applied.manifest), ["", "usr", "usr/lib", "-usr/lib/a"]);
    let usr = applied.manifest.get(b"usr").unwrap();
    assert_eq!((usr.uid, usr.mode), (9, 0o750));
    assert_eq!(merged(&chain), ["", "etc", "etc/conf", "lib", "usr", "usr/lib", "usr/lib/b"]);
    assert_eq!(scan(&chain.dirs[1]).unwrap(), applied.manifest);
}

#[test]
fn whiteouts_mean_lower_layers_only_wherever_they_stand() {
    root_only!();
    for archive in [
        Archive::new().file(".wh.usr", "").dir("usr").file("usr/new", "n"),
        Archive::new().dir("usr").file("usr/new", "n").file(".wh.usr", ""),
        Archive::new().file("usr/new", "n").file("usr/.wh..wh..opq", ""),
        Archive::new().file("usr/.wh..wh..opq", "").file("usr/new", "n"),
    ] {
        let mut chain = base();
        let applied = chain.unpack(&archive.end()).unwrap();
        assert_eq!(names(&applied.manifest), ["", "!usr", "usr/new"]);
        assert_eq!(merged(&chain), ["", "etc", "etc/conf", "lib", "usr", "usr/new"]);
        assert_eq!(scan(&chain.dirs[1]).unwrap(), applied.manifest);
    }
}

#[test]
fn private_names_of_old_union_file_systems_are_no_files() {
    root_only!();
    let mut chain = base();
    let archive = Archive::new().dir(".wh..wh.plnk").file(".wh..wh.aufs", "x").end();
    assert!(chain.unpack(&archive).unwrap().manifest.changes_nothing());
}

#[test]
fn members_go_through_links_of_lower_layers() {
    root_only!();
    let mut chain = base();
    let applied = chain.unpack(&Archive::new().file("lib/new", "n").file("/lib/.wh.a", "").end()).unwrap();
    assert_eq!(names(&applied.manifest), ["", "usr", "usr/lib", "-usr/lib/a", "usr/lib/new"]);
}

#[test]
fn hard_links_into_lower_layers_copy_their_target() {
    root_only!();
    let mut chain = base();
    let applied = chain.unpack(&Archive::new().hard_link("usr/lib/c", "lib/a").end()).unwrap();
    let (a, c) = (applied.manifest.get(b"usr/lib/a").unwrap(), applied.manifest.get(b"usr/lib/c").unwrap());
    assert_eq!((a.mode, a.ino, a.nlink_group), (0o600, c.ino, c.nlink_group));
    assert!(a.nlink_group.is_some());
    assert_ne!(a.ino, chain.layers[0].get(b"usr/lib/a").unwrap().ino, "no inode is in two layers of a chain");
    assert_eq!(std::fs::read(chain.dirs[1].join("usr/lib/c")).unwrap(), b"library a");
}

#[test]
fn later_members_replace_earlier_ones() {
    root_only!();
    let mut chain = base();
    let archive = Archive::new()
        .dir("d")
        .file("d/in", "1")
        .file("d", "now a file")
        .file("f", "1")
        .file("f", "2")
        .file("usr", "file over a directory")
        .dir("usr")
        .file("usr/x", "")
        .symlink("s", "a")
        .symlink("s", "b")
        .end();
    let applied = chain.unpack(&archive).unwrap();
    assert_eq!(names(&applied.manifest), ["", "d", "f", "s", "!usr", "usr/x"]);
    assert_eq!(applied.manifest.get(b"d").unwrap().kind, Kind::File);
    assert_eq!(std::fs::read(chain.dirs[1].join("f")).unwrap(), b"2");
    assert_eq!(applied.manifest.get(b"s").unwrap().target, b"b");
    assert!(chain.tree().get(b"usr/lib").is_none());
    assert_eq!(scan(&chain.dirs[1]).unwrap(), applied.manifest);
}

#[test]
fn replacing_one_name_of_an_inode_leaves_the_other_alone() {
    root_only!();
    let mut chain = Chain::new();
    let archive = Archive::new().file("a", "one").hard_link("b", "a").file("a", "two").end();
    let applied = chain.unpack(&archive).unwrap();
    assert_eq!(std::fs::read(chain.dirs[0].join("b")).unwrap(), b"one");
    assert!(applied.manifest.entries().iter().all(|e| e.nlink_group.is_none()));
}

#[test]
fn devices_of_archives() {
    root_only!();
    let mut chain = base();
    let archive = Archive::new().device(b"dev/null", b'3', (1, 3)).device(b"etc/conf", b'3', (0, 0)).end();
    let applied = chain.unpack(&archive).unwrap();
    assert_eq!(names(&applied.manifest), ["", "dev", "dev/null", "etc", "-etc/conf"]);
}

#[test]
fn an_archive_can_be_unpacked_into_a_layer_that_is_being_built() {
    root_only!();
    let chain = base();
    let tree = chain.tree();
    let mut builder = LayerBuilder::new(&chain.path("new"), &tree, &chain.dirs).unwrap();
    let archive = Archive::new().symlink("up", "/").file("up/etc/f", "x").file(".wh.plain", "y").end();
    let options = ExtractOptions { at: b"opt/app".to_vec(), owner: Some((7, 8)), ..ExtractOptions::default() };
    let extracted = extract(&mut builder, &archive[..], &options).unwrap();
    assert_eq!(extracted.members, 3);
    let manifest = builder.finish().unwrap();
    let expected = ["", "opt", "opt/app", "opt/app/.wh.plain", "opt/app/etc", "opt/app/etc/f", "opt/app/up"];
    assert_eq!(names(&manifest), expected, "links of the archive stay inside its own root");
    let file = manifest.get(b"opt/app/etc/f").unwrap();
    assert_eq!((file.uid, file.gid), (7, 8));
}

#[test]
fn bytes_behind_the_end_belong_to_the_digest() {
    root_only!();
    let mut archive = Archive::new().file("f", "x").end();
    archive.resize(10_240, 0);
    let applied = Chain::new().unpack(&archive).unwrap();
    assert_eq!(applied.diff_id, kiln_stdx::Digest::of(&archive));
    assert_eq!(applied.archive_size, 10_240);
    assert!(Chain::new().unpack(&[]).unwrap().manifest.changes_nothing());
}

#[test]
fn a_failing_input_is_not_a_bad_archive() {
    struct Broken(usize);
    impl std::io::Read for Broken {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(std::io::ErrorKind::ConnectionReset.into());
            }
            self.0 -= 1;
            buf.fill(0);
            Ok(0)
        }
    }
    root_only!();
    let chain = Chain::new();
    let dest = chain.path("x");
    let error = kiln_snapshot::layer::apply(Broken(0), &dest, &Tree::default(), &[]).unwrap_err();
    assert!(matches!(&error, kiln_snapshot::Error::Input(e) if e.kind() == std::io::ErrorKind::ConnectionReset));
    assert_eq!(error.class(), kiln_stdx::ErrorClass::Remote);
}

#[test]
fn compressed_archives_are_told_by_their_content() {
    root_only!();
    use kiln_snapshot::compress::{Compression, Compressor, decompress};
    use std::io::Write as _;
    let archive = Archive::new().file("f", &"text ".repeat(10_000)).end();
    for compression in [Compression::NONE, Compression::GZIP, Compression::ZSTD] {
        let mut compressor = Compressor::new(Vec::new(), compression);
        compressor.write_all(&archive).unwrap();
        let blob = compressor.finish().unwrap();
        let mut chain = Chain::new();
        let dest = chain.path("x");
        let (_, reader) = decompress(&blob[..]).unwrap();
        let applied = kiln_snapshot::layer::apply(reader, &dest, &Tree::default(), &[]).unwrap();
        assert_eq!(applied.diff_id, kiln_stdx::Digest::of(&archive));
        chain.push(applied.manifest, dest);
    }
}
