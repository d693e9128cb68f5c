//! Tests of packs: there and back, small changes, damage.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use kiln_snapshot::{Entry, Kind, LayerManifest, dump};
use kiln_stdx::{ErrorClass, Fingerprint};

use super::format::{Contents, Pack, Table, read_files, unpack, write_files, write_table};
use super::pack::{Packer, file_of, read};
use super::restore;
use crate::error::EngineError;

/// An export of a directory to a place that has what `tables` tell: its files, what was made, and how many bytes are sent.
fn export(mount: &Path, packs: &Path, tables: &[Table]) -> (LayerManifest, Table, u64) {
    let known = Contents::of(tables.to_vec(), |_| true).unwrap();
    let mut packer = Packer::new(known.into(), packs.to_owned());
    let files = read(&mut packer, mount).unwrap();
    let table = packer.finish().unwrap();
    let lists = write_files(&files).unwrap().len() + write_table(&table).unwrap().len();
    let sent = table.packs.iter().map(|pack| pack.blob.size).sum::<u64>() + lists as u64;
    (files, table, sent)
}

fn import(files: &LayerManifest, tables: &[Table], packs: &Path, dest: &Path) -> Result<usize, EngineError> {
    let contents = Contents::of(tables.to_vec(), |_| true)?;
    let wanted = restore::needed(&contents, files, files.total_size())?;
    let raw = tempfile::tempdir().unwrap();
    for place in &wanted {
        let pack: &Pack = &contents.packs[*place];
        let bytes = fs::read(file_of(packs, &pack.blob)).unwrap();
        fs::write(restore::raw_file(raw.path(), pack), unpack(pack, &bytes)?).unwrap();
    }
    restore::restore(&contents, files, raw.path(), dest)?;
    Ok(wanted.len())
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let step = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(step).take(length).collect()
}

/// A tree whose lines do not tell inode numbers.
fn shown(dir: &Path) -> String {
    dump::dir(dir, &dump::DumpOptions::default()).unwrap()
}

#[test]
fn a_directory_comes_back_as_it_was() {
    let home = tempfile::tempdir().unwrap();
    let (mount, packs, dest) = (home.path().join("m"), home.path().join("p"), home.path().join("d"));
    fs::create_dir_all(mount.join("sub/empty")).unwrap();
    fs::create_dir(&packs).unwrap();
    fs::write(mount.join("sub/tool"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(mount.join("sub/tool"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(mount.join("sub/tool"), mount.join("again")).unwrap();
    symlink("../../../etc/passwd", mount.join("sub/out")).unwrap();
    fs::write(mount.join("nothing"), "").unwrap();
    fs::write(mount.join("large"), noise(3 << 20, 7)).unwrap();
    fs::write(mount.join(".wh.plain"), "no deletion").unwrap();
    let odd = mount.join(std::ffi::OsStr::from_bytes(b"a\xff b"));
    fs::write(&odd, "odd").unwrap();
    let _ = rustix::fs::setxattr(&odd, "user.note", b"kept", rustix::fs::XattrFlags::empty());
    let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    fs::File::options().write(true).open(&odd).unwrap().set_modified(old).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::lchown(&odd, Some(12), Some(34)).unwrap();
    }
    fs::set_permissions(&mount, fs::Permissions::from_mode(0o1777)).unwrap();

    let (files, table, _) = export(&mount, &packs, &[]);
    let files = read_files(&write_files(&files).unwrap()).unwrap();
    assert_eq!(table.files.len(), 1, "one file has several pieces");
    import(&files, &[table], &packs, &dest).unwrap();
    assert_eq!(shown(&dest), shown(&mount));
    let inode = |path: &str| fs::metadata(dest.join(path)).unwrap().ino();
    assert_eq!(inode("again"), inode("sub/tool"));
}

/// Small files and long ones, 50 MB of noise.
fn project(mount: &Path) {
    for dir in 0..20 {
        fs::create_dir_all(mount.join(format!("{dir:02}"))).unwrap();
        for file in 0..100u64 {
            let path = mount.join(format!(
                "{dir:02}/{:08x}",
                Fingerprint::of(file.to_be_bytes()).as_bytes()[0] as u64 * 1000 + file
            ));
            fs::write(path, noise(10_000, dir * 1000 + file)).unwrap();
        }
    }
    for file in 0..3 {
        fs::write(mount.join(format!("archive-{file}")), noise(10 << 20, 90_000 + file)).unwrap();
    }
}

#[test]
fn a_small_change_is_sent_alone() {
    let home = tempfile::tempdir().unwrap();
    let (mount, packs, dest) = (home.path().join("m"), home.path().join("p"), home.path().join("d"));
    fs::create_dir_all(&packs).unwrap();
    project(&mount);
    let (files, table, sent) = export(&mount, &packs, &[]);
    let total = files.total_size();
    assert!(total > 50_000_000 && sent > total, "{sent} of {total}");
    assert!(table.packs.len() < 9, "{} packs", table.packs.len());
    // Nothing new is nothing but the list of files.
    let (_, none, again) = export(&mount, &packs, std::slice::from_ref(&table));
    assert!(none.packs.is_empty() && again < total / 300, "{again}");

    // One file of a hundred, all over the tree, and a few bytes in the middle of a long one.
    for dir in 0..20 {
        let first = fs::read_dir(mount.join(format!("{dir:02}"))).unwrap().next().unwrap().unwrap().path();
        fs::write(first, noise(10_000, 500_000 + dir)).unwrap();
    }
    let mut long = fs::read(mount.join("archive-1")).unwrap();
    long.splice(5_000_000..5_000_000, *b"inserted");
    fs::write(mount.join("archive-1"), long).unwrap();
    let (files, more, sent) = export(&mount, &packs, std::slice::from_ref(&table));
    assert!(sent * 100 < total * 3, "{sent} bytes of {total} were sent");
    import(&files, &[table, more], &packs, &dest).unwrap();
    assert_eq!(shown(&dest), shown(&mount));
}

#[test]
fn damage_is_found() {
    let home = tempfile::tempdir().unwrap();
    let (mount, packs) = (home.path().join("m"), home.path().join("p"));
    fs::create_dir_all(&mount).unwrap();
    fs::create_dir(&packs).unwrap();
    fs::write(mount.join("a"), "first").unwrap();
    fs::write(mount.join("b"), "other").unwrap();
    let (files, table, _) = export(&mount, &packs, &[]);
    let refused = |files: &LayerManifest, tables: &[Table], what: &str| {
        let dest = tempfile::tempdir().unwrap();
        let error = import(files, tables, &packs, dest.path()).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
        assert_eq!(error.class(), ErrorClass::Remote, "{error}");
    };
    refused(&files, &[], "no pack has /a");
    // Two pieces that are each other's.
    let mut swapped = table.clone();
    let pieces = &mut swapped.packs[0].pieces;
    (pieces[0].0, pieces[1].0) = (pieces[1].0, pieces[0].0);
    refused(&files, &[swapped], "/a is not what the list says");
    let mut long = table.clone();
    long.packs[0].pieces[0].1 += 1;
    refused(&files, &[long], "not as long");

    let with = |entry: Entry| LayerManifest::new(vec![Entry::dir(""), entry]).unwrap();
    refused(&with(Entry { rdev: (1, 3), ..Entry::new("null", Kind::CharDevice) }), &[], "is a device");
    refused(&with(Entry::whiteout("gone")), &[], "is a device");
    refused(&with(Entry::new("link", Kind::Symlink)), &[], "leads nowhere");
    let huge = Entry { size: u64::MAX, digest: Some(Fingerprint::of("first")), ..Entry::new("a", Kind::File) };
    refused(&with(huge), &[table], "not what the list says");
    // No list leads out: such a one cannot even be read.
    assert!(LayerManifest::new(vec![Entry::dir(""), Entry::dir("..")]).is_err());
}

#[test]
fn what_changes_while_it_is_read_is_not_sent() {
    let home = tempfile::tempdir().unwrap();
    let (mount, packs) = (home.path().join("m"), home.path().join("p"));
    fs::create_dir_all(&mount).unwrap();
    fs::create_dir(&packs).unwrap();
    fs::write(mount.join("a"), "first").unwrap();
    let files = kiln_snapshot::layer::scan(&mount).unwrap();
    fs::write(mount.join("a"), "later").unwrap();
    let mut packer = Packer::new(Contents::default().into(), packs);
    assert_eq!(packer.add(&mount, &files).unwrap(), Some(b"a".to_vec()));
    fs::remove_file(mount.join("a")).unwrap();
    symlink("/etc/hostname", mount.join("a")).unwrap();
    assert_eq!(packer.add(&mount, &files).unwrap(), Some(b"a".to_vec()), "a link is not followed");
    assert!(read(&mut packer, &home.path().join("none")).is_err());
}
