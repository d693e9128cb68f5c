//! Solves edges of a graph of opaque operations.

mod context;
mod core;
mod drive;
mod error;
mod event;
mod export;
mod job;
mod key;
mod keystore;
mod memory;
mod miss;
mod op;
#[cfg(test)]
mod sim;
mod vertex;

pub use context::{JobContext, JobId, OpContext};
pub use error::{LoadError, SolveError};
pub use event::{CachedBy, EventSink, VertexChange, VertexEvent};
pub use export::{ExportGraph, ExportLink, ExportNode, ExportOptions};
pub use job::{Job, JobSpec, Limits, Origin, Solved, Solver};
pub use key::{KeyId, KeyRecord, Link, LinkFrom, OutputKey, content_key_id, derived};
pub use keystore::{
    Backlink, KeyStore, KeyStoreError, Loaded, RecordId, RecordRef, RecordsFound, Save, StoreId, Target,
};
pub use memory::MemoryKeyStore;
pub use miss::{Eviction, FieldChange, Gone, MissReason, SlotInput, SlotRecord};
pub use op::{CacheMap, DepMap, KeyLife, Op, OpError, OpErrorKind};
pub use vertex::{Bound, CacheUse, Edge, StepSlot, Vertex, VertexDigest, VertexOptions};
