//! The driver over the kernel's overlay file system: a view costs two directories, and what a step changed is
//! already a layer.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use rustix::fs::AtFlags;

use super::{Active, Snapshotter, copy::Stamps};
use crate::entry::Entry;
use crate::error::{Error, Result};
use crate::layer::{FileMeta, LayerBuilder, Scanned, digest_files, scan_with, set_mtime};
use crate::manifest::LayerManifest;
use crate::mount::Mount;
use crate::path;
use crate::sys::{self, Root};
use crate::tree::Tree;

/// Views by overlay mounts.
#[derive(Debug, Clone, Copy, Default)]
pub struct OverlaySnapshotter;

impl Snapshotter for OverlaySnapshotter {
    fn name(&self) -> &'static str {
        "overlay"
    }

    fn prepare(&self, lowers: &[PathBuf], scratch: &Path) -> Result<Active> {
        let upper = scratch.join("fs");
        make_root(&upper, lowers.last().map(PathBuf::as_path))?;
        // Overlay needs something below; without it the upper directory alone is the view.
        let mount = if lowers.is_empty() {
            Mount::Bind { source: upper.clone(), readonly: false }
        } else {
            let work = scratch.join("work");
            std::fs::create_dir(&work).map_err(Error::io("create", &work))?;
            Mount::Overlay { lowers: top_first(lowers), upper: Some(upper.clone()), work: Some(work) }
        };
        Ok(Active { mount, dir: upper, stamps: Stamps::default() })
    }

    fn view(&self, lowers: &[PathBuf], scratch: &Path) -> Result<Mount> {
        let empty = scratch.join("empty");
        if lowers.len() < 2 {
            make_root(&empty, None)?;
        }
        match lowers {
            [] => Ok(Mount::Bind { source: empty, readonly: true }),
            // A layer on its own may hold whiteouts, which overlay hides and a bind mount would show.
            [only] => Ok(Mount::Overlay { lowers: vec![only.clone(), empty], upper: None, work: None }),
            _ => Ok(Mount::Overlay { lowers: top_first(lowers), upper: None, work: None }),
        }
    }

    fn collect(&self, active: Active, lower: &Tree, dest: &Path) -> Result<LayerManifest> {
        std::fs::rename(&active.dir, dest).map_err(Error::io("move a step's changes to", dest))?;
        let Scanned { entries: mut found, sockets } = scan_with(dest, |_, _| {})?;
        digest_files(dest, &mut found, |_| true)?;
        let unchanged = unchanged(&found, lower);
        remove(dest, &unchanged, &found)?;
        // Sockets stay behind when servers end. No image holds them, so no layer on disk does.
        remove(dest, &sockets.into_iter().map(|path| (path, false)).collect::<Vec<_>>(), &found)?;
        let gone: HashSet<Vec<u8>> = unchanged.into_iter().map(|(path, _)| path).collect();
        found.retain(|entry| !gone.contains(&entry.path));
        Ok(LayerManifest::new(found)?)
    }
}

fn top_first(lowers: &[PathBuf]) -> Vec<PathBuf> {
    lowers.iter().rev().cloned().collect()
}

/// Makes `dir` with the metadata of the directory `like`, since the root of a view has that of its topmost layer.
pub(super) fn make_root(dir: &Path, like: Option<&Path>) -> Result<()> {
    let empty = Tree::default();
    let mut builder = LayerBuilder::new(dir, &empty, &[])?;
    if let Some(like) = like {
        let mut root = Root::open(like)?;
        let stat = root.stat(b"").map_err(|e| Error::io("stat", like)(e.into()))?;
        let (xattrs, _) = sys::xattr::read(root.fd(), b".").map_err(|e| Error::io("read", like)(e.into()))?;
        let meta = FileMeta {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: sys::mtime_of(&stat),
            xattrs,
        };
        builder.mkdir(b"", &meta)?;
    }
    builder.finish().map(|_| ())
}

/// Lists what a step opened for writing and left as it was, and the directories that are there only to hold that:
/// paths, deepest first, and whether they are directories. A layer holds changes only.
fn unchanged(found: &[Entry], lower: &Tree) -> Vec<(Vec<u8>, bool)> {
    let mut gone = Vec::new();
    let mut needed: HashSet<&[u8]> = HashSet::new();
    for entry in found.iter().rev() {
        let is_same = lower.get(&entry.path).is_some_and(|node| node.entry.same_object(entry));
        let is_needed = entry.path.is_empty()
            || entry.opaque
            || entry.nlink_group.is_some()
            || needed.contains(&entry.path[..])
            || below_opaque(&entry.path, found);
        if is_same && !is_needed {
            gone.push((entry.path.clone(), entry.is_dir()));
        } else if let Some(parent) = path::parent(&entry.path) {
            needed.insert(parent);
        }
    }
    gone
}

/// Tells whether a directory above `path` hides the lower layers, so that what looks unchanged is needed.
fn below_opaque(path: &[u8], found: &[Entry]) -> bool {
    let mut at = path;
    while let Some(parent) = path::parent(at) {
        if entry_at(found, parent).is_some_and(|dir| dir.opaque) {
            return true;
        }
        at = parent;
    }
    false
}

fn entry_at<'a>(found: &'a [Entry], path: &[u8]) -> Option<&'a Entry> {
    found.binary_search_by(|e| path::cmp(&e.path, path)).ok().map(|i| &found[i])
}

/// Removes names (with whether they are directories) from disk and sets the times of their directories back.
fn remove(dest: &Path, gone: &[(Vec<u8>, bool)], found: &[Entry]) -> Result<()> {
    let mut root = Root::open(dest)?;
    for (path, is_dir) in gone {
        let fail = |e| Error::sys("remove", path)(e);
        if *is_dir {
            root.forget();
        }
        let (dir, name) = root.place(path).map_err(fail)?;
        let flags = if *is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(dir, name, flags).map_err(fail)?;
        if let Some(parent) = entry_at(found, path::parent(path).unwrap_or_default()) {
            set_mtime(dir, b".", parent.mtime).map_err(fail)?;
        }
    }
    Ok(())
}
