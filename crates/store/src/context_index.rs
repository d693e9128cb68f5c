//! The index of clients' files: what a file's bytes were when it last had these inode, size and times, so that an
//! unchanged context is not read again. One per user and file system; disposable.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kiln_stdx::Fingerprint;
use parking_lot::Mutex;

use crate::disk;
use crate::error::Result;
use crate::layout::Layout;
use crate::store::Store;

const KIND: &str = "kiln.context.v3";
/// An entry counts only if the file had been left alone this long when its hashing began: a write within the
/// granularity of a file system's times would not show. Those that keep fractions of a second take them from a clock
/// that ticks every 10 ms or more often; the others keep whole seconds.
const SETTLED: Duration = Duration::from_millis(100);
const SETTLED_WHOLE_SECONDS: Duration = Duration::from_secs(2);
/// Entries per index; beyond that those not seen in this session go.
const MOST: usize = 400_000;
const ENTRY: usize = 8 + 8 + 12 + 12 + 32 + 1;

/// What identifies a state of a file within one file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StatKey {
    /// Inode number.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Modification time, seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Change time, seconds and nanoseconds.
    pub ctime: (i64, u32),
}

/// All indexes that are in memory.
#[derive(Default)]
pub(crate) struct ContextIndexes(Mutex<HashMap<(u32, u64), Arc<ContextIndex>>>);

/// The index of one user and file system.
pub struct ContextIndex {
    layout: Layout,
    name: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: HashMap<StatKey, Seen>,
    dirty: bool,
}

/// What is known of a file in some state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Fingerprint of its bytes.
    pub digest: Fingerprint,
    /// It has no extended attributes that a layer would keep; a change of them is a change of the change time, so that
    /// they need not be listed again.
    pub plain: bool,
}

#[derive(Clone, Copy)]
struct Seen {
    known: Known,
    now: bool,
}

impl Store {
    /// Returns the index of a user's files on the file system with that device number.
    pub fn context_index(&self, uid: u32, device: u64) -> Arc<ContextIndex> {
        let mut indexes = self.0.indexes.0.lock();
        let open = || {
            let name = format!("{uid}-{device:x}");
            Arc::new(ContextIndex::open(self.0.layout.clone(), name))
        };
        indexes.entry((uid, device)).or_insert_with(open).clone()
    }
}

impl ContextIndex {
    fn open(layout: Layout, name: String) -> Self {
        let bytes = disk::read(&layout.context().join(&name)).unwrap_or_default();
        let payload = disk::unseal(KIND, &bytes).unwrap_or_default();
        let entries = payload.chunks_exact(ENTRY).filter_map(decode).collect();
        Self { layout, name, state: Mutex::new(State { entries, dirty: false }) }
    }

    /// Returns what is known of a file in this state.
    pub fn get(&self, key: &StatKey) -> Option<Known> {
        let mut state = self.state.lock();
        let seen = state.entries.get_mut(key)?;
        seen.now = true;
        Some(seen.known)
    }

    /// Remembers a file, if it had been left alone for a while at `started`, when its reading began: 100 ms, or two
    /// seconds where its change time has no fraction. The state must be that of an `fstat` after the reading.
    pub fn put(&self, key: StatKey, known: Known, started: SystemTime) {
        let latest = time(key.mtime).max(time(key.ctime));
        let settled = if key.ctime.1 == 0 { SETTLED_WHOLE_SECONDS } else { SETTLED };
        if latest.checked_add(settled).is_some_and(|settled| settled < started) {
            let mut state = self.state.lock();
            state.entries.insert(key, Seen { known, now: true });
            state.dirty = true;
        }
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.state.lock().entries.len()
    }

    /// Tells whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the index if it has changed; to be called when a context has been read.
    ///
    /// # Errors
    /// The disk is full; the index stays in memory.
    pub fn save(&self) -> Result<()> {
        let mut state = self.state.lock();
        if !state.dirty {
            return Ok(());
        }
        if state.entries.len() > MOST {
            state.entries.retain(|_, seen| seen.now);
        }
        let mut bytes = Vec::with_capacity(state.entries.len() * ENTRY + 32);
        for (key, seen) in &state.entries {
            encode(&mut bytes, key, &seen.known);
        }
        let path = self.layout.context().join(&self.name);
        disk::replace(&path, self.layout.tmp(), &disk::seal(KIND, bytes), "store.context.rename", false)?;
        state.dirty = false;
        Ok(())
    }
}

/// Tells whether a file system's inode numbers and times can be trusted: it is on this machine and not made up by a
/// user-space process.
pub fn is_local_filesystem(fd: impl AsFd) -> bool {
    const REMOTE: [u64; 12] = [
        0x6969,      // NFS
        0x517b,      // SMB
        0xff53_4d42, // CIFS
        0xfe53_4d42, // SMB2
        0x6573_5546, // FUSE
        0x0102_1997, // 9P
        0x5346_414f, // AFS
        0x6b41_4653, // kAFS
        0x00c3_6400, // Ceph
        0x0bd0_0bd0, // Lustre
        0x4750_4653, // GPFS
        0x786f_4256, // VirtualBox shared folders
    ];
    rustix::fs::fstatfs(fd).is_ok_and(|s| !REMOTE.contains(&((s.f_type as u64) & 0xffff_ffff)))
}

fn time((seconds, nanos): (i64, u32)) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    base.and_then(|t| t.checked_add(Duration::from_nanos(u64::from(nanos)))).unwrap_or(UNIX_EPOCH)
}

fn encode(out: &mut Vec<u8>, key: &StatKey, known: &Known) {
    out.extend_from_slice(&key.ino.to_le_bytes());
    out.extend_from_slice(&key.size.to_le_bytes());
    for (seconds, nanos) in [key.mtime, key.ctime] {
        out.extend_from_slice(&seconds.to_le_bytes());
        out.extend_from_slice(&nanos.to_le_bytes());
    }
    out.extend_from_slice(known.digest.as_bytes());
    out.push(u8::from(known.plain));
}

fn decode(bytes: &[u8]) -> Option<(StatKey, Seen)> {
    let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let time_at = |at: usize| {
        let nanos = u32::from_le_bytes(bytes.get(at + 8..at + 12)?.try_into().ok()?);
        Some((u64_at(at)?.cast_signed(), nanos))
    };
    let key = StatKey { ino: u64_at(0)?, size: u64_at(8)?, mtime: time_at(16)?, ctime: time_at(28)? };
    let digest = Fingerprint::from_bytes(bytes.get(40..72)?.try_into().ok()?);
    let known = Known { digest, plain: *bytes.get(72)? == 1 };
    Some((key, Seen { known, now: false }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StoreConfig;

    fn known(bytes: &str) -> Known {
        Known { digest: Fingerprint::of(bytes), plain: bytes == "a" }
    }

    fn key(ino: u64, mtime: i64) -> StatKey {
        StatKey { ino, size: 5, mtime: (mtime, 7), ctime: (mtime, 9) }
    }

    #[test]
    fn only_settled_files_are_remembered_and_survive() {
        let dir = tempfile::tempdir().unwrap();
        let started = UNIX_EPOCH + Duration::from_secs(1000);
        {
            let store = Store::open(StoreConfig::new(dir.path().join("s"))).unwrap();
            let index = store.context_index(1, 2);
            index.put(key(1, 900), known("a"), started);
            index.put(StatKey { ctime: (999, 950_000_000), ..key(2, 900) }, known("b"), started);
            index.put(StatKey { ctime: (998, 0), ..key(4, 900) }, known("d"), started);
            index.put(StatKey { ctime: (999, 850_000_000), ..key(5, 900) }, known("e"), started);
            index.put(key(3, -5), known("c"), started);
            assert_eq!(index.len(), 3, "a file changed just before may change again unseen");
            index.save().unwrap();
        }
        let store = Store::open(StoreConfig::new(dir.path().join("s"))).unwrap();
        let index = store.context_index(1, 2);
        assert_eq!(index.get(&key(1, 900)), Some(known("a")));
        assert_eq!(index.get(&key(3, -5)), Some(known("c")));
        let put_back = StatKey { ctime: (950, 0), ..key(1, 900) };
        assert_eq!(index.get(&put_back), None, "an edit whose mtime was put back still has a new ctime");
        assert!(store.context_index(2, 2).is_empty());
    }

    #[test]
    fn a_damaged_index_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Store::open(StoreConfig::new(dir.path().join("s"))).unwrap();
        {
            let index = open().context_index(1, 2);
            index.put(key(1, 900), known("a"), UNIX_EPOCH + Duration::from_secs(1000));
            index.save().unwrap();
        }
        let path = dir.path().join("s/context/1-2");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[50] ^= 4;
        std::fs::write(&path, bytes).unwrap();
        assert!(open().context_index(1, 2).is_empty());
    }

    #[test]
    fn the_temporary_directory_is_local() {
        let dir = tempfile::tempdir().unwrap();
        assert!(is_local_filesystem(std::fs::File::open(dir.path()).unwrap()));
    }
}
