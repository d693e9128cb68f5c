//! What the core is told.

use kiln_stdx::Digest;

use super::graph::{TaskId, Ticket};
use crate::context::JobId;
use crate::key::KeyId;
use crate::keystore::{RecordRef, StoreId};
use crate::miss::{Difference, Gone, SlotRecord};
use crate::op::{CacheMap, OpError};
use crate::vertex::Edge;

/// Something that happened outside. Every task of an [`Effect`](super::Effect) is answered by exactly one event, also
/// after it was aborted.
pub(crate) enum Event<R> {
    /// A job begins.
    Open { job: JobId, stores: Vec<StoreId>, apart: bool },
    /// A job gets one more store.
    Import { job: JobId, store: StoreId },
    /// A job wants an edge.
    Want { job: JobId, ticket: Ticket, edge: Edge },
    /// A job does not want it any more.
    Withdraw { job: JobId, ticket: Ticket },
    /// A job ends.
    End { job: JobId },
    /// Answers `CacheMap`.
    Mapped { task: TaskId, outcome: Result<CacheMap, OpError> },
    /// Answers `ContentKey`.
    ContentKeyed { task: TaskId, outcome: Result<Option<Digest>, OpError> },
    /// Answers `Query`.
    Queried { task: TaskId, answers: Vec<Answer> },
    /// Answers `Records`.
    RecordsFound { task: TaskId, records: Vec<RecordRef>, gone: Option<Gone> },
    /// Answers `Load`.
    RecordLoaded { task: TaskId, outcome: LoadOutcome<R> },
    /// Answers `Recall`.
    Recalled { task: TaskId, record: Option<SlotRecord> },
    /// Answers `Explain`.
    Explained { task: TaskId, difference: Option<Difference> },
    /// Answers `Execute`.
    Executed { task: TaskId, outcome: Result<Vec<R>, OpError> },
    /// Answers `Save`.
    Saved { task: TaskId, record: Option<RecordRef> },
}

impl<R> Event<R> {
    /// Returns the task that the event answers.
    pub(crate) fn task(&self) -> Option<TaskId> {
        match self {
            Self::Open { .. } | Self::Import { .. } | Self::Want { .. } | Self::Withdraw { .. } | Self::End { .. } => {
                None
            }
            Self::Mapped { task, .. }
            | Self::ContentKeyed { task, .. }
            | Self::Queried { task, .. }
            | Self::RecordsFound { task, .. }
            | Self::RecordLoaded { task, .. }
            | Self::Recalled { task, .. }
            | Self::Explained { task, .. }
            | Self::Executed { task, .. }
            | Self::Saved { task, .. } => Some(*task),
        }
    }
}

/// A target that was found for question number `ask`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub ask: usize,
    pub key: KeyId,
    pub store: StoreId,
}

/// How the loading of a record ended.
pub(crate) enum LoadOutcome<R> {
    Hit(R),
    /// The record is to be forgotten.
    Gone(Gone),
    /// The store could not answer; the record stays.
    Failed(String),
}
