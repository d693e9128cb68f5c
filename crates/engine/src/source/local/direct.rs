//! Reading a client's directory on the same machine, with the persistent index of what files were.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::SystemTime;

use kiln_snapshot::Entry;
use kiln_stdx::Fingerprint;
use kiln_store::{ContextIndex, ImmutableRef, Known, StatKey, Store, is_local_filesystem};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::Wanted;
use super::ahead::ahead;
use super::assemble::{Assembly, Contents, Last, print_of, unreadable};
use super::walk::{Found, names_in, open_file, stat_key, walk};
use crate::error::EngineError;

/// What one read of a directory did; for progress and for tests that count.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    pub files: u64,
    /// Files whose bytes were read, and how many bytes that were.
    pub read: u64,
    pub bytes: u64,
}

/// Returns the layer of the wanted part of a directory.
///
/// # Errors
/// Something in it cannot be read; a full disk; a call that was called off.
pub fn read(
    store: &Store,
    root: &OwnedFd,
    uid: u32,
    wanted: &Wanted,
    last: Option<&Last>,
    cancel: &CancellationToken,
) -> Result<(ImmutableRef, Work), EngineError> {
    let device = rustix::fs::fstat(root).map_err(std::io::Error::from)?.st_dev;
    let index = is_local_filesystem(root).then(|| store.context_index(uid, device));
    let found = walk(root.as_fd(), wanted, index.as_deref()).map_err(|e| unreadable(&e))?;
    let mut work = Work { files: found.len() as u64, ..Work::default() };
    let links = links(&found);
    let (mut entries, keys): (Vec<Entry>, Vec<_>) = found.into_iter().map(|found| (found.entry, found.key)).unzip();
    for (place, digest) in settle(root, &entries, &keys, last, index.as_ref(), cancel)? {
        work.read += 1;
        work.bytes += entries[place].size;
        entries[place].digest = Some(digest);
    }
    let files = Files { root, keys, index: index.clone(), work: Mutex::new(work), started: SystemTime::now() };
    let assembly = Assembly {
        store,
        last,
        entries,
        links,
        contents: &files,
        description: format!("local source for {}", wanted.name),
        cancel,
    };
    let reference = assembly.finish()?;
    if let Some(index) = &index {
        // An index that cannot be written is made again next time.
        let _ = index.save();
    }
    let work = *files.work.lock();
    Ok((reference, work))
}

/// Returns the paths that were asked for by name and are not there, each with the nearest name beside it that is.
///
/// # Errors
/// The layers of `reference` cannot be read.
pub fn near(root: &OwnedFd, wanted: &Wanted, reference: &ImmutableRef) -> Result<Vec<(String, String)>, EngineError> {
    let tree = reference.tree()?;
    let mut near = Vec::new();
    for path in wanted.follow.iter().map(|path| crate::paths::clean_relative(path)) {
        if path.is_empty() || crate::paths::has_wildcard(&path) || tree.get(path.as_bytes()).is_some() {
            continue;
        }
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", &path));
        let names = names_in(root.as_fd(), dir.as_bytes());
        if let Some(found) = kiln_stdx::suggest::nearest(name, names.iter().map(String::as_str)) {
            let found = if dir.is_empty() { found.to_owned() } else { format!("{dir}/{found}") };
            near.push((path.clone(), found));
        }
    }
    Ok(near)
}

/// Hashes the files that look just as they did in the last state but are not known by the index: whether they can be
/// linked depends on their bytes. Returns their places.
fn settle(
    root: &OwnedFd,
    entries: &[Entry],
    keys: &[Option<StatKey>],
    last: Option<&Last>,
    index: Option<&Arc<ContextIndex>>,
    cancel: &CancellationToken,
) -> Result<Vec<(usize, Fingerprint)>, EngineError> {
    let looks_the_same = |entry: &Entry| {
        let old = last.and_then(|last| last.get(&entry.path));
        old.is_some_and(|old| old.same_object(&Entry { digest: old.digest, ..entry.clone() }))
    };
    let unsettled: Vec<(usize, StatKey)> = (entries.iter().zip(keys).enumerate())
        .filter(|(_, (entry, _))| entry.digest.is_none() && looks_the_same(entry))
        .filter_map(|(place, (_, key))| Some((place, (*key)?)))
        .collect();
    ahead(
        &unsettled,
        |&(place, key)| {
            if cancel.is_cancelled() {
                return Err(EngineError::canceled());
            }
            Ok((place, hash(root, &entries[place], key, index)?))
        },
        |next| std::iter::from_fn(next).collect(),
    )
}

/// Finds names that are one inode: the first name's place by each later name's.
fn links(found: &[Found]) -> HashMap<usize, usize> {
    let mut first = HashMap::new();
    let mut links = HashMap::new();
    for (place, found) in found.iter().enumerate() {
        if let Some(inode) = found.linked {
            match first.get(&inode) {
                Some(&earlier) => {
                    links.insert(place, earlier);
                }
                None => {
                    first.insert(inode, place);
                }
            }
        }
    }
    links
}

fn hash(
    root: &OwnedFd,
    entry: &Entry,
    key: StatKey,
    index: Option<&Arc<ContextIndex>>,
) -> Result<Fingerprint, EngineError> {
    let started = SystemTime::now();
    let file = open_file(root.as_fd(), &entry.path).map_err(|e| unreadable(&e))?;
    let digest = print_of(&file)?;
    let after = rustix::fs::fstat(&file).map_err(std::io::Error::from)?;
    if let Some(index) = index
        && stat_key(&after) == key
    {
        index.put(key, Known { digest, plain: entry.xattrs.is_empty() }, started);
    }
    Ok(digest)
}

struct Files<'a> {
    root: &'a OwnedFd,
    keys: Vec<Option<StatKey>>,
    index: Option<Arc<ContextIndex>>,
    work: Mutex<Work>,
    started: SystemTime,
}

impl Contents for Files<'_> {
    fn open(&self, place: usize, entry: &Entry) -> std::io::Result<File> {
        if self.keys.get(place).is_some_and(Option::is_none) {
            return File::open("/dev/null");
        }
        open_file(self.root.as_fd(), &entry.path)
    }

    fn read(&self, place: usize, entry: &Entry, file: &File) {
        {
            let mut work = self.work.lock();
            work.read += 1;
            work.bytes += entry.size;
        }
        let (Some(index), Some(Some(key)), Some(digest)) = (&self.index, self.keys.get(place), entry.digest) else {
            return;
        };
        // The state before the reading is the listing's; the one after must be the same for the bytes to be its.
        if rustix::fs::fstat(file).is_ok_and(|stat| stat_key(&stat) == *key) {
            index.put(*key, Known { digest, plain: entry.xattrs.is_empty() }, self.started);
        }
    }
}
