//! The log of damage found and of what was done about it: a ring for `debug`, a trace line, and a callback.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kiln_stdx::Clock;
use parking_lot::Mutex;

/// How many events are remembered.
const RING: usize = 512;

/// What was done about damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepairAction {
    /// It is as it was.
    Repaired,
    /// It was dropped; who needs it makes it again.
    Dropped,
    /// The file was moved to `damaged/` and a new one started.
    MovedAside,
}

impl fmt::Display for RepairAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Repaired => "repaired",
            Self::Dropped => "dropped",
            Self::MovedAside => "moved aside",
        })
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairEvent {
    /// Seconds since 1970.
    pub time: u64,
    /// What was damaged: `layer <id>`, `blob <digest>`, `meta.db`.
    pub subject: String,
    /// In which way.
    pub damage: String,
    /// What was done.
    pub action: RepairAction,
}

type Callback = Arc<dyn Fn(&RepairEvent) + Send + Sync>;

/// The log; clones share it.
#[derive(Clone)]
pub struct RepairLog(Arc<Inner>);

struct Inner {
    clock: Arc<dyn Clock>,
    ring: Mutex<VecDeque<RepairEvent>>,
    total: AtomicU64,
    callback: Mutex<Option<Callback>>,
}

impl RepairLog {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner { clock, ring: Mutex::default(), total: AtomicU64::new(0), callback: Mutex::new(None) }))
    }

    /// Calls `callback` at every later event, on the thread that found the damage.
    pub fn on_event(&self, callback: impl Fn(&RepairEvent) + Send + Sync + 'static) {
        *self.0.callback.lock() = Some(Arc::new(callback));
    }

    /// Returns the remembered events, oldest first.
    pub fn events(&self) -> Vec<RepairEvent> {
        self.0.ring.lock().iter().cloned().collect()
    }

    /// Returns how many events there have been.
    pub fn total(&self) -> u64 {
        self.0.total.load(Ordering::SeqCst)
    }

    /// Returns the remembered events after the first `total` ones.
    pub fn since(&self, total: u64) -> Vec<RepairEvent> {
        let ring = self.0.ring.lock();
        let new = usize::try_from(self.total().saturating_sub(total)).unwrap_or(RING).min(ring.len());
        ring.iter().skip(ring.len() - new).cloned().collect()
    }

    pub(crate) fn add(&self, subject: impl Into<String>, damage: impl Into<String>, action: RepairAction) {
        let event = RepairEvent { time: self.0.clock.unix(), subject: subject.into(), damage: damage.into(), action };
        tracing::warn!(subject = event.subject, damage = event.damage, action = %event.action, "store damage");
        {
            let mut ring = self.0.ring.lock();
            if ring.len() == RING {
                ring.pop_front();
            }
            ring.push_back(event.clone());
            self.0.total.fetch_add(1, Ordering::SeqCst);
        }
        let callback = self.0.callback.lock().clone();
        if let Some(callback) = callback {
            callback(&event);
        }
    }
}
