//! What a content digest was made of: one line for each file, so that two contents can be compared when the older one is
//! gone. A listing only explains; no key is made of it, so short sums are enough.
//!
//! Encoded: a version byte, then for each entry in order of paths the bytes shared with the path before and the rest of
//! it, kind, mode, owner, group, size, sum and sum of the extended attributes, numbers as LEB128.

use std::cmp::Ordering;

use kiln_snapshot::{Entry, Kind};
use kiln_stdx::{Digest, Fingerprint};

use super::{ContentSelector, TreeHasher, has_bare_root};
use crate::error::{Result, StoreError};
use crate::meta::Table;
use crate::refs::ImmutableRef;
use crate::store::{Inner, Store};

/// The format; another one is not read.
const VERSION: u8 = 1;
/// Most files of a listing that is kept, and most bytes of all that are.
const FILES: usize = 200_000;
const BYTES: u64 = 64 << 20;

/// The files that a selector selects, as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// By path.
    entries: Vec<Listed>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Listed {
    path: Vec<u8>,
    kind: u64,
    mode: u64,
    uid: u64,
    gid: u64,
    size: u64,
    /// The beginning of a fingerprint of the bytes, the link target or the device.
    sum: u64,
    /// The same of the extended attributes; 0 without any.
    attributes: u64,
}

/// A file that differs between two listings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// Its path; what is not UTF-8 is replaced.
    pub path: String,
    /// `added`, `removed`, or what differs: `content`, `mode`, `owner`, `type`, `link target`, `attributes`, with commas.
    pub what: String,
}

impl Store {
    /// Lists what `selectors` select of `r`.
    ///
    /// # Errors
    /// As [`Store::content_digest`].
    pub fn content_listing(&self, r: &ImmutableRef, selectors: &[ContentSelector]) -> Result<Listing> {
        if r.is_scratch() {
            return Ok(Listing::default());
        }
        let tree = r.tree()?;
        let bare_root = has_bare_root(r);
        let hasher = TreeHasher { store: self, r, tree: &tree, bare_root };
        let mut entries = Vec::new();
        for selector in selectors {
            if !selector.is_plain() {
                let (_, selected) = hasher.select(selector)?;
                entries.extend(selected.iter().map(|s| s.node.entry).map(|entry| Listed::of(entry, bare_root)));
                continue;
            }
            let top = hasher.resolve(selector.path.as_bytes(), selector.follow_links)?;
            let top = top.ok_or_else(|| StoreError::NotFound(selector.path.clone()))?;
            let nodes = tree.walk(&top.entry.path).filter(|node| !(bare_root && node.entry.path.is_empty()));
            entries.extend(nodes.map(|node| Listed::of(node.entry, bare_root)));
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        entries.dedup_by(|a, b| a.path == b.path);
        Ok(Listing { entries })
    }

    /// Keeps what the content with this digest was made of, unless it is known or too much.
    pub fn keep_listing(&self, content: &Digest, listing: impl FnOnce() -> Result<Listing>) {
        let (listings, ages) = self.0.listings();
        if listings.get(content.as_bytes()).is_some() {
            return;
        }
        let Some(listing) = listing().ok().filter(|listing| listing.len() <= FILES) else { return };
        let bytes = listing.encode();
        let age = [&self.0.clock.unix().to_be_bytes()[..], content.as_bytes()].concat();
        ages.put(&age, &(bytes.len() as u64).to_be_bytes());
        listings.put(content.as_bytes(), &bytes);
    }

    /// Returns what the content with this digest was made of, if that is still known.
    pub fn listing(&self, content: &Digest) -> Option<Listing> {
        Listing::decode(&self.0.listings().0.get(content.as_bytes())?)
    }
}

impl Inner {
    /// Listings by digest of the content; their sizes by time and digest.
    fn listings(&self) -> (Table, Table) {
        (self.meta.table("listing"), self.meta.table("listed"))
    }

    /// Drops the oldest listings when they are too much.
    pub(crate) fn trim_listings(&self) {
        let (listings, ages) = self.listings();
        let mut total = 0;
        for (age, size) in ages.scan_prefix(b"").into_iter().rev() {
            total += size.try_into().map_or(0, u64::from_be_bytes);
            if total > BYTES {
                ages.delete(&age);
                listings.delete(age.get(8..).unwrap_or_default());
            }
        }
    }
}

impl Listed {
    fn of(entry: &Entry, bare_root: bool) -> Self {
        let short = |print: Fingerprint| print.as_bytes().iter().take(8).fold(0, |sum, b| (sum << 8) | u64::from(*b));
        let (kind, sum) = match entry.kind {
            Kind::File | Kind::Whiteout => (0, entry.digest.map_or(0, short)),
            Kind::Dir => (1, 0),
            Kind::Symlink => (2, short(Fingerprint::of(&entry.target))),
            Kind::CharDevice => (3, u64::from(entry.rdev.0) << 32 | u64::from(entry.rdev.1)),
            Kind::BlockDevice => (4, u64::from(entry.rdev.0) << 32 | u64::from(entry.rdev.1)),
            Kind::Fifo => (5, 0),
        };
        let attributes = match entry.xattrs.is_empty() {
            true => 0,
            false => short(Fingerprint::of(format!("{:?}", entry.xattrs))),
        };
        // A client's directory has no root that its user would know.
        let slash: &[u8] = if bare_root { b"" } else { b"/" };
        Self {
            path: [slash, &entry.path].concat(),
            kind,
            mode: u64::from(entry.mode),
            uid: u64::from(entry.uid),
            gid: u64::from(entry.gid),
            size: if kind == 0 { entry.size } else { 0 },
            sum,
            attributes,
        }
    }

    fn numbers(&self) -> [u64; 7] {
        [self.kind, self.mode, self.uid, self.gid, self.size, self.sum, self.attributes]
    }

    /// Returns what differs from an entry of the same path.
    fn differs_in(&self, new: &Self) -> Option<String> {
        if self.kind != new.kind {
            return Some("type".to_owned());
        }
        let data = if self.kind == 2 { "link target" } else { "content" };
        let parts = [
            (data, (self.size, self.sum) != (new.size, new.sum)),
            ("mode", self.mode != new.mode),
            ("owner", (self.uid, self.gid) != (new.uid, new.gid)),
            ("attributes", self.attributes != new.attributes),
        ];
        let names: Vec<&str> = parts.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }
}

impl Listing {
    /// Returns how many files there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether there is no file.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the files that differ in `new`, in order of paths. A directory that only came or went with what is in it
    /// is not told apart.
    pub fn changes(&self, new: &Self) -> Vec<Changed> {
        let mut changes = Vec::new();
        let (mut old, mut new) = (self.entries.iter().peekable(), new.entries.iter().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (Some(a), Some(b)) => a.path.cmp(&b.path),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => break,
            };
            let change = match order {
                Ordering::Less => old.next().map(|e| (e, "removed".to_owned())),
                Ordering::Greater => new.next().map(|e| (e, "added".to_owned())),
                Ordering::Equal => old.next().zip(new.next()).and_then(|(a, b)| Some((b, a.differs_in(b)?))),
            };
            changes.extend(change.map(|(entry, what)| (entry.kind, entry.path.clone(), what)));
        }
        let whole = |at: usize| {
            let (kind, path, what): &(u64, Vec<u8>, String) = &changes[at];
            let below = [path, &b"/"[..]].concat();
            let next = changes.get(at + 1);
            *kind == 1 && next.is_some_and(|(_, other, same)| other.starts_with(&below) && same == what)
        };
        let told = (0..changes.len()).filter(|at| !whole(*at));
        told.map(|at| (String::from_utf8_lossy(&changes[at].1).into_owned(), changes[at].2.clone()))
            .map(|(path, what)| Changed { path: if path.is_empty() { "/".to_owned() } else { path }, what })
            .collect()
    }

    /// Returns the bytes of the listing.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        let mut last: &[u8] = &[];
        for entry in &self.entries {
            let shared = entry.path.iter().zip(last).take_while(|(a, b)| a == b).count();
            let rest = &entry.path[shared..];
            number(&mut bytes, shared as u64);
            number(&mut bytes, rest.len() as u64);
            bytes.extend_from_slice(rest);
            entry.numbers().into_iter().for_each(|n| number(&mut bytes, n));
            last = &entry.path;
        }
        bytes
    }

    /// Reads what [`Listing::encode`] wrote; none for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(&[VERSION])?;
        let mut entries: Vec<Listed> = Vec::new();
        while !rest.is_empty() {
            let shared = usize::try_from(take(&mut rest)?).ok()?;
            let length = usize::try_from(take(&mut rest)?).ok()?;
            let (own, after) = rest.split_at_checked(length)?;
            rest = after;
            let last = entries.last().map_or(&[][..], |e| &e.path);
            let path = [last.get(..shared)?, own].concat();
            let mut next = || take(&mut rest);
            let (kind, mode, uid, gid) = (next()?, next()?, next()?, next()?);
            let (size, sum, attributes) = (next()?, next()?, next()?);
            entries.push(Listed { path, kind, mode, uid, gid, size, sum, attributes });
        }
        Some(Self { entries })
    }
}

fn number(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, data: &str) -> Entry {
        let mut entry = Entry::new(path, Kind::File);
        (entry.mode, entry.size, entry.digest) = (0o644, data.len() as u64, Some(Fingerprint::of(data)));
        entry
    }

    fn listing(entries: &[Entry]) -> Listing {
        let mut entries: Vec<Listed> = entries.iter().map(|e| Listed::of(e, true)).collect();
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Listing { entries }
    }

    fn told(old: &[Entry], new: &[Entry]) -> Vec<String> {
        let (old, new) = (listing(old), listing(new));
        old.changes(&new).into_iter().map(|c| format!("{}: {}", c.path, c.what)).collect()
    }

    #[test]
    fn each_kind_of_change_has_its_word() {
        let base = file("a/f", "one");
        let changed = |change: &dyn Fn(&mut Entry)| {
            let mut entry = base.clone();
            change(&mut entry);
            told(std::slice::from_ref(&base), &[entry])
        };
        assert_eq!(changed(&|_| ()), Vec::<String>::new());
        assert_eq!(changed(&|e| e.mtime = (7, 7)), Vec::<String>::new(), "times are no content");
        assert_eq!(changed(&|e| e.digest = Some(Fingerprint::of("two"))), ["a/f: content"]);
        assert_eq!(changed(&|e| e.mode = 0o755), ["a/f: mode"]);
        assert_eq!(changed(&|e| (e.uid, e.mode) = (5, 0)), ["a/f: mode, owner"]);
        assert_eq!(changed(&|e| drop(e.xattrs.insert(b"user.x".to_vec(), b"y".to_vec()))), ["a/f: attributes"]);
        assert_eq!(changed(&|e| e.kind = Kind::Fifo), ["a/f: type"]);
        let link = |target: &str| Entry { target: target.into(), ..Entry::new("l", Kind::Symlink) };
        assert_eq!(told(&[link("x")], &[link("y")]), ["l: link target"]);
        assert_eq!(told(std::slice::from_ref(&base), &[file("b", "one")]), ["a/f: removed", "b: added"]);
    }

    #[test]
    fn a_directory_that_comes_with_its_files_is_not_told_apart() {
        let with = [Entry::new("d", Kind::Dir), Entry::new("d/e", Kind::Dir), file("d/e/f", "x")];
        assert_eq!(told(&[], &with), ["d/e/f: added"]);
        assert_eq!(told(&with, &[]), ["d/e/f: removed"]);
        assert_eq!(told(&[], &with[..2]), ["d/e: added"]);
    }

    #[test]
    fn encoding_and_back() {
        let whole = listing(&[Entry::new("a", Kind::Dir), file("a/b", "x"), file("a/bc", ""), file("ü", "y")]);
        let bytes = whole.encode();
        assert_eq!(Listing::decode(&bytes), Some(whole.clone()));
        for cut in 2..bytes.len() {
            // What is cut off is nothing, or a listing of fewer files.
            assert!(Listing::decode(&bytes[..cut]).is_none_or(|part| part.len() < whole.len()), "{cut}");
        }
        assert_eq!(Listing::decode(b"\x02"), None);
    }
}
