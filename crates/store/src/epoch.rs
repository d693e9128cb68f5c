//! Durability epochs. Nothing is synced file by file; what is published carries the epoch and the session (one opening
//! of the store) it was made in. Closing an epoch writes the whole file system back once. What an earlier session made
//! in an epoch that was never closed may have lost bytes, and is verified by digest before it is used. That it was closed is
//! noted for each session: a later one that closes its own epochs knows nothing of what was lost before.
//!
//! Sessions rather than boots decide, although a mere kill loses nothing: a copied disk image that is mounted on the
//! same running machine has lost what power loss would lose. The price is hashing what one broken-off build made.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kiln_stdx::rand_id;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::disk;
use crate::error::Result;
use crate::layout::Layout;
use crate::meta::Meta;

const KIND: &str = "kiln.epoch.v1";

/// When and by whom something was published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    pub epoch: u64,
    pub session: String,
    /// The kernel's boot id, for whoever reads the record.
    pub boot: String,
}

/// The epoch file.
#[derive(Default, Serialize, Deserialize)]
struct Closed {
    /// The last epoch that was closed, of whatever session, when they were not told apart yet.
    closed: u64,
    boot: String,
    /// The last epoch that each session has closed, of those that have made something that is here.
    #[serde(default)]
    sessions: BTreeMap<String, u64>,
}

pub(crate) struct Epochs {
    session: String,
    boot: String,
    current: AtomicU64,
    /// See [`Closed`].
    before: u64,
    sessions: Mutex<BTreeMap<String, u64>>,
    dirty: AtomicBool,
    closing: Mutex<()>,
}

impl Epochs {
    /// Reads the epoch file; without one every earlier epoch counts as open.
    pub fn open(layout: &Layout) -> Self {
        let closed = disk::read(&layout.epoch())
            .and_then(|bytes| serde_json::from_slice::<Closed>(disk::unseal(KIND, &bytes)?).ok())
            .unwrap_or_default();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            session: rand_id(),
            boot: boot.trim().to_owned(),
            current: AtomicU64::new(closed.closed + 1),
            before: closed.closed,
            sessions: Mutex::new(closed.sessions),
            dirty: AtomicBool::new(false),
            closing: Mutex::new(()),
        }
    }

    /// Returns the stamp of what is published now. Its data must have been written already.
    pub fn stamp(&self) -> Stamp {
        self.dirty.store(true, Ordering::SeqCst);
        let epoch = self.current.load(Ordering::SeqCst);
        Stamp { epoch, session: self.session.clone(), boot: self.boot.clone() }
    }

    /// Tells whether bytes published with this stamp may have been lost.
    pub fn is_suspect(&self, stamp: &Stamp) -> bool {
        stamp.session != self.session
            && stamp.epoch > self.before
            && self.sessions.lock().get(&stamp.session).is_none_or(|closed| stamp.epoch > *closed)
    }

    /// Writes everything back and closes the epoch; does nothing if nothing was published in it. `makers` tells which
    /// sessions have made something that is here.
    pub fn close(&self, layout: &Layout, meta: &Meta, makers: impl FnOnce() -> BTreeSet<String>) -> Result<()> {
        let _closing = self.closing.lock();
        if !self.dirty.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        // The next epoch begins before the sync: what still gets this epoch's stamp has its data written already.
        let epoch = self.current.fetch_add(1, Ordering::SeqCst);
        meta.flush();
        let makers = makers();
        let mut sessions = self.sessions.lock().clone();
        sessions.retain(|session, _| makers.contains(session));
        sessions.insert(self.session.clone(), epoch);
        let result = disk::sync_filesystem(&layout.root).and_then(|()| {
            let closed = Closed { closed: self.before, boot: self.boot.clone(), sessions: sessions.clone() };
            let bytes = serde_json::to_vec(&closed).unwrap_or_default();
            disk::replace(&layout.epoch(), layout.tmp(), &disk::seal(KIND, bytes), "store.epoch.rename", false)
        });
        match result {
            Ok(()) => *self.sessions.lock() = sessions,
            Err(_) => self.dirty.store(true, Ordering::SeqCst),
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(dir: &tempfile::TempDir) -> (Epochs, Layout, Meta) {
        let layout = Layout { root: dir.path().to_owned() };
        let meta = Meta::open(
            layout.meta(),
            layout.damaged(),
            crate::repair::RepairLog::new(std::sync::Arc::new(kiln_stdx::SystemClock)),
        );
        (Epochs::open(&layout), layout, meta)
    }

    fn makers(stamps: &[&Stamp]) -> BTreeSet<String> {
        stamps.iter().map(|stamp| stamp.session.clone()).collect()
    }

    #[test]
    fn one_session_closes_nothing_of_another() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["tmp", "damaged"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let (first, layout, meta) = opened(&dir);
        let kept = first.stamp();
        first.close(&layout, &meta, || makers(&[&kept])).unwrap();
        let lost = first.stamp();
        assert!(!first.is_suspect(&lost), "of its own it knows that it was written");
        drop((first, meta));
        let (second, layout, meta) = opened(&dir);
        assert!(!second.is_suspect(&kept) && second.is_suspect(&lost));
        let own = second.stamp();
        second.close(&layout, &meta, || makers(&[&kept, &lost, &own])).unwrap();
        assert!(second.is_suspect(&lost));
        drop((second, meta));
        let (third, layout, meta) = opened(&dir);
        assert!(!third.is_suspect(&kept) && third.is_suspect(&lost) && !third.is_suspect(&own));
        // Of whom nothing is left needs not be remembered.
        let last = third.stamp();
        third.close(&layout, &meta, || makers(&[&last])).unwrap();
        assert!(third.is_suspect(&kept) && !third.is_suspect(&last));
    }

    #[test]
    fn an_epoch_file_from_before_sessions_were_told_apart_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = br#"{"closed":7,"boot":"b"}"#.to_vec();
        let layout = Layout { root: dir.path().to_owned() };
        std::fs::write(layout.epoch(), disk::seal(KIND, bytes)).unwrap();
        let epochs = Epochs::open(&layout);
        let of = |epoch| Stamp { epoch, session: "old".into(), boot: "b".into() };
        assert!(!epochs.is_suspect(&of(7)) && epochs.is_suspect(&of(8)));
        assert_eq!(epochs.stamp().epoch, 8);
    }
}
