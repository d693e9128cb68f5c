//! Content digests of what a pattern, or include and exclude lists, select below a path.

use kiln_snapshot::Node;
use kiln_stdx::pattern::{self, Glob, MatchInfo, PatternMatcher};
use kiln_stdx::{Digest, DigestHasher};

use super::sums::Sums;
use super::{ContentSelector, TreeHasher, is_below, put};
use crate::error::{Result, StoreError};

/// Something that is part of the selection. Directories stand for their header alone: what is in them comes by itself,
/// since not all of it need be selected.
pub(super) struct Selected<'a> {
    /// Absolute path in the words of the selector: a link in its fixed part is not replaced by its target.
    path: Vec<u8>,
    pub(super) node: Node<'a>,
    /// A link here is followed.
    follow: bool,
}

/// A directory on the way down.
struct Above<'a> {
    selected: Option<Selected<'a>>,
    path: Vec<u8>,
    include: MatchInfo,
    exclude: MatchInfo,
}

/// Where the walk starts: the fixed part of the path as given, and the node it leads to.
struct Start<'a> {
    given: Vec<u8>,
    node: Option<Node<'a>>,
}

impl<'a> TreeHasher<'a> {
    pub(super) fn selected(&self, selector: &ContentSelector) -> Result<Digest> {
        let (prefix, selected) = self.select(selector)?;
        let mut digests = Vec::with_capacity(selected.len());
        let sums = Sums::of(self.store, self.r, selected.iter().map(|s| s.node))?;
        for s in &selected {
            digests.push(if s.follow && s.node.entry.kind == kiln_snapshot::Kind::Symlink {
                self.plain(&String::from_utf8_lossy(&s.path), selector.follow_links)?
            } else if s.node.entry.is_dir() {
                self.header(s.node.entry)
            } else {
                self.leaf(s.node.entry, &sums)?
            });
        }
        match (selected.as_slice(), digests.as_slice()) {
            ([], _) => return Ok(Digest::of(b"")),
            ([only], [digest]) if pattern::base(selector.path.as_bytes()) == pattern::base(&only.path) => {
                return Ok(*digest);
            }
            _ => {}
        }
        let mut hasher = DigestHasher::new();
        for (s, digest) in selected.iter().zip(&digests) {
            let rest = s.path.strip_prefix(prefix.as_slice()).unwrap_or(&s.path);
            let key: Vec<u8> = rest.iter().map(|&b| if b == b'/' { 0 } else { b }).collect();
            hasher.update(if key.is_empty() { &[0] } else { &key });
            put(&mut hasher, digest);
        }
        Ok(hasher.finish())
    }

    /// Returns the fixed part of the selector's path and what is selected, in component order.
    pub(super) fn select(&self, selector: &ContentSelector) -> Result<(Vec<u8>, Vec<Selected<'a>>)> {
        let invalid = |e: pattern::PatternError| StoreError::Invalid(e.to_string());
        let path = key_path(selector.path.as_bytes());
        let bare = selector.path.ends_with('/');
        let include = PatternMatcher::new(&selector.include).map_err(invalid)?;
        let exclude = PatternMatcher::new(&selector.exclude).map_err(invalid)?;
        let glob = Glob::new(&path).map_err(invalid);
        let start = self.start(&path, selector.wildcard)?;
        let mut out = Vec::new();
        let mut above: Vec<Above<'a>> = Vec::new();
        // The directory that the pattern matched last: all below it belongs to it.
        let mut matched: Vec<u8> = Vec::new();
        let nodes = start.node.map(|node| self.tree.walk(&node.entry.path)).into_iter().flatten();
        for node in nodes {
            let name = start.given_path(node);
            while above.last().is_some_and(|dir| !is_below(&name, &dir.path)) {
                above.pop();
            }
            if selector.wildcard && !path.is_empty() && (matched.is_empty() || !is_below(&name, &matched)) {
                if !glob.as_ref().map_err(|e| StoreError::Invalid(e.to_string()))?.is_match(&name) {
                    continue;
                }
                matched.clone_from(&name);
            }
            let is_dir = node.entry.is_dir();
            if is_dir && bare && name == path {
                continue;
            }
            let base = if selector.wildcard { &matched } else { &path };
            let candidate = relative(&name, base);
            let nothing = MatchInfo::default();
            let (info_in, info_out) = above.last().map_or((&nothing, &nothing), |dir| (&dir.include, &dir.exclude));
            let (wanted, info_in, info_out) = judge(&include, &exclude, candidate, info_in, info_out);
            if !wanted && !is_dir {
                continue;
            }
            let this = Selected { path: name.clone(), node, follow: above.is_empty() && selector.follow_links };
            let mut kept = Some(this);
            if wanted {
                out.extend(above.iter_mut().filter_map(|dir| dir.selected.take()));
                out.extend(kept.take());
            }
            if is_dir {
                above.push(Above { selected: kept, path: name, include: info_in, exclude: info_out });
            }
        }
        for required in &selector.required {
            if !out.iter().any(|s| s.path.starts_with(required.as_bytes())) {
                return Err(StoreError::NotFound(required.clone()));
            }
        }
        Ok((start.given, out))
    }

    fn start(&self, path: &[u8], wildcard: bool) -> Result<Start<'a>> {
        if !wildcard {
            return Ok(Start { given: path.to_vec(), node: self.resolve(path, false)? });
        }
        let parts: Vec<&[u8]> = path.split(|&b| b == b'/').filter(|p| !p.is_empty()).collect();
        let fixed = parts.iter().take_while(|part| !pattern::has_wildcards(part)).count();
        let mut given = Vec::new();
        for part in &parts[..fixed] {
            given.push(b'/');
            given.extend_from_slice(part);
        }
        let follow = fixed < parts.len();
        let node = if given.is_empty() { self.tree.get(b"") } else { self.resolve(&given, follow)? };
        Ok(Start { given, node })
    }
}

impl Start<'_> {
    /// Returns the absolute path of a node below the start, in the words of the selector.
    fn given_path(&self, node: Node<'_>) -> Vec<u8> {
        let from = self.node.map_or(&b""[..], |start| &start.entry.path);
        let rest = node.entry.path.strip_prefix(from).unwrap_or(&node.entry.path);
        let mut out = self.given.clone();
        if !rest.is_empty() && rest[0] != b'/' {
            out.push(b'/');
        }
        out.extend_from_slice(rest);
        out
    }
}

/// Returns the clean absolute form of a path, the root being the empty one.
fn key_path(path: &[u8]) -> Vec<u8> {
    let clean = pattern::clean(&[b"/", path].concat());
    if clean == b"/" { Vec::new() } else { clean }
}

fn relative<'p>(name: &'p [u8], base: &[u8]) -> &'p [u8] {
    match name.strip_prefix(base) {
        Some([b'/', rest @ ..]) => rest,
        Some([]) => b"",
        _ => name,
    }
}

/// Tells whether the lists select a path, and what is known for what is below it.
fn judge(
    include: &PatternMatcher,
    exclude: &PatternMatcher,
    path: &[u8],
    above_in: &MatchInfo,
    above_out: &MatchInfo,
) -> (bool, MatchInfo, MatchInfo) {
    let mut info_in = MatchInfo::default();
    if !include.is_empty() {
        let (matched, info) = include.matches_below(path, above_in);
        info_in = info;
        // As in BuildKit, what is not included has no exclude results for its children to build on.
        if !matched {
            return (false, info_in, MatchInfo::default());
        }
    }
    let mut info_out = MatchInfo::default();
    if !exclude.is_empty() {
        let (matched, info) = exclude.matches_below(path, above_out);
        info_out = info;
        if matched {
            return (false, info_in, info_out);
        }
    }
    (true, info_in, info_out)
}
