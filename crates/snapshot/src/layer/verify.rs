//! Comparing a layer's directory with its manifest.

use std::path::Path;

use rustix::fs::{AtFlags, Stat};
use rustix::io::Errno;

use super::{digest_files, scan_with};
use crate::entry::{Entry, Kind};
use crate::error::{Damage, DamageKind, Error};
use crate::manifest::LayerManifest;
use crate::path;
use crate::sys::{self, Root};

/// Compares the status of every name: type, inode, size, time, mode, owner. Reads no file. Files that were added
/// show by the time of their directory.
///
/// # Errors
/// The first difference found.
pub fn verify_stat(manifest: &LayerManifest, fs: &Path) -> Result<(), Damage> {
    let entries = manifest.entries();
    // Below that, a thread costs more than it saves.
    let threads = sys::workers().min(entries.len() / 512).max(1);
    if threads == 1 {
        return verify_part(entries, fs);
    }
    let part = entries.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let checks: Vec<_> = entries.chunks(part).map(|chunk| scope.spawn(move || verify_part(chunk, fs))).collect();
        for check in checks {
            check.join().unwrap_or_else(|_| Err(unreadable(b"", Errno::IO)))?;
        }
        Ok(())
    })
}

/// Compares everything: status, attributes, link targets, the bytes of every file, and that nothing else is there.
///
/// # Errors
/// The first difference found.
pub fn verify_digest(manifest: &LayerManifest, fs: &Path) -> Result<(), Damage> {
    let mut found = scan_with(fs, |_, _| {}).map_err(damage_of)?.entries;
    compare(manifest.entries(), &found)?;
    digest_files(fs, &mut found, |_| true).map_err(damage_of)?;
    for (want, have) in manifest.entries().iter().zip(&found) {
        if want.digest != have.digest {
            return Err(Damage::new(&want.path, DamageKind::Content));
        }
    }
    Ok(())
}

fn verify_part(entries: &[Entry], fs: &Path) -> Result<(), Damage> {
    let mut root = match Root::open(fs) {
        Ok(root) => root,
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Err(Damage::new(b"", DamageKind::Missing));
        }
        Err(e) => return Err(damage_of(e)),
    };
    for entry in entries {
        let differs = |what| Err(Damage::new(&entry.path, what));
        let stat = match stat_at(&mut root, &entry.path) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return differs(DamageKind::Missing),
            Err(e) => return Err(unreadable(&entry.path, e)),
        };
        let Some(kind) = sys::kind_of(&stat) else { return differs(DamageKind::Kind) };
        let device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
        let have = Entry {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: sys::mtime_of(&stat),
            size: if kind == Kind::File { stat.st_size.cast_unsigned() } else { 0 },
            ino: stat.st_ino,
            rdev: if device { sys::rdev_of(&stat) } else { (0, 0) },
            ..Entry::new(entry.path.clone(), kind)
        };
        compare_status(entry, &have)?;
    }
    Ok(())
}

fn stat_at(root: &mut Root, path: &[u8]) -> Result<Stat, Errno> {
    let (dir, name) = root.place(path)?;
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

fn compare(want: &[Entry], have: &[Entry]) -> Result<(), Damage> {
    for (i, entry) in want.iter().enumerate() {
        match have.get(i).map(|h| (h, path::cmp(&h.path, &entry.path))) {
            Some((other, order)) if order.is_eq() => {
                compare_status(entry, other)?;
                if entry.target != other.target {
                    return Err(Damage::new(&entry.path, DamageKind::Target));
                }
                if entry.xattrs != other.xattrs || entry.opaque != other.opaque {
                    return Err(Damage::new(&entry.path, DamageKind::Xattrs));
                }
            }
            Some((other, order)) if order.is_lt() => return Err(Damage::new(&other.path, DamageKind::Unexpected)),
            _ => return Err(Damage::new(&entry.path, DamageKind::Missing)),
        }
    }
    match have.get(want.len()) {
        Some(extra) => Err(Damage::new(&extra.path, DamageKind::Unexpected)),
        None => Ok(()),
    }
}

fn compare_status(want: &Entry, have: &Entry) -> Result<(), Damage> {
    let what = if want.kind != have.kind {
        DamageKind::Kind
    } else if want.kind == Kind::Whiteout {
        return Ok(());
    } else if want.size != have.size {
        DamageKind::Size
    } else if want.mtime != have.mtime {
        DamageKind::Mtime
    } else if want.ino != have.ino {
        DamageKind::Inode
    } else if want.mode != have.mode {
        DamageKind::Mode
    } else if (want.uid, want.gid) != (have.uid, have.gid) {
        DamageKind::Owner
    } else if want.rdev != have.rdev {
        DamageKind::Device
    } else {
        return Ok(());
    };
    Err(Damage::new(&want.path, what))
}

fn unreadable(path: &[u8], errno: Errno) -> Damage {
    Damage::new(path, DamageKind::Unreadable(std::io::Error::from(errno).to_string()))
}

pub(super) fn damage_of(error: Error) -> Damage {
    match error {
        Error::Damage(damage) => damage,
        Error::Io { path, source, .. } => {
            Damage { path: path.display().to_string(), what: DamageKind::Unreadable(source.to_string()) }
        }
        other => Damage { path: "/".into(), what: DamageKind::Unreadable(other.to_string()) },
    }
}
