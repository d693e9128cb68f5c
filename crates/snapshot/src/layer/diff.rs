//! The exact change from one merged view to another, as a layer.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::build::{LayerBuilder, Overrides, join_os};
use crate::entry::Entry;
use crate::error::Result;
use crate::manifest::LayerManifest;
use crate::path;
use crate::tree::{Node, Tree};

/// Makes a layer in `dest` (missing or empty) that, on top of `lower`, gives `upper`, whose layers' directories
/// are `upper_dirs`, bottom to top. Deletions are whiteouts. Files share inodes with `upper` where that cannot show.
///
/// # Errors
/// When a source file is damaged or something cannot be written.
pub fn diff(lower: &Tree, upper: &Tree, upper_dirs: &[PathBuf], dest: &Path) -> Result<LayerManifest> {
    write(lower, upper, upper_dirs, dest, changes(lower, upper))
}

/// As [`diff`], without directories that differ in nothing but their time and hold no change: the time of a directory
/// tells that something came and went, which is no difference any more.
///
/// # Errors
/// As [`diff`].
pub fn difference(lower: &Tree, upper: &Tree, upper_dirs: &[PathBuf], dest: &Path) -> Result<LayerManifest> {
    let mut kept: Vec<Change<'_>> = Vec::new();
    for change in changes(lower, upper).into_iter().rev() {
        // In this order what is below a directory comes right before it.
        let holds = kept.last().is_some_and(|next| is_below(next.path().0, change.path().0));
        if holds || !change.is_touch(lower) {
            kept.push(change);
        }
    }
    kept.reverse();
    write(lower, upper, upper_dirs, dest, kept)
}

/// Tells whether a layer that was made on `lower` has a directory that [`difference`] leaves out.
pub fn touches(layer: &LayerManifest, lower: &Tree) -> bool {
    let entries = layer.entries();
    entries.iter().enumerate().any(|(place, entry)| {
        let holds = entries.get(place + 1).is_some_and(|next| is_below(&next.path, &entry.path));
        entry.is_dir() && !entry.opaque && !entry.path.is_empty() && !holds && is_touch(entry, lower)
    })
}

/// Tells whether this is a directory that is in `lower` too and differs in its time only.
fn is_touch(entry: &Entry, lower: &Tree) -> bool {
    let Some(old) = lower.get(&entry.path) else { return false };
    entry.is_dir() && old.entry.same_object(&Entry { mtime: old.entry.mtime, ..entry.clone() })
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    dir.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/"))
}

fn write(
    lower: &Tree,
    upper: &Tree,
    upper_dirs: &[PathBuf],
    dest: &Path,
    changes: Vec<Change<'_>>,
) -> Result<LayerManifest> {
    let groups: HashSet<(usize, u32)> = changes.iter().filter_map(Change::group).collect();
    let mut builder = LayerBuilder::new(dest, lower, &[])?;
    let mut copier = Copier::new(upper_dirs);
    let mut pending = changes.into_iter().peekable();
    for node in upper.iter() {
        while let Some(Change::Removed(path)) = pending.next_if(|c| c.path() < Key(&node.entry.path)) {
            builder.remove(path)?;
        }
        let changed = pending.next_if(|c| c.path() == Key(&node.entry.path)).is_some();
        // When one name of an inode changed, its other names belong to the change, or the link would be lost.
        if changed || group_of(&node).is_some_and(|group| groups.contains(&group)) {
            copier.place(&mut builder, &node)?;
        }
    }
    for change in pending {
        builder.remove(change.path().0)?;
    }
    builder.finish()
}

/// One difference between two views.
enum Change<'a> {
    Removed(&'a [u8]),
    Set(Node<'a>),
}

/// A path that compares in component order.
#[derive(PartialEq, Eq)]
struct Key<'a>(&'a [u8]);

impl PartialOrd for Key<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(path::cmp(self.0, other.0))
    }
}

impl Change<'_> {
    fn path(&self) -> Key<'_> {
        match self {
            Self::Removed(path) => Key(path),
            Self::Set(node) => Key(&node.entry.path),
        }
    }

    /// Tells whether this is a directory that is in `lower` too and differs in its time only.
    fn is_touch(&self, lower: &Tree) -> bool {
        matches!(self, Self::Set(node) if is_touch(node.entry, lower))
    }

    fn group(&self) -> Option<(usize, u32)> {
        match self {
            Self::Removed(_) => None,
            Self::Set(node) => group_of(node),
        }
    }
}

fn group_of(node: &Node<'_>) -> Option<(usize, u32)> {
    node.entry.nlink_group.map(|group| (node.layer, group))
}

/// Returns the first name of each group of hard links that a view shows.
fn first_names(tree: &Tree) -> HashMap<(usize, u32), &[u8]> {
    let mut names = HashMap::new();
    for node in tree.iter() {
        if let Some(group) = group_of(&node) {
            names.entry(group).or_insert(&node.entry.path[..]);
        }
    }
    names
}

/// Lists the differences in component order. Of a removed directory only the top is listed.
fn changes<'a>(lower: &'a Tree, upper: &'a Tree) -> Vec<Change<'a>> {
    let mut changes = Vec::new();
    let (old_names, new_names) = (first_names(lower), first_names(upper));
    let first = |names: &HashMap<(usize, u32), &'a [u8]>, node: &Node<'a>| {
        group_of(node).and_then(|group| names.get(&group).copied()).unwrap_or(&node.entry.path)
    };
    // Objects that look the same still differ when they are links of different others. The very same entry of the
    // same layer does not: where its group changed, the names that changed bring that with them.
    let same = |o: &Node<'a>, n: &Node<'a>| {
        std::ptr::eq(o.entry, n.entry) || (o.entry.same_object(n.entry) && first(&old_names, o) == first(&new_names, n))
    };
    let (mut below, mut above) = (lower.iter(), upper.iter());
    let (mut old, mut new) = (below.next(), above.next());
    loop {
        let order = match (&old, &new) {
            (None, None) => return changes,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(o), Some(n)) => path::cmp(&o.entry.path, &n.entry.path),
        };
        // The root is only missing in the view of no layers at all; what it holds is removed, not itself.
        if let (Some(node), Ordering::Less) = (old, order)
            && !node.entry.path.is_empty()
        {
            changes.push(Change::Removed(&node.entry.path));
            below.skip_below(node);
        }
        if let (Some(node), Ordering::Greater) = (new, order) {
            changes.push(Change::Set(node));
        }
        if let (Some(o), Some(n), Ordering::Equal) = (old, new, order)
            && !same(&o, &n)
        {
            changes.push(Change::Set(n));
            // A directory that something else replaces goes with all it holds.
            if o.entry.is_dir() && !n.entry.is_dir() {
                below.skip_below(o);
            }
        }
        if order.is_le() {
            old = below.next();
        }
        if order.is_ge() {
            new = above.next();
        }
    }
}

/// Brings nodes of a view into a layer that is being built, keeping hard links.
pub(super) struct Copier<'a> {
    dirs: &'a [PathBuf],
    first_names: HashMap<(usize, u32), Vec<u8>>,
}

impl<'a> Copier<'a> {
    /// `dirs` are the directories of the view's layers, bottom to top.
    pub(super) fn new(dirs: &'a [PathBuf]) -> Self {
        Self { dirs, first_names: HashMap::new() }
    }

    /// Brings `node` to its own path.
    pub(super) fn place(&mut self, builder: &mut LayerBuilder<'_>, node: &Node<'_>) -> Result<()> {
        let entry: &Entry = node.entry;
        if let Some(group) = group_of(node) {
            if let Some(first) = self.first_names.get(&group) {
                return builder.hard_link(first, &entry.path);
            }
            self.first_names.insert(group, entry.path.clone());
        }
        let dir = self.dirs.get(node.layer).map(PathBuf::as_path).unwrap_or(Path::new(""));
        builder.link_or_copy(&join_os(dir, &entry.path), entry, &entry.path, &Overrides::default()).map(|_| ())
    }
}
