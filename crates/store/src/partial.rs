//! Blobs that broke off on their way: what came is kept, so that the next attempt goes on where the last one ended.
//!
//! Such a file is only a guess: a power cut may have left anything in it. Who goes on with one and finds the digest wrong
//! starts over ([`Ingest::discard`]).

use std::collections::hash_map::Entry;
use std::fs;
use std::io::{Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kiln_stdx::Digest;

use crate::arrival::Arrival;
use crate::blob::{Hashers, Ingest};
use crate::error::{IoContext, Result};
use crate::layout::Layout;
use crate::store::{Inner, Store};

/// Fewer bytes are not worth keeping.
pub(crate) const WORTH: u64 = 1 << 20;
/// How long a beginning waits for its next attempt.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Bytes read at once.
const PIECE: usize = 256 << 10;

/// The right to write one partial file. While it lives nobody else gets it, and what comes can be read.
pub(crate) struct Claim {
    store: Store,
    digest: Digest,
    pub arrival: Arc<Arrival>,
}

impl Claim {
    fn take(store: &Store, digest: Digest) -> Option<Self> {
        let mut partials = store.0.partials.lock();
        let Entry::Vacant(free) = partials.entry(digest) else { return None };
        let arrival = free.insert(Arc::default()).clone();
        Some(Self { store: store.clone(), digest, arrival })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.store.0.partials.lock().remove(&self.digest);
        self.arrival.over();
    }
}

impl Store {
    /// Begins a blob of this digest and size as [`Store::ingest`] does, or goes on with one that broke off: then
    /// [`Ingest::written`] is not 0 at the start. What is written of it is kept if it breaks off again.
    ///
    /// # Errors
    /// The file cannot be created or read.
    pub fn resume(&self, digest: Digest, size: u64) -> Result<Ingest> {
        let Some(claim) = Claim::take(self, digest) else { return self.ingest(Some(digest), Some(size)) };
        let path = self.0.layout.partial(&digest);
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).at("create", &path)?;
        let mut hashers = Hashers::new();
        let mut written = 0;
        let mut piece = vec![0; PIECE];
        loop {
            let n = file.read(&mut piece).at("read", &path)?;
            hashers.update(&piece[..n]);
            written += n as u64;
            if n == 0 {
                break;
            }
        }
        if written >= size {
            file.set_len(0).and_then(|()| file.rewind()).at("truncate", &path)?;
            (written, hashers) = (0, Hashers::new());
        }
        claim.arrival.written(written);
        Ok(Ingest::resumed(self, path, file, hashers, written, (digest, size), claim))
    }
}

impl Inner {
    /// Removes beginnings that nobody is going on with, and returns their bytes.
    pub(crate) fn drop_partials(&self) -> u64 {
        let bytes = self.idle_partials(|entry| fs::remove_file(entry.path()).is_ok());
        self.files_changed();
        bytes
    }

    /// Returns the bytes of beginnings that nobody is going on with.
    pub(crate) fn partial_bytes(&self) -> u64 {
        self.idle_partials(|_| true)
    }

    fn idle_partials(&self, counts: impl Fn(&fs::DirEntry) -> bool) -> u64 {
        let claimed = self.partials.lock();
        let mut bytes = 0;
        for entry in fs::read_dir(self.layout.partials()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let digest = name.to_str().and_then(|name| format!("sha256:{name}").parse::<Digest>().ok());
            if digest.is_some_and(|digest| claimed.contains_key(&digest)) {
                continue;
            }
            let size = entry.metadata().map_or(0, |meta| meta.len());
            if counts(&entry) {
                bytes += size;
            }
        }
        bytes
    }
}

/// Removes beginnings that nobody went on with for long; for when a store is opened.
pub(crate) fn sweep(layout: &Layout) {
    let now = SystemTime::now();
    for entry in fs::read_dir(layout.partials()).into_iter().flatten().flatten() {
        let touched = entry.metadata().and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        if now.duration_since(touched).unwrap_or_default() > KEPT {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::{PrunePolicy, StoreConfig};

    fn data() -> Vec<u8> {
        (0..3 << 20).map(|i: u32| (i * 7 % 251) as u8).collect()
    }

    #[test]
    fn a_blob_goes_on_where_it_broke_off() {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig::new(dir.path());
        let (data, half) = (data(), 2 << 20);
        let (digest, size) = (Digest::of(&data), data.len() as u64);
        let store = Store::open(config.clone()).unwrap();
        let mut ingest = store.resume(digest, size).unwrap();
        assert_eq!(ingest.written(), 0);
        ingest.write_all(&data[..half]).unwrap();
        let mut other = store.resume(digest, size).unwrap();
        assert_eq!(other.written(), 0, "one at a time has the beginning");
        other.write_all(b"x").unwrap();
        drop((ingest, other, store));

        let store = Store::open(config).unwrap();
        let mut ingest = store.resume(digest, size).unwrap();
        assert_eq!(ingest.written(), half as u64);
        ingest.write_all(&data[half..]).unwrap();
        assert_eq!(ingest.commit().unwrap().digest(), digest);
        assert_eq!(store.read_blob(&digest, size).unwrap(), data);
        assert_eq!(fs::read_dir(dir.path().join("partial")).unwrap().count(), 0);
    }

    #[test]
    fn wrong_and_small_beginnings_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(StoreConfig::new(dir.path())).unwrap();
        let (digest, size) = (Digest::of(b"something else"), 2 << 20);
        let write = |bytes: &[u8]| {
            let mut ingest = store.resume(digest, size).unwrap();
            assert_eq!(ingest.written(), 0);
            ingest.write_all(bytes).unwrap();
            ingest
        };
        drop(write(&[1; 1000]));
        assert!(write(&vec![1; 2 << 20]).commit().is_err());
        write(&vec![1; 3 << 19]).discard();
        drop(write(&vec![1; 3 << 19]));
        assert_eq!(fs::read_dir(dir.path().join("partial")).unwrap().count(), 1);
        let pruned = store.prune(&PrunePolicy::default(), |_| {}).unwrap();
        assert_eq!((pruned.bytes, pruned.records), (3 << 19, 0));
        assert_eq!(fs::read_dir(dir.path().join("partial")).unwrap().count(), 0);
    }
}
