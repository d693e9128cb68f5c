//! The merged view of a chain of layers: what a container on top of them would see.

mod resolve;

use std::sync::Arc;

use crate::entry::{Entry, Kind};
use crate::manifest::LayerManifest;
use crate::path;

pub use resolve::{ResolveError, ResolvedPath};
pub(crate) use resolve::{Seen, resolve};

/// The merged view of a chain of layers, bottom to top.
///
/// It is a sorted list of pairs (layer, entry); a directory and everything below it are neighbours, so a lookup is
/// a binary search and a subtree a slice. It holds no whiteouts, and its entries' `opaque` says nothing here.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    layers: Vec<Arc<LayerManifest>>,
    slots: Vec<Slot>,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    layer: u32,
    entry: u32,
    /// Index behind the last slot below this one.
    end: u32,
}

/// A name of the merged view.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    /// Which layer it comes from; 0 is the bottom.
    pub layer: usize,
    /// What it is.
    pub entry: &'a Entry,
    index: usize,
}

impl Tree {
    /// Merges `layers`, given bottom to top.
    pub fn merge(layers: &[Arc<LayerManifest>]) -> Self {
        let mut tree = Self { layers: layers.to_vec(), slots: Vec::new() };
        for layer in 0..layers.len() {
            tree.lay(layer);
        }
        tree.find_ends();
        tree
    }

    /// Returns this view with one more layer on top.
    pub fn with(&self, layer: Arc<LayerManifest>) -> Self {
        let mut tree = self.clone();
        tree.layers.push(layer);
        tree.lay(tree.layers.len() - 1);
        tree.find_ends();
        tree
    }

    /// Returns the layers, bottom to top.
    pub fn layers(&self) -> &[Arc<LayerManifest>] {
        &self.layers
    }

    /// Returns the number of names, the root directory included.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Tells whether nothing is there, not even a root directory: the chain is empty.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Returns what is at `path` (no leading slash, not resolved: links on the way are not followed).
    pub fn get(&self, path: &[u8]) -> Option<Node<'_>> {
        self.slots.binary_search_by(|s| path::cmp(self.path_of(s), path)).ok().map(|index| self.node(index))
    }

    /// Returns what the directory `dir` holds, in order of names; nothing when it is no directory.
    pub fn children(&self, dir: &[u8]) -> Children<'_> {
        match self.get(dir) {
            Some(node) => self.children_of(node),
            None => Children { tree: self, next: 0, end: 0 },
        }
    }

    /// As [`children`](Self::children) for a node of this tree.
    pub fn children_of(&self, node: Node<'_>) -> Children<'_> {
        Children { tree: self, next: node.index + 1, end: self.slots.get(node.index).map_or(0, |s| s.end as usize) }
    }

    /// Returns `from` and everything below it in component order; nothing when `from` does not exist.
    pub fn walk(&self, from: &[u8]) -> Walk<'_> {
        let range = self.get(from).map_or(0..0, |node| node.index..self.slots[node.index].end as usize);
        Walk { tree: self, range }
    }

    /// Returns every name in component order.
    pub fn iter(&self) -> Walk<'_> {
        Walk { tree: self, range: 0..self.slots.len() }
    }

    /// Follows the symbolic links of `path` as a process with this root directory would, `..` stopping at the root.
    ///
    /// A leading slash is ignored. Names that do not exist are allowed, also several in a row. With `follow_last`
    /// a link as the last component is followed too.
    ///
    /// # Errors
    /// After 255 links, or when a component that is not the last is no directory.
    pub fn resolve(&self, path: &[u8], follow_last: bool) -> Result<ResolvedPath, ResolveError> {
        resolve(path, follow_last, |path| self.get(path).map(|node| Seen::of(node.entry)))
    }

    fn node(&self, index: usize) -> Node<'_> {
        let slot = &self.slots[index];
        Node { layer: slot.layer as usize, entry: self.entry_of(slot), index }
    }

    fn entry_of(&self, slot: &Slot) -> &Entry {
        &self.layers[slot.layer as usize].entries()[slot.entry as usize]
    }

    fn path_of(&self, slot: &Slot) -> &[u8] {
        &self.entry_of(slot).path
    }

    /// Puts layer `layer` on top of the slots. Runs of lower names between two upper ones are copied as a whole.
    fn lay(&mut self, layer: usize) {
        let upper = Arc::clone(&self.layers[layer]);
        let lower = std::mem::take(&mut self.slots);
        let mut merged = Vec::with_capacity(lower.len() + upper.len());
        let mut at = 0;
        for (i, entry) in upper.entries().iter().enumerate() {
            let until = at + self.gallop(&lower[at..], |p| path::cmp(p, &entry.path).is_lt());
            merged.extend_from_slice(&lower[at..until]);
            at = until;
            if at < lower.len() && self.path_of(&lower[at]) == entry.path {
                at += 1;
                if !entry.is_dir() || entry.opaque {
                    at += self.gallop(&lower[at..], |p| path::is_below(p, &entry.path));
                }
            }
            if entry.kind != Kind::Whiteout {
                merged.push(Slot { layer: layer as u32, entry: i as u32, end: 0 });
            }
        }
        merged.extend_from_slice(&lower[at..]);
        self.slots = merged;
    }

    /// Returns how many slots at the start of `slots` satisfy `holds`, which is monotone. Looks at few slots when
    /// the answer is small, which it mostly is.
    fn gallop(&self, slots: &[Slot], holds: impl Fn(&[u8]) -> bool) -> usize {
        let mut step = 1;
        let mut low = 0;
        while low + step <= slots.len() && holds(self.path_of(&slots[low + step - 1])) {
            low += step;
            step *= 2;
        }
        let high = (low + step).min(slots.len());
        low + slots[low..high].partition_point(|s| holds(self.path_of(s)))
    }

    fn find_ends(&mut self) {
        let mut open: Vec<usize> = Vec::new();
        for index in 0..self.slots.len() {
            while let Some(&last) = open.last() {
                if path::is_below(self.path_of(&self.slots[index]), self.path_of(&self.slots[last])) {
                    break;
                }
                self.slots[last].end = index as u32;
                open.pop();
            }
            open.push(index);
        }
        let end = self.slots.len() as u32;
        for index in open {
            self.slots[index].end = end;
        }
    }
}

/// The names in one directory of a [`Tree`].
#[derive(Debug, Clone)]
pub struct Children<'a> {
    tree: &'a Tree,
    next: usize,
    end: usize,
}

impl<'a> Iterator for Children<'a> {
    type Item = Node<'a>;

    fn next(&mut self) -> Option<Node<'a>> {
        if self.next >= self.end {
            return None;
        }
        let index = self.next;
        self.next = self.tree.slots[index].end as usize;
        Some(self.tree.node(index))
    }
}

/// A subtree of a [`Tree`] in component order.
#[derive(Debug, Clone)]
pub struct Walk<'a> {
    tree: &'a Tree,
    range: std::ops::Range<usize>,
}

impl Walk<'_> {
    /// Leaves out everything below the node that was returned last.
    pub fn skip_below(&mut self, node: Node<'_>) {
        self.range.start = self.range.start.max(self.tree.slots.get(node.index).map_or(0, |s| s.end as usize));
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Node<'a>;

    fn next(&mut self) -> Option<Node<'a>> {
        self.range.next().map(|index| self.tree.node(index))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.range.size_hint()
    }
}

#[cfg(test)]
mod tests;
