//! Copy: from one merged tree into a new layer, by links where the store already holds the bytes.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;

use kiln_llb::op::{Copy, CopyMode};
use kiln_snapshot::layer::{FileMeta, Overrides, Placed};
use kiln_snapshot::{Entry, LayerBuilder, Node, Tree};
use kiln_stdx::pattern::{self, Glob, PathFilter, Verdict};
use kiln_store::{ImmutableRef, Room};
use tokio_util::sync::CancellationToken;

use super::simple::{Ids, time};
use super::{archive, mode};
use crate::error::EngineError;
use crate::paths::{base, clean_relative, has_wildcard};

/// How many names are copied between looks at the cancel token.
const STRIDE: usize = 256;

/// One copy action.
pub struct CopyRun<'a> {
    pub(super) tree: Arc<Tree>,
    pub(super) dirs: Vec<PathBuf>,
    pub(super) copy: &'a Copy,
    pub(super) owner: Option<Ids>,
    pub(super) now: (i64, u32),
    pub(super) cancel: &'a CancellationToken,
    pub(super) room: &'a Room,
    filter: PathFilter,
    /// Where the first name of an inode of the source went.
    links: HashMap<(usize, u32), Vec<u8>>,
}

impl<'a> CopyRun<'a> {
    /// Prepares a copy out of `source`.
    ///
    /// # Errors
    /// The source's layers cannot be read, or a pattern is malformed.
    pub fn new(
        source: &ImmutableRef,
        copy: &'a Copy,
        owner: Option<Ids>,
        now: (i64, u32),
        cancel: &'a CancellationToken,
        room: &'a Room,
    ) -> Result<Self, EngineError> {
        let filter = PathFilter::new(&copy.include_patterns, &copy.exclude_patterns)
            .map_err(|e| EngineError::user(e.to_string()))?;
        let (tree, dirs) = (source.tree()?, source.dirs());
        Ok(Self { tree, dirs, copy, owner, now, cancel, room, filter, links: HashMap::new() })
    }

    /// Copies everything the action names.
    ///
    /// # Errors
    /// A source that does not exist, a destination that is in the way, damage, a full disk.
    pub fn run(mut self, builder: &mut LayerBuilder<'_>) -> Result<(), EngineError> {
        for source in self.sources()? {
            if self.copy.unpack && archive::unpack(&self, &source, builder)? {
                continue;
            }
            self.one(&source, builder)?;
        }
        Ok(())
    }

    /// Returns the paths that the source names, all of them existing.
    fn sources(&self) -> Result<Vec<Vec<u8>>, EngineError> {
        let source = clean_relative(&self.copy.src);
        if !self.copy.allow_wildcard || !has_wildcard(&source) {
            return Ok(vec![source.into_bytes()]);
        }
        let found = expand(&self.tree, &source)?;
        if found.is_empty() && !self.copy.allow_empty_wildcard {
            return Err(EngineError::user(format!("{} not found", self.copy.src)));
        }
        Ok(found)
    }

    /// Returns what a source path leads to.
    pub(super) fn resolve(&self, source: &[u8]) -> Result<Vec<u8>, EngineError> {
        let follow = self.copy.follow_symlink;
        let resolved = self.tree.resolve(source, follow).map_err(|e| EngineError::user(e.to_string()))?;
        if self.tree.get(&resolved.path).is_none() && !(resolved.path.is_empty() && self.tree.is_empty()) {
            let shown = String::from_utf8_lossy(source);
            let mut error = EngineError::user(format!("lstat /{shown}: no such file or directory"));
            error.hint = crate::content::nearest(&self.tree, &shown);
            return Err(error);
        }
        Ok(resolved.path)
    }

    fn one(&mut self, source: &[u8], builder: &mut LayerBuilder<'_>) -> Result<(), EngineError> {
        let resolved = self.resolve(source)?;
        let tree = self.tree.clone();
        let Some(node) = tree.get(&resolved) else {
            // Nothing at all: what it would be copied into is made nevertheless.
            let target = self.target(source, true, builder)?;
            if self.copy.dir_contents_only && !target.is_empty() && builder.lookup(&target).is_none() {
                builder.mkdir_all(&target, &self.new_dir())?;
            }
            return Ok(());
        };
        let is_dir = node.entry.is_dir();
        let target = self.target(source, is_dir, builder)?;
        if !is_dir {
            // Patterns are about what lies below a source, not about the source itself.
            if builder.lookup(&target).is_some_and(Entry::is_dir) && !self.copy.always_replace {
                let shown = String::from_utf8_lossy(&target);
                return Err(EngineError::user(format!("cannot copy a file over the directory /{shown}")));
            }
            return self.place(node, &target, builder);
        }
        self.directory(node, &resolved, &target, builder)
    }

    /// Returns where a source goes, with all parents made.
    fn target(&self, source: &[u8], is_dir: bool, builder: &mut LayerBuilder<'_>) -> Result<Vec<u8>, EngineError> {
        let dest = &self.copy.dest;
        let named_dir = dest.ends_with('/') || dest.ends_with("/.") || dest == "." || dest.is_empty();
        let clean = clean_relative(dest);
        let resolved = builder.resolve(clean.as_bytes(), true)?.path;
        let there = builder.lookup(&resolved).map(Entry::is_dir);
        // The top of a source has no name under which it could be put anywhere.
        let contents = is_dir && (self.copy.dir_contents_only || source.is_empty());
        let into = !contents && (named_dir || there == Some(true) || resolved.is_empty());
        let target = if into {
            let name = base(std::str::from_utf8(source).unwrap_or_default()).as_bytes();
            let name = if std::str::from_utf8(source).is_ok() { name } else { pattern::base(source) };
            if there == Some(false) {
                return Err(EngineError::user(format!("cannot copy into {dest}: not a directory")));
            }
            self.make_dirs(&resolved, dest, builder)?;
            if resolved.is_empty() { name.to_vec() } else { [&resolved, b"/".as_slice(), name].concat() }
        } else {
            let parent = resolved.iter().rposition(|b| *b == b'/').map_or(&[][..], |slash| &resolved[..slash]);
            self.make_dirs(parent, dest, builder)?;
            resolved
        };
        Ok(target)
    }

    fn make_dirs(&self, dir: &[u8], dest: &str, builder: &mut LayerBuilder<'_>) -> Result<(), EngineError> {
        if dir.is_empty() || builder.lookup(dir).is_some_and(Entry::is_dir) {
            return Ok(());
        }
        if !self.copy.create_dest_path {
            return Err(EngineError::user(format!("failed to stat {dest}: no such file or directory")));
        }
        Ok(builder.mkdir_all(dir, &self.new_dir())?)
    }

    /// Returns what a directory has that is made on the way.
    pub(super) fn new_dir(&self) -> FileMeta {
        let (uid, gid) = self.owner.unwrap_or_default();
        let mode = match &self.copy.mode {
            Some(CopyMode::Bits(bits)) => *bits,
            _ => 0o755,
        };
        FileMeta { uid, gid, ..FileMeta::new(mode, time(self.copy.timestamp, self.now)) }
    }

    fn directory(
        &mut self,
        top: Node<'_>,
        source: &[u8],
        target: &[u8],
        builder: &mut LayerBuilder<'_>,
    ) -> Result<(), EngineError> {
        let tree = self.tree.clone();
        let filter = self.filter.clone();
        let mut walk = tree.walk(source);
        let mut judge = filter.walk();
        // A top that only takes the contents is a new directory, whatever the filter leaves of them. Any other is the
        // source's, and made when something goes into it or nothing is filtered. One that is there stays as it is.
        if self.copy.dir_contents_only && !target.is_empty() && builder.lookup(target).is_none() {
            builder.mkdir_all(target, &self.new_dir())?;
        }
        let mut made_top = filter.is_trivial();
        if made_top {
            self.make_top(top, target, builder)?;
        }
        walk.next();
        let mut count = 0;
        while let Some(node) = walk.next() {
            count += 1;
            if count % STRIDE == 0 && self.cancel.is_cancelled() {
                return Err(EngineError::canceled());
            }
            let relative = below(&node.entry.path, source);
            let parents = match judge.visit(relative, node.entry.is_dir()) {
                Verdict::Take { parents } => parents,
                Verdict::Pass => continue,
                Verdict::Prune => {
                    walk.skip_below(node);
                    continue;
                }
            };
            if !made_top {
                made_top = true;
                self.make_top(top, target, builder)?;
            }
            for parent in parents {
                let path = join(source, &parent);
                if let Some(dir) = tree.get(&path) {
                    self.place(dir, &join(target, &parent), builder)?;
                }
            }
            self.place(node, &join(target, relative), builder)?;
        }
        self.date_top(top, target, builder)
    }

    /// Gives the directory that received a directory's content the time of that one, even if it was there before.
    fn date_top(&self, top: Node<'_>, target: &[u8], builder: &mut LayerBuilder<'_>) -> Result<(), EngineError> {
        // The top of a whole tree has no time of its own.
        if target.is_empty() || top.entry.path.is_empty() {
            return Ok(());
        }
        let Some(there) = builder.lookup(target).filter(|e| e.is_dir()) else { return Ok(()) };
        let mtime = self.copy.timestamp.map_or(top.entry.mtime, |t| time(Some(t), self.now));
        let meta = FileMeta { mtime, ..FileMeta::of(there) };
        Ok(builder.mkdir(target, &meta)?)
    }

    fn make_top(&mut self, top: Node<'_>, target: &[u8], builder: &mut LayerBuilder<'_>) -> Result<(), EngineError> {
        match builder.lookup(target).map(Entry::is_dir) {
            Some(true) => Ok(()),
            // The root of an image that has none yet takes the source's metadata too.
            _ if target.is_empty() => Ok(()),
            _ => self.place(top, target, builder),
        }
    }

    /// Brings one name to `dest`; a directory's content is another matter.
    fn place(&mut self, node: Node<'_>, dest: &[u8], builder: &mut LayerBuilder<'_>) -> Result<(), EngineError> {
        let entry = node.entry;
        let there = builder.lookup(dest).map(Entry::is_dir);
        if there.is_some_and(|dir| dir != entry.is_dir()) {
            if there == Some(true) && !self.copy.always_replace {
                let shown = String::from_utf8_lossy(dest);
                return Err(EngineError::user(format!("cannot copy a file over the directory /{shown}")));
            }
            if entry.is_dir() && !self.copy.always_replace {
                let shown = String::from_utf8_lossy(dest);
                return Err(EngineError::user(format!("cannot copy a directory over the file /{shown}")));
            }
            builder.remove(dest)?;
        }
        if let Some(group) = entry.nlink_group {
            if let Some(first) = self.links.get(&(node.layer, group)) {
                return Ok(builder.hard_link(first, dest)?);
            }
            self.links.insert((node.layer, group), dest.to_vec());
        }
        let overrides = Overrides {
            owner: self.owner,
            mode: self.mode_of(entry)?,
            mtime: self.copy.timestamp.map(|t| time(Some(t), self.now)),
            xattrs: None,
        };
        let dir = self.dirs.get(node.layer).ok_or_else(|| EngineError::user("a layer of the source is gone"))?;
        let path = dir.join(OsString::from_vec(entry.path.clone()));
        self.room.take(entry.size);
        if builder.link_or_copy(&path, entry, dest, &overrides)? != Placed::Copied {
            self.room.give_back(entry.size);
        }
        Ok(())
    }

    fn mode_of(&self, entry: &Entry) -> Result<Option<u32>, EngineError> {
        match &self.copy.mode {
            None => Ok(None),
            Some(CopyMode::Bits(bits)) => Ok(Some(*bits)),
            Some(CopyMode::Symbolic(text)) => {
                mode::apply(text, entry.mode, entry.is_dir()).map(Some).map_err(|e| EngineError::user(e.to_string()))
            }
        }
    }
}

fn below<'p>(path: &'p [u8], dir: &[u8]) -> &'p [u8] {
    let rest = path.strip_prefix(dir).unwrap_or(path);
    rest.strip_prefix(b"/").unwrap_or(rest)
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match (dir.is_empty(), name.is_empty()) {
        (true, _) => name.to_vec(),
        (_, true) => dir.to_vec(),
        _ => [dir, b"/", name].concat(),
    }
}

/// Returns the paths of `tree` that a pattern of Go's `filepath.Match` names, in order. Links before the first part
/// with a wildcard are followed, later ones are not.
pub fn expand(tree: &Tree, pattern: &str) -> Result<Vec<Vec<u8>>, EngineError> {
    let parts: Vec<&str> = pattern.split('/').collect();
    let plain = parts.iter().take_while(|part| !has_wildcard(part)).count();
    let prefix = parts[..plain].join("/");
    let start = tree.resolve(prefix.as_bytes(), true).map_err(|e| EngineError::user(e.to_string()))?.path;
    // Found paths are named as the pattern names them, so that their base names are the ones that were asked for.
    let mut found = BTreeMap::from([(start, prefix.into_bytes())]);
    for part in &parts[plain..] {
        let glob = Glob::new(part.as_bytes()).map_err(|e| EngineError::user(e.to_string()))?;
        let mut next = BTreeMap::new();
        for (dir, named) in &found {
            for child in tree.children(dir) {
                let name = child.entry.name();
                if glob.is_match(name) {
                    next.insert(join(dir, name), join(named, name));
                }
            }
        }
        found = next;
    }
    Ok(found.into_values().collect())
}
