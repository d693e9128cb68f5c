//! What is on disk: blobs, layers and chains of them, what is cached about them, named images, cache mounts; their
//! use, their checking, their repair and their removal.
//!
//! Crash-only: there is no clean shutdown that matters, and no damage that fails a build. What was deleted, cut, flipped
//! or never reached the disk is a miss and a line in the [`RepairLog`]; what can be made again from what is left, is.
//!
//! Invariants:
//! - A file of the store is never written again once it has its name: change is a new file and a rename.
//! - Everything that is believed was checked: by stat, since the build that uses it began; by digest where stat
//!   differs, and where the last session ended before its epoch was closed.
//! - Where a budget is set, the cache takes no more than that at any moment, or nothing that could be removed: whoever
//!   publishes bytes asks first.
//! - What a value of [`ImmutableRef`], [`Layer`], [`Blob`] or [`CacheMount`] names is not removed while the value lives,
//!   except for damage; then using it fails with an error of the class damage.

mod account;
mod arrival;
mod blob;
mod broom;
mod budget;
mod check;
mod contenthash;
mod context_index;
mod disk;
mod draft;
mod epoch;
mod error;
mod evicted;
mod filter;
mod flat;
mod floor;
mod images;
mod layer;
mod layout;
mod local;
mod lock;
mod lru;
mod meta;
mod mounts;
mod partial;
mod prune;
mod record;
mod refs;
mod repair;
mod room;
mod store;
#[cfg(test)]
mod testing;
mod unpack;
mod usage;
mod verify;

pub use account::Accounts;
pub use arrival::ArrivingReader;
pub use blob::{Blob, Ingest, VerifyingReader};
pub use budget::{Overrun, Reservation};
pub use contenthash::{Changed, ContentSelector, FileSum, Listing};
pub use context_index::{ContextIndex, Known, StatKey, is_local_filesystem};
pub use draft::LayerDraft;
pub use error::{Result, StoreError};
pub use evicted::Evicted;
pub use filter::Filters;
pub use images::Image;
pub use layer::Layer;
pub use layout::{LayerId, RefId};
pub use meta::{DumpedRow, Meta, Table};
pub use mounts::{CacheMount, Mark, MountFile, MountInfo, MountKey, MountOwner, MountReading, Sharing, WriteEnd};
pub use prune::{PrunePolicy, Pruned};
pub use record::{LayerInfo, LazyLayer, RecordType};
pub use refs::ImmutableRef;
pub use repair::{RepairAction, RepairEvent, RepairLog};
pub use room::{Admitted, Room};
pub use store::{FORMAT, Store, StoreConfig};
pub use unpack::{BlobOptions, LayerBlob};
pub use usage::{Lease, Standing, UsageRecord};
pub use verify::{Problem, VerifyReport};
