//! Marks on cache mounts whose last writer did not end as it should have: their content may be half written.

use kiln_oci::Platform;
use serde::{Deserialize, Serialize};

use super::{CacheMount, MountRecord};

/// Why a cache mount may be damaged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// What happened to its last writer: `was killed by signal 9`.
    pub why: String,
    /// When, in seconds since 1970.
    pub at: u64,
}

/// How a step that wrote to a cache mount ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteEnd<'a> {
    /// As it should: a mark is taken away.
    Well,
    /// It failed by itself. What programs leave when they fail is their own matter.
    Failed,
    /// In the middle of something: killed, called off, out of space. The words complete `the last writer ...`.
    CutOff(&'a str),
}

impl CacheMount {
    /// Returns what steps call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns why its content may be damaged, as it was when it was taken.
    pub fn mark(&self) -> Option<&Mark> {
        self.mark.as_ref()
    }

    /// Records that a step is about to write, so that an engine that is killed meanwhile leaves a mark.
    pub fn begin_write(&mut self) {
        if std::mem::replace(&mut self.writing, true) {
            return;
        }
        let mut mounts = self.store.0.mounts.mounts.lock();
        let Some(state) = mounts.get_mut(&self.id) else { return };
        state.writers += 1;
        state.record.writing = true;
        // On a full disk the mark is kept in memory only.
        let _ = self.store.0.write_mount(&state.record);
    }

    /// Records how the step ended; without [`CacheMount::begin_write`] before it nothing is.
    pub fn end_write(&mut self, end: WriteEnd<'_>) {
        if !std::mem::replace(&mut self.writing, false) {
            return;
        }
        let now = self.store.0.clock.unix();
        let mut mounts = self.store.0.mounts.mounts.lock();
        let Some(state) = mounts.get_mut(&self.id) else { return };
        state.writers = state.writers.saturating_sub(1);
        state.record.writing = state.writers > 0;
        match end {
            // A mark that came while the step ran tells of another writer.
            WriteEnd::Well if state.record.mark == self.mark => state.record.mark = None,
            WriteEnd::Well | WriteEnd::Failed => {}
            WriteEnd::CutOff(why) => state.record.mark = Some(Mark { why: why.to_owned(), at: now }),
        }
        let _ = self.store.0.write_mount(&state.record);
    }
}

/// Returns a record that the store has opened with: marked when its writer went with the engine, names filled in where an
/// older engine knew none.
pub(super) fn read_back(mut record: MountRecord, now: u64) -> MountRecord {
    if std::mem::take(&mut record.writing) {
        record.mark = Some(Mark { why: "was cut off when the engine ended".to_owned(), at: now });
    }
    if !record.key.starts_with('\0') && record.name.is_empty() {
        let name = record.description.strip_prefix("cached mount ").unwrap_or(&record.key);
        record.name = name.to_owned();
        record.platform = Platform::host().to_string();
    }
    record
}
