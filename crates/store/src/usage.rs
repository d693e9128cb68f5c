//! What the store holds, in the words of BuildKit's disk usage.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kiln_stdx::Digest;
use serde::{Deserialize, Serialize};

use crate::account::Accounts;
use crate::error::Result;
use crate::layer::LayerCell;
use crate::layout::LayerId;
use crate::record::{LayerRecord, RecordType};
use crate::store::{Inner, Store};

/// One thing that takes space: a layer with its blobs, a cache mount, or a blob that belongs to no layer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UsageRecord {
    /// Layer id, cache mount id, or digest of a blob.
    pub id: String,
    /// Ids of the records that this one needs.
    pub parents: Vec<String>,
    /// Seconds since 1970.
    pub created_at: u64,
    /// Seconds since 1970.
    pub last_used_at: u64,
    /// How often it was used.
    pub usage_count: u64,
    /// For people.
    pub description: String,
    /// What it is for.
    pub record_type: RecordType,
    /// Bytes of the disk: files of the layer, but for those that another layer had before, and blobs made of it.
    pub size: u64,
    /// A build or a lease holds it, or a layer that needs it.
    pub in_use: bool,
    /// Its content may change (cache mounts).
    pub mutable: bool,
    /// Its bytes also belong to a named image, so that removing it frees less.
    pub shared: bool,
    /// How long it took to make, where that is known.
    pub cost: Option<Duration>,
}

/// What the store takes, and how much of it could not go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// How many things take space.
    pub records: usize,
    /// Bytes of the records that builds or leases hold.
    pub held: u64,
    /// What the store takes.
    pub accounts: Accounts,
}

/// What a lease holds on to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    /// Layers; those below them are held, too.
    pub layers: Vec<LayerId>,
    /// Blobs.
    pub blobs: Vec<Digest>,
}

/// What is held, while usage is computed or things are pruned.
pub(crate) struct Held {
    /// Blobs of named images.
    pub pins: Arc<BTreeSet<Digest>>,
    layers: HashSet<LayerId>,
    pub blobs: HashSet<Digest>,
}

impl Store {
    /// Lists everything that takes space, apart from named images (see [`Store::images`]) and metadata.
    ///
    /// # Errors
    /// The image store cannot be read.
    pub fn usage(&self) -> Result<Vec<UsageRecord>> {
        // Nobody is shown what is about to go.
        self.released();
        self.0.mount_records(true);
        self.0.admit(0);
        let held = self.0.held()?;
        let mut records: Vec<UsageRecord> = self.0.records(&held, true).collect();
        records.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(records)
    }

    /// Returns how many records there are, how many bytes of them were held at some time while this was asked, and what the
    /// store took then. Builds go on meanwhile: what one has kept since is held in the second list only, what another has
    /// let go in the first.
    ///
    /// # Errors
    /// As [`Store::usage`].
    pub fn standing(&self) -> Result<Standing> {
        let before = self.usage()?;
        let accounts = self.accounts()?;
        let held = self.0.held()?;
        let (records, after) = (before.len(), self.0.records(&held, false));
        let mut sizes: HashMap<String, u64> = HashMap::new();
        for record in before.into_iter().chain(after).filter(|record| record.in_use) {
            let size = sizes.entry(record.id).or_default();
            *size = record.size.max(*size);
        }
        Ok(Standing { records, held: sizes.values().sum(), accounts })
    }

    /// Returns the bytes that count against the disk budget: all records and the metadata, in blocks of the disk.
    ///
    /// # Errors
    /// As [`Store::usage`].
    pub fn used_bytes(&self) -> Result<u64> {
        Ok(self.accounts()?.cache)
    }

    /// Returns free and total bytes of the store's file system.
    pub fn disk_space(&self) -> (u64, u64) {
        crate::disk::space(&self.0.layout.root)
    }

    /// Holds layers and blobs under a name until [`Store::delete_lease`], also over restarts. Lost only with the
    /// metadata.
    pub fn put_lease(&self, name: &str, lease: &Lease) {
        if let Ok(value) = serde_json::to_vec(lease) {
            self.0.meta.table("lease").put(name.as_bytes(), &value);
        }
    }

    /// Lets go of what a lease holds.
    pub fn delete_lease(&self, name: &str) {
        self.0.meta.table("lease").delete(name.as_bytes());
    }

    /// Returns all leases by name.
    pub fn leases(&self) -> Vec<(String, Lease)> {
        let rows = self.0.meta.table("lease").scan_prefix(b"");
        rows.into_iter()
            .filter_map(|(name, value)| Some((String::from_utf8(name).ok()?, serde_json::from_slice(&value).ok()?)))
            .collect()
    }
}

impl Inner {
    pub(crate) fn held(&self) -> Result<Held> {
        let mut held = Held { pins: self.pinned_blobs()?, layers: HashSet::new(), blobs: HashSet::new() };
        for (_, value) in self.meta.table("lease").scan_prefix(b"") {
            let Ok(lease) = serde_json::from_slice::<Lease>(&value) else { continue };
            held.layers.extend(lease.layers);
            held.blobs.extend(lease.blobs);
        }
        let layers = self.layers.lock();
        let chains: Vec<LayerId> = held
            .layers
            .iter()
            .filter_map(|id| layers.by_id.get(id))
            .flat_map(|cell| cell.record().chain.clone())
            .collect();
        drop(layers);
        held.layers.extend(chains);
        Ok(held)
    }

    /// Returns all that takes space; with `measure` cache mounts that are in use are measured, too.
    pub(crate) fn records(&self, held: &Held, measure: bool) -> impl Iterator<Item = UsageRecord> + use<> {
        self.layer_usage(held).into_iter().chain(self.mount_usage(measure)).chain(self.loose_blobs(held))
    }

    fn layer_usage(&self, held: &Held) -> Vec<UsageRecord> {
        let blobs = self.blob_sizes();
        // The blob of two layers counts for the first.
        let mut counted = HashSet::new();
        let layers = self.layers.lock();
        let mut cells: Vec<&Arc<LayerCell>> = layers.by_id.values().collect();
        cells.sort_by_key(|cell| cell.id);
        cells
            .into_iter()
            .map(|cell| {
                let record = cell.record();
                let mine = record.variants.iter().map(|v| v.descriptor.digest);
                let mine: Vec<Digest> = mine.filter(|d| blobs.contains_key(d)).collect();
                let shared = mine.iter().any(|d| held.pins.contains(d));
                let blob_bytes: u64 = mine
                    .iter()
                    .filter(|d| !held.pins.contains(d) && counted.insert(**d))
                    .filter_map(|d| blobs.get(d))
                    .sum();
                let in_use = Arc::strong_count(cell) > 1 || held.layers.contains(&cell.id);
                layer_record(cell, &record, blob_bytes, in_use, shared)
            })
            .collect()
    }

    /// With `measure` those that are in use are measured, too.
    fn mount_usage(&self, measure: bool) -> Vec<UsageRecord> {
        let record = |(record, in_use): (crate::mounts::MountRecord, bool)| UsageRecord {
            id: record.id,
            parents: Vec::new(),
            created_at: record.created,
            last_used_at: record.used,
            usage_count: record.uses,
            description: record.description,
            record_type: RecordType::ExecCacheMount,
            size: record.size.unwrap_or(0),
            in_use,
            mutable: true,
            shared: false,
            cost: None,
        };
        self.mount_records(measure).into_iter().map(record).collect()
    }

    /// Blobs in the table that no layer and no image has.
    fn loose_blobs(&self, held: &Held) -> Vec<UsageRecord> {
        let owned: HashSet<Digest> = {
            let layers = self.layers.lock();
            layers
                .by_id
                .values()
                .flat_map(|c| c.record().variants.iter().map(|v| v.descriptor.digest).collect::<Vec<_>>())
                .collect()
        };
        let blobs = self.blobs.lock();
        let loose = blobs.values().filter(|c| !owned.contains(&c.digest) && !held.pins.contains(&c.digest));
        loose
            .map(|cell| {
                let row = cell.row.lock();
                UsageRecord {
                    id: cell.digest.to_string(),
                    created_at: row.created,
                    last_used_at: row.used,
                    usage_count: 1,
                    description: "blob".into(),
                    record_type: RecordType::Regular,
                    size: row.size,
                    in_use: Arc::strong_count(cell) > 1 || held.blobs.contains(&cell.digest),
                    ..UsageRecord::default()
                }
            })
            .collect()
    }

    fn blob_sizes(&self) -> HashMap<Digest, u64> {
        self.blobs.lock().values().map(|cell| (cell.digest, cell.row.lock().size)).collect()
    }
}

fn layer_record(cell: &LayerCell, record: &LayerRecord, blob_bytes: u64, in_use: bool, shared: bool) -> UsageRecord {
    let files = if record.unpacked.is_some() { cell.disk.load(Ordering::Relaxed) } else { 0 };
    UsageRecord {
        id: record.id.to_string(),
        parents: record.chain.last().map(ToString::to_string).into_iter().collect(),
        created_at: record.created,
        last_used_at: cell.used.load(Ordering::Relaxed),
        usage_count: cell.uses.load(Ordering::Relaxed),
        description: record.description.clone(),
        record_type: record.record_type,
        size: files.saturating_add(blob_bytes),
        in_use,
        mutable: false,
        shared,
        cost: record.cost_ms.map(Duration::from_millis),
    }
}
