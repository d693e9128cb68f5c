//! Where every call of an operation and of the key store waits until the simulator lets it go on.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

#[derive(Default)]
pub struct Gate(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    next: u64,
    waiting: BTreeMap<u64, (String, oneshot::Sender<()>)>,
    /// Calls that are at work on another thread.
    busy: usize,
    /// Grows whenever something happens.
    changes: u64,
}

/// A call that is at work on another thread, until it is dropped.
pub struct Busy<'a>(&'a Gate);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.0.lock();
        inner.busy -= 1;
        inner.changes += 1;
    }
}

impl Gate {
    /// Waits to be let through; false if the call was called off.
    pub async fn pass(&self, what: String, cancel: &CancellationToken) -> bool {
        let (id, open) = {
            let mut inner = self.0.lock();
            let (sender, open) = oneshot::channel();
            inner.next += 1;
            inner.changes += 1;
            let id = inner.next;
            inner.waiting.insert(id, (what, sender));
            (id, open)
        };
        tokio::select! {
            biased;
            opened = open => opened.is_ok(),
            () = cancel.cancelled() => {
                let mut inner = self.0.lock();
                inner.waiting.remove(&id);
                inner.changes += 1;
                false
            }
        }
    }

    /// Notes that something happened.
    pub fn touch(&self) {
        self.0.lock().changes += 1;
    }

    /// Notes that a call goes on on another thread.
    pub fn busy(&self) -> Busy<'_> {
        let mut inner = self.0.lock();
        inner.busy += 1;
        inner.changes += 1;
        Busy(self)
    }

    /// Returns what waits.
    pub fn waiting(&self) -> Vec<u64> {
        self.0.lock().waiting.keys().copied().collect()
    }

    /// Lets a call go on and returns what it is.
    pub fn release(&self, id: u64) -> Option<String> {
        let mut inner = self.0.lock();
        inner.changes += 1;
        let (what, sender) = inner.waiting.remove(&id)?;
        // Whoever waited may have been dropped since.
        let _ = sender.send(());
        Some(what)
    }

    /// Waits until nothing goes on by itself any more.
    pub async fn settle(&self) {
        let (mut still, mut last) = (0, 0);
        while still < 12 {
            tokio::task::yield_now().await;
            let (changes, busy) = {
                let inner = self.0.lock();
                (inner.changes, inner.busy)
            };
            if busy > 0 {
                std::thread::yield_now();
            }
            still = if busy == 0 && changes == last { still + 1 } else { 0 };
            last = changes;
        }
    }
}
