//! The driver for hosts without overlay: a view is a full copy of the merged layers, and what a step changed is
//! found by comparing.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::overlay::make_root;
use super::{Active, Snapshotter};
use crate::entry::{Entry, Kind};
use crate::error::Result;
use crate::layer::{FileMeta, LayerBuilder, digest_files, join_os, materialise, scan_with};
use crate::manifest::LayerManifest;
use crate::mount::Mount;
use crate::sys;
use crate::tree::Tree;

/// Times of inodes younger than this when a view was ready are not trusted: the kernel's clock for them moves in
/// ticks of up to 10 ms, so a write right after could leave no trace.
const TICK_NANOS: i128 = 20_000_000;

/// Views by copying.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopySnapshotter;

/// Inode and change time of every name of a view when it was handed out. A name whose stamp is the same was not
/// touched, whatever its modification time says.
#[derive(Debug, Default)]
pub(super) struct Stamps(HashMap<Vec<u8>, Stamp>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    ino: u64,
    ctime: (i64, i64),
}

impl Snapshotter for CopySnapshotter {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn prepare(&self, lowers: &[PathBuf], scratch: &Path) -> Result<Active> {
        let dir = scratch.join("fs");
        copy_merged(lowers, &dir)?;
        let ready = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos().cast_signed());
        let mut stamps = HashMap::new();
        scan_with(&dir, |entry, stat| {
            let ctime = sys::ctime_of(stat);
            if i128::from(ctime.0) * 1_000_000_000 + i128::from(ctime.1) + TICK_NANOS < ready {
                stamps.insert(entry.path.clone(), Stamp { ino: stat.st_ino, ctime });
            }
        })?;
        let mount = Mount::Bind { source: dir.clone(), readonly: false };
        Ok(Active { mount, dir, stamps: Stamps(stamps) })
    }

    fn view(&self, lowers: &[PathBuf], scratch: &Path) -> Result<Mount> {
        let dir = scratch.join("fs");
        copy_merged(lowers, &dir)?;
        Ok(Mount::Bind { source: dir, readonly: true })
    }

    fn collect(&self, active: Active, lower: &Tree, dest: &Path) -> Result<LayerManifest> {
        let mut touched = HashSet::new();
        let stamps = &active.stamps.0;
        let mut found = scan_with(&active.dir, |entry, stat| {
            let stamp = Stamp { ino: stat.st_ino, ctime: sys::ctime_of(stat) };
            if stamps.get(&entry.path) != Some(&stamp) {
                touched.insert(entry.path.clone());
            }
        })?
        .entries;
        digest_files(&active.dir, &mut found, |entry| touched.contains(&entry.path))?;
        let changed = |entry: &Entry| {
            let Some(node) = lower.get(&entry.path) else { return true };
            // A directory is compared by what it says of itself: its stamp moves with every name in it.
            if entry.is_dir() || touched.contains(&entry.path) { !node.entry.same_object(entry) } else { false }
        };
        // When one name of an inode changed, its other names belong to the layer, as with overlay.
        let groups: HashSet<u32> = found.iter().filter(|e| changed(e)).filter_map(|e| e.nlink_group).collect();
        let wanted = |e: &Entry| e.nlink_group.is_some_and(|group| groups.contains(&group));
        digest_files(&active.dir, &mut found, |entry| wanted(entry) && !touched.contains(&entry.path))?;
        let mut builder = LayerBuilder::new(dest, lower, &[])?;
        for path in removed(lower, &found) {
            builder.remove(path)?;
        }
        for entry in &found {
            if !changed(entry) && !wanted(entry) {
                continue;
            }
            match entry.kind {
                Kind::Dir => builder.mkdir(&entry.path, &FileMeta::of(entry))?,
                Kind::Whiteout => {}
                _ => builder.adopt(&join_os(&active.dir, &entry.path), entry)?,
            }
        }
        builder.finish()
    }
}

/// Copies what `lowers`, bottom to top, show together to the new directory `dest`.
fn copy_merged(lowers: &[PathBuf], dest: &Path) -> Result<()> {
    if lowers.is_empty() {
        return make_root(dest, None);
    }
    // The content does not matter for merging, so nothing is hashed.
    let layers = lowers
        .iter()
        .map(|dir| Ok(Arc::new(LayerManifest::new(scan_with(dir, |_, _| {})?.entries)?)))
        .collect::<Result<Vec<_>>>()?;
    materialise(&Tree::merge(&layers), lowers, dest, false).map(|_| ())
}

/// Lists what `lower` has and `found` lacks; of a directory only the top.
fn removed<'a>(lower: &'a Tree, found: &[Entry]) -> Vec<&'a [u8]> {
    let kinds: HashMap<&[u8], Kind> = found.iter().map(|e| (&e.path[..], e.kind)).collect();
    let mut removed = Vec::new();
    let mut walk = lower.iter();
    while let Some(node) = walk.next() {
        match kinds.get(&node.entry.path[..]) {
            None => {
                removed.push(&node.entry.path[..]);
                walk.skip_below(node);
            }
            // What replaced a directory hides all that was in it.
            Some(kind) if node.entry.is_dir() && *kind != Kind::Dir => walk.skip_below(node),
            Some(_) => {}
        }
    }
    removed
}
