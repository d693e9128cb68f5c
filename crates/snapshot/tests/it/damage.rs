//! Stored layers that are not what they were.

use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;

use kiln_snapshot::layer::{Overrides, TarOptions, verify_digest, verify_stat, write_tar};
use kiln_snapshot::{DamageKind, Error, LayerManifest};

use crate::support::*;

fn damaged(harm: impl FnOnce(&Path)) -> (Option<DamageKind>, Option<DamageKind>, Option<DamageKind>) {
    let mut chain = Chain::new();
    let manifest = chain.build(|b| {
        b.file_from_bytes(b"d/f", &meta(0o644), b"some content").unwrap();
        b.file_from_bytes(b"d/g", &meta(0o644), b"more").unwrap();
        b.symlink(b"d/l", b"f", &meta(0)).unwrap();
    });
    let dir = &chain.dirs[0];
    assert_eq!((verify_stat(&manifest, dir), verify_digest(&manifest, dir)), (Ok(()), Ok(())));
    harm(dir);
    let archive = |manifest: &LayerManifest| match write_tar(manifest, dir, std::io::sink(), &TarOptions::default()) {
        Ok(_) => None,
        Err(Error::Damage(damage)) => Some(damage.what),
        Err(e) => panic!("{e:?}"),
    };
    let stat = verify_stat(&manifest, dir).err().map(|d| d.what);
    let digest = verify_digest(&manifest, dir).err().map(|d| d.what);
    (stat, digest, archive(&manifest))
}

/// Changes a file and puts its time back.
fn quietly(path: &Path, harm: impl FnOnce(&Path)) {
    let before = std::fs::symlink_metadata(path).unwrap().modified().unwrap();
    harm(path);
    std::fs::File::options().write(true).open(path).unwrap().set_modified(before).unwrap();
}

#[test]
fn flips_that_keep_all_times_are_found_by_reading() {
    root_only!();
    let (stat, digest, archive) = damaged(|dir| {
        quietly(&dir.join("d/f"), |f| {
            std::fs::File::options().write(true).open(f).unwrap().write_all_at(b"S", 0).unwrap();
        });
    });
    assert_eq!(stat, None);
    assert_eq!((digest, archive), (Some(DamageKind::Content), Some(DamageKind::Content)));
}

#[test]
fn sizes_times_modes_and_names() {
    root_only!();
    let cut = damaged(|dir| {
        quietly(&dir.join("d/f"), |f| {
            std::fs::File::options().write(true).open(f).unwrap().set_len(4).unwrap();
        });
    });
    assert_eq!(cut, (Some(DamageKind::Size), Some(DamageKind::Size), Some(DamageKind::Size)));
    let grown = damaged(|dir| {
        std::fs::File::options().append(true).open(dir.join("d/f")).unwrap().write_all(b"x").unwrap();
    });
    assert_eq!(grown.2, Some(DamageKind::Size));
    let (stat, _, archive) = damaged(|dir| std::fs::remove_file(dir.join("d/f")).unwrap());
    assert_eq!((stat, archive), (Some(DamageKind::Mtime), Some(DamageKind::Missing)), "the directory tells first");
    let (stat, _, _) = damaged(|dir| {
        let file = dir.join("d/f");
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
    });
    assert_eq!(stat, Some(DamageKind::Mode));
    let (stat, digest, _) = damaged(|dir| std::fs::write(dir.join("d/extra"), "").unwrap());
    assert_eq!(stat, Some(DamageKind::Mtime), "an added name shows by its directory's time");
    assert!(digest.is_some());
    let (stat, _, archive) = damaged(|dir| {
        std::fs::remove_dir_all(dir).unwrap();
        std::fs::create_dir(dir).unwrap();
    });
    assert_eq!((stat.is_some(), archive), (true, Some(DamageKind::Missing)));
}

#[test]
fn a_link_in_place_of_a_file_is_not_followed() {
    root_only!();
    let (_, _, archive) = damaged(|dir| {
        std::fs::rename(dir.join("d/f"), dir.join("d/real")).unwrap();
        std::os::unix::fs::symlink("real", dir.join("d/f")).unwrap();
    });
    assert_eq!(archive, Some(DamageKind::Kind));
}

#[test]
fn damaged_sources_are_neither_linked_nor_copied() {
    root_only!();
    for overrides in [Overrides::default(), Overrides { mode: Some(0o600), ..Overrides::default() }] {
        let mut chain = Chain::new();
        let manifest = chain.build(|b| b.file_from_bytes(b"f", &meta(0o644), b"content").unwrap());
        let source = chain.dirs[0].join("f");
        let entry = manifest.get(b"f").unwrap();
        let empty = kiln_snapshot::Tree::default();
        let attempt = |name: &str| {
            let mut builder = kiln_snapshot::LayerBuilder::new(&chain.path(name), &empty, &[]).unwrap();
            let error = builder.link_or_copy(&source, entry, b"g", &overrides).unwrap_err();
            assert!(builder.lookup(b"g").is_none());
            assert!(!chain.path(name).join("g").exists());
            match error {
                Error::Damage(damage) => damage.what,
                other => panic!("{other:?}"),
            }
        };
        std::fs::write(&source, "shorter").unwrap();
        assert_eq!(attempt("one"), DamageKind::Mtime);
        std::fs::write(&source, "x").unwrap();
        assert_eq!(attempt("two"), DamageKind::Size);
        std::fs::remove_file(&source).unwrap();
        assert_eq!(attempt("three"), DamageKind::Missing);
    }
}
