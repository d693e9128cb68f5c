//! Durability epochs. Nothing is synced file by file; what is published carries the epoch and the session (one opening
//! of the store) it was made in. Closing an epoch writes the whole file system back once. What an earlier session made
//! in an epoch that was never closed may have lost bytes, and is verified by digest before it is used.
//!
//! Sessions rather than boots decide, although a mere kill loses nothing: a copied disk image that is mounted on the
//! same running machine has lost what power loss would lose. The price is hashing what one broken-off build made.

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

#[derive(Serialize, Deserialize)]
struct Closed {
    closed: u64,
    boot: String,
}

pub(crate) struct Epochs {
    session: String,
    boot: String,
    current: AtomicU64,
    closed: AtomicU64,
    dirty: AtomicBool,
    closing: Mutex<()>,
}

impl Epochs {
    /// Reads the epoch file; without one every earlier epoch counts as open.
    pub fn open(layout: &Layout) -> Self {
        let closed = disk::read(&layout.epoch())
            .and_then(|bytes| serde_json::from_slice::<Closed>(disk::unseal(KIND, &bytes)?).ok())
            .map_or(0, |c| c.closed);
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            session: rand_id(),
            boot: boot.trim().to_owned(),
            current: AtomicU64::new(closed + 1),
            closed: AtomicU64::new(closed),
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

    /// Notes an epoch found in a record: new epochs come after it.
    pub fn saw(&self, stamp: &Stamp) {
        self.current.fetch_max(stamp.epoch + 1, Ordering::SeqCst);
    }

    /// Tells whether bytes published with this stamp may have been lost.
    pub fn is_suspect(&self, stamp: &Stamp) -> bool {
        stamp.session != self.session && stamp.epoch > self.closed.load(Ordering::SeqCst)
    }

    /// Writes everything back and closes the epoch; does nothing if nothing was published in it.
    pub fn close(&self, layout: &Layout, meta: &Meta) -> Result<()> {
        let _closing = self.closing.lock();
        if !self.dirty.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        // The next epoch begins before the sync: what still gets this epoch's stamp has its data written already.
        let epoch = self.current.fetch_add(1, Ordering::SeqCst);
        meta.flush();
        let result = disk::sync_filesystem(&layout.root).and_then(|()| {
            let closed = Closed { closed: epoch, boot: self.boot.clone() };
            let bytes = serde_json::to_vec(&closed).unwrap_or_default();
            disk::replace(&layout.epoch(), layout.tmp(), &disk::seal(KIND, bytes), "store.epoch.rename", false)
        });
        match result {
            Ok(()) => self.closed.store(epoch, Ordering::SeqCst),
            Err(_) => self.dirty.store(true, Ordering::SeqCst),
        }
        result
    }
}
