//! The last state of each client's local directory, so that the next build of it copies only what changed.

use kiln_stdx::{Digest, StableHasher};

use crate::layout::LayerId;
use crate::refs::ImmutableRef;
use crate::store::Store;

fn key(name: &str, shared_key: &str) -> Digest {
    StableHasher::new("kiln.local.v1").str("name", name).str("shared-key", shared_key).finish()
}

impl Store {
    /// Returns what [`Store::set_local_ref`] set last for that name and shared key, if it is still here. An unchanged
    /// directory is this very ref; a changed one is a new layer linked to what this one has.
    pub fn local_ref(&self, name: &str, shared_key: &str) -> Option<ImmutableRef> {
        let value = self.0.meta.table("local").get(key(name, shared_key).as_bytes())?;
        let ids: Vec<LayerId> = serde_json::from_slice(&value).ok()?;
        self.ref_of(&ids)
    }

    /// Remembers the state of a client's local directory.
    pub fn set_local_ref(&self, name: &str, shared_key: &str, r: &ImmutableRef) {
        if let Ok(value) = serde_json::to_vec(&r.layer_ids()) {
            let table = self.0.meta.table("local");
            let key = key(name, shared_key);
            if table.get(key.as_bytes()).as_deref() != Some(&value) {
                table.put(key.as_bytes(), &value);
            }
        }
    }
}
