//! Where an export reports how far it is.

use std::sync::Arc;

/// A sink of the statuses of one export vertex. Calls are cheap and come from several threads.
pub trait ExportProgress: Send + Sync {
    /// A status begins; `total` in bytes where it is known, else 0.
    fn started(&self, id: &str, total: u64);
    /// Bytes so far.
    fn advanced(&self, id: &str, current: u64, total: u64);
    /// A status ends, well or not.
    fn completed(&self, id: &str);
    /// Something to tell the user that does not fail the build.
    fn warn(&self, message: &str);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl ExportProgress for NoProgress {
    fn started(&self, _: &str, _: u64) {}
    fn advanced(&self, _: &str, _: u64, _: u64) {}
    fn completed(&self, _: &str) {}
    fn warn(&self, _: &str) {}
}

/// One status under way; dropping it completes it.
pub(crate) struct Status {
    sink: Arc<dyn ExportProgress>,
    id: String,
    current: u64,
    total: u64,
    told: u64,
}

/// Bytes between two reports.
const GRAIN: u64 = 1 << 20;

impl Status {
    pub(crate) fn start(sink: &Arc<dyn ExportProgress>, id: impl Into<String>, total: u64) -> Self {
        let id = id.into();
        sink.started(&id, total);
        Self { sink: sink.clone(), id, current: 0, total, told: 0 }
    }

    pub(crate) fn add(&mut self, bytes: u64) {
        self.current += bytes;
        if self.current >= self.told + GRAIN {
            self.told = self.current;
            self.sink.advanced(&self.id, self.current, self.total);
        }
    }
}

impl Status {
    /// Takes bytes back that were counted and have to be moved again.
    pub(crate) fn take_back(&mut self, bytes: u64) {
        self.current = self.current.saturating_sub(bytes);
        self.told = self.told.min(self.current);
    }
}

impl Drop for Status {
    fn drop(&mut self) {
        if self.current > self.told {
            self.sink.advanced(&self.id, self.current, self.total);
        }
        self.sink.completed(&self.id);
    }
}
