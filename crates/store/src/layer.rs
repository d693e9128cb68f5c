//! Layers: commit of drafts by rename, loading at open, and the handles that keep them from GC.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kiln_oci::{ChainId, Descriptor, DiffId, chain_ids};
use kiln_snapshot::LayerManifest;
use kiln_stdx::{Digest, fault};
use parking_lot::{Mutex, RwLock};

use crate::account;
use crate::blob::USE_GRAIN;
use crate::budget::LetGo;
use crate::disk;
use crate::draft::LayerDraft;
use crate::error::{IoContext, Result, StoreError};
use crate::layout::{LayerDir, LayerId};
use crate::record::{LayerInfo, LayerRecord, LazyLayer, RecordType, Unpacked, Variant, split_nanos};
use crate::refs::ImmutableRef;
use crate::repair::RepairAction;
use crate::store::{Inner, LayerTable, Store};

pub(crate) struct LayerCell {
    pub id: LayerId,
    record: RwLock<Arc<LayerRecord>>,
    /// Unix seconds of the last use, and how often it was used.
    pub used: AtomicU64,
    pub uses: AtomicU64,
    /// Bytes of the disk that its directory counts for.
    pub disk: AtomicU64,
    /// When its files were last found good, in nanoseconds of the clock; 0 is never.
    pub checked: AtomicU64,
    /// Set when it was dropped or pruned: handles that still live must not use it.
    pub gone: AtomicBool,
    /// Held by whoever unpacks, repairs, verifies or archives it: one at a time.
    pub work: Mutex<()>,
}

impl LayerCell {
    fn new(record: LayerRecord, used: u64, uses: u64) -> Arc<Self> {
        Arc::new(Self {
            id: record.id,
            record: RwLock::new(Arc::new(record)),
            used: AtomicU64::new(used),
            uses: AtomicU64::new(uses),
            disk: AtomicU64::new(0),
            checked: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            work: Mutex::new(()),
        })
    }

    pub fn record(&self) -> Arc<LayerRecord> {
        self.record.read().clone()
    }
}

/// A layer of the store. While a value of this type lives, GC leaves the layer alone.
#[derive(Clone)]
pub struct Layer {
    pub(crate) cell: Arc<LayerCell>,
    _let_go: LetGo,
}

impl Layer {
    pub(crate) fn new(cell: Arc<LayerCell>) -> Self {
        Self { cell, _let_go: LetGo }
    }

    /// Its id.
    pub fn id(&self) -> LayerId {
        self.cell.id
    }

    /// Tells whether its files are here. If not, [`Store::unpack`] it before use.
    pub fn is_unpacked(&self) -> bool {
        self.cell.record().unpacked.is_some()
    }

    /// Tells whether it has been dropped for damage or pruned since this handle was taken.
    pub fn is_gone(&self) -> bool {
        self.cell.gone.load(Ordering::Acquire)
    }

    /// The layers that it was made on, bottom first.
    pub fn chain(&self) -> Vec<LayerId> {
        self.cell.record().chain.clone()
    }

    /// The digest of its uncompressed archive, if one was ever made or it came as one.
    pub fn diff_id(&self) -> Option<DiffId> {
        self.cell.record().diff_id
    }

    /// The identity of the image layers up to and with it, if it has one.
    pub fn chain_id(&self) -> Option<ChainId> {
        self.cell.record().chain_id
    }

    /// The description its maker gave.
    pub fn description(&self) -> String {
        self.cell.record().description.clone()
    }

    /// What it is for.
    pub fn record_type(&self) -> RecordType {
        self.cell.record().record_type
    }

    /// When it was made, nanoseconds since 1970.
    pub fn created(&self) -> u64 {
        self.cell.record().made()
    }

    /// Where its blob can be fetched, in the engine's words.
    pub fn origin(&self) -> Option<String> {
        self.cell.record().origin.clone()
    }

    /// The compressed forms that are known, whether their blobs are here or not.
    pub fn descriptors(&self) -> Vec<Descriptor> {
        self.cell.record().variants.iter().map(|v| v.descriptor.clone()).collect()
    }

    /// Bytes of its files; 0 if not unpacked.
    pub fn size(&self) -> u64 {
        self.cell.record().unpacked.as_ref().map_or(0, |u| u.size)
    }
}

impl Store {
    /// Begins a layer.
    ///
    /// # Errors
    /// The directories cannot be created.
    pub fn draft(&self) -> Result<LayerDraft> {
        let draft = self.draft_of_view()?;
        fs::create_dir(draft.fs()).at("create", &draft.fs())?;
        Ok(draft)
    }

    /// Begins a layer whose directory of files is moved into place when a view is collected.
    ///
    /// # Errors
    /// The directories cannot be created.
    pub fn draft_of_view(&self) -> Result<LayerDraft> {
        let id = loop {
            let id = LayerId::random();
            if !self.0.layers.lock().by_id.contains_key(&id) {
                break id;
            }
        };
        let drafts = self.0.layout.drafts();
        let dir = LayerDir(drafts.join(id.to_string()));
        let scratch = drafts.join(format!("{id}-scratch"));
        fs::create_dir(&dir.0).at("create", &dir.0)?;
        let begun = self.0.clock.unix_nanos();
        let room = self.room(&dir.0);
        Ok(LayerDraft { store: self.clone(), id, dir, scratch, room, begun, done: false })
    }

    /// Publishes a draft. A layer with the same `chain_id` that is already here and unpacked is returned instead.
    ///
    /// # Errors
    /// The disk is full; the draft is deleted.
    pub fn commit(&self, mut draft: LayerDraft, manifest: LayerManifest, info: LayerInfo) -> Result<Layer> {
        let inner = &self.0;
        if let Some(layer) = info.chain_id.and_then(|chain| inner.layer_by_chain(chain))
            && layer.is_unpacked()
        {
            inner.touch_layer(&layer.cell);
            return Ok(layer);
        }
        let encoded = manifest.encode();
        let bytes = account::layer_bytes(&manifest, &draft.fs(), encoded.len() as u64);
        let unpacked = inner.unpacked(&manifest, &encoded, Some(bytes));
        let nanos = inner.clock.unix_nanos();
        let (now, _) = split_nanos(nanos);
        let cost = nanos.saturating_sub(draft.begun) / 1_000_000;
        let (created, created_nanos) = split_nanos(if info.created == 0 { nanos } else { info.created });
        draft.room.settle();
        inner.account_finished(bytes);
        let _room = self.reserve_written(bytes);
        let record = LayerRecord {
            id: draft.id,
            chain: info.chain,
            description: info.description,
            record_type: info.record_type,
            created,
            created_nanos,
            diff_id: info.diff_id,
            chain_id: info.chain_id,
            origin: None,
            unpacked: Some(unpacked),
            variants: Vec::new(),
            cost_ms: Some(cost),
        };
        fault::point("store.layer.manifest").at("write", &draft.dir.manifest())?;
        disk::write_new(&draft.dir.manifest(), &encoded)?;
        fault::point("store.layer.info").at("write", &draft.dir.info())?;
        disk::write_new(&draft.dir.info(), &record.encode())?;
        let target = inner.layout.layers().join(draft.id.to_string());
        fault::point("store.layer.rename").at("rename", &target)?;
        fs::rename(&draft.dir.0, &target).at("rename", &target)?;
        draft.done = true;
        // From here on the layer exists; an armed hook may kill the process, but no error may lose the layer.
        let _ = fault::point("store.layer.renamed");
        let cell = inner.insert_layer(record, now, 1);
        cell.checked.store(inner.clock.unix_nanos(), Ordering::Relaxed);
        inner.keep_manifest(cell.id, Arc::new(manifest));
        Ok(Layer::new(cell))
    }

    /// Returns the layer with that chain id, or notes one whose blob is to be fetched when it is needed.
    ///
    /// # Errors
    /// Its record cannot be written.
    pub fn lazy_layer(&self, lazy: LazyLayer) -> Result<Layer> {
        let inner = &self.0;
        let variant =
            Variant { descriptor: lazy.descriptor, diff_id: lazy.diff_id.0, compression: String::new(), epoch: None };
        // Of two pulls of one image the second finds what the first notes.
        let _pull = inner.pulls.lock();
        if let Some(layer) = inner.layer_by_chain(lazy.chain_id) {
            inner.touch_layer(&layer.cell);
            let known = layer.cell.record().variants.iter().any(|v| v.descriptor.digest == variant.descriptor.digest);
            if !known {
                inner.update_layer(&layer.cell, |record| {
                    record.origin.get_or_insert(lazy.origin);
                    record.variants.push(variant);
                })?;
            }
            return Ok(layer);
        }
        let nanos = inner.clock.unix_nanos();
        let (now, _) = split_nanos(nanos);
        let (created, created_nanos) = split_nanos(if lazy.created == 0 { nanos } else { lazy.created });
        let record = LayerRecord {
            id: LayerId::random(),
            chain: lazy.chain,
            description: lazy.description,
            record_type: lazy.record_type,
            created,
            created_nanos,
            diff_id: Some(lazy.diff_id),
            chain_id: Some(lazy.chain_id),
            origin: Some(lazy.origin),
            unpacked: None,
            variants: vec![variant],
            cost_ms: None,
        };
        let tmp = LayerDir(inner.layout.tmp());
        let target = inner.layout.layers().join(record.id.to_string());
        fs::create_dir(&tmp.0).at("create", &tmp.0)?;
        let published = disk::write_new(&tmp.info(), &record.encode())
            .and_then(|()| fault::point("store.lazy.rename").at("rename", &target))
            .and_then(|()| fs::rename(&tmp.0, &target).at("rename", &target));
        if let Err(e) = published {
            let _ = disk::remove_tree(&tmp.0);
            return Err(e);
        }
        Ok(Layer::new(inner.insert_layer(record, now, 1)))
    }

    /// Changes where the blob of a layer can be fetched.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn relocate(&self, layer: &Layer, origin: &str) -> Result<()> {
        self.0.update_layer(&layer.cell, |record| record.origin = Some(origin.to_owned()))
    }

    /// Notes which image layers the layers of `reference` are, as far as their archives are known, so that an image that
    /// is pulled or built on finds their files here. A layer that was made on another chain than this one is left out:
    /// its files need not be what its archive gives here.
    ///
    /// # Errors
    /// A record cannot be written.
    pub fn identify(&self, reference: &ImmutableRef) -> Result<()> {
        let known: Vec<DiffId> = reference.layers().iter().map_while(Layer::diff_id).collect();
        let mut below: Vec<LayerId> = Vec::new();
        for (layer, chain) in reference.layers().iter().zip(chain_ids(&known)) {
            let inner = &self.0;
            if layer.chain_id().is_none() && layer.is_unpacked() && layer.chain() == below {
                inner.update_layer(&layer.cell, |record| record.chain_id = Some(chain))?;
                let mut layers = inner.layers.lock();
                let here = layers.by_chain.get(&chain).and_then(|id| layers.by_id.get(id));
                if here.is_none_or(|other| other.record().unpacked.is_none()) {
                    layers.by_chain.insert(chain, layer.id());
                }
            }
            below.push(layer.id());
        }
        Ok(())
    }

    /// Returns the layer of that id.
    pub fn layer(&self, id: LayerId) -> Option<Layer> {
        self.0.layer(id)
    }

    /// Returns the layer with that chain id.
    pub fn layer_by_chain_id(&self, chain: ChainId) -> Option<Layer> {
        self.0.layer_by_chain(chain)
    }

    /// Returns how many layers there are.
    pub fn layer_count(&self) -> usize {
        self.0.layers.lock().by_id.len()
    }

    /// Returns all layers.
    pub fn layers(&self) -> Vec<Layer> {
        self.0.layers.lock().by_id.values().map(|cell| Layer::new(cell.clone())).collect()
    }

    /// Changes the description or type of a layer, as a result's user knows more of it than its maker.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn describe(&self, layer: &Layer, description: &str, record_type: RecordType) -> Result<()> {
        let record = layer.cell.record();
        if record.description == description && record.record_type == record_type {
            return Ok(());
        }
        self.0.update_layer(&layer.cell, |record| {
            record.description = description.to_owned();
            record.record_type = record_type;
        })
    }
}

impl LayerTable {
    /// Takes a layer out; whoever has a handle sees from now on that it is gone.
    pub(crate) fn take(&mut self, id: LayerId) -> Option<Arc<LayerCell>> {
        let cell = self.by_id.remove(&id)?;
        cell.gone.store(true, Ordering::Release);
        self.by_chain.retain(|_, of| *of != id);
        Some(cell)
    }
}

impl Inner {
    /// Reads the layer records. The directory decides what exists; rows of the metadata save reading each `info`.
    pub(crate) fn load_layers(&self) {
        let mut rows: std::collections::HashMap<LayerId, LayerRecord> = std::collections::HashMap::new();
        for (key, value) in self.meta.table("layer").scan_prefix(b"") {
            if let Some(record) = LayerRecord::decode(&value)
                && record.id.0.to_be_bytes() == key.as_slice()
            {
                rows.insert(record.id, record);
            }
        }
        let uses = self.meta.table("use");
        let mut used: std::collections::HashMap<LayerId, (u64, u64)> = std::collections::HashMap::new();
        for (key, value) in uses.scan_prefix(b"") {
            if let (Ok(id), Ok(value)) = (<[u8; 8]>::try_from(key.as_slice()), <[u8; 16]>::try_from(value.as_slice())) {
                let (time, count) = value.split_at(8);
                let number = |b: &[u8]| b.try_into().map(u64::from_le_bytes).unwrap_or_default();
                used.insert(LayerId(u64::from_be_bytes(id)), (number(time), number(count)));
            }
        }
        for entry in fs::read_dir(self.layout.layers()).into_iter().flatten().flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|n| n.parse::<LayerId>().ok()) else {
                self.log.add(format!("layers/{}", entry.file_name().display()), "unknown name", RepairAction::Dropped);
                self.discard(&entry.path());
                continue;
            };
            let known = rows.remove(&id);
            let from_row = known.is_some();
            let read = || {
                let record = LayerRecord::decode(&disk::read(&LayerDir(entry.path()).info())?)?;
                (record.id == id).then_some(record)
            };
            let Some(record) = known.or_else(read) else {
                self.log.add(format!("layer {id}"), "its record is missing or damaged", RepairAction::Dropped);
                self.discard(&entry.path());
                continue;
            };
            if record.unpacked.as_ref().is_some_and(|unpacked| unpacked.disk.is_none()) {
                self.doubt();
            }
            let (time, count) = used.remove(&id).unwrap_or((record.created, 0));
            self.register_layer(record, time, count, !from_row);
        }
        for id in rows.into_keys() {
            self.meta.table("layer").delete(&id.0.to_be_bytes());
            self.meta.table("use").delete(&id.0.to_be_bytes());
        }
        self.drop_orphans();
    }

    /// Drops layers whose chain has lost a member: they cannot be used, and would never be asked for.
    fn drop_orphans(&self) {
        let orphans: std::collections::BTreeSet<LayerId> = {
            let layers = self.layers.lock();
            let lost = |cell: &&Arc<LayerCell>| cell.record().chain.iter().any(|id| !layers.by_id.contains_key(id));
            layers.by_id.values().filter(lost).map(|cell| cell.id).collect()
        };
        for id in orphans {
            self.log.add(format!("layer {id}"), "a layer below it is gone", RepairAction::Dropped);
            self.remove_layer(id);
        }
    }

    pub(crate) fn unpacked(&self, manifest: &LayerManifest, encoded: &[u8], disk: Option<u64>) -> Unpacked {
        Unpacked {
            manifest: Digest::of(encoded),
            manifest_size: encoded.len() as u64,
            size: manifest.total_size(),
            disk,
            stamp: self.epochs.stamp(),
        }
    }

    fn register_layer(&self, record: LayerRecord, used: u64, uses: u64, save: bool) -> Arc<LayerCell> {
        let (id, chain) = (record.id, record.chain_id);
        if save {
            self.meta.table("layer").put(&id.0.to_be_bytes(), &record.encode());
        }
        let bytes = record.disk_bytes();
        let cell = LayerCell::new(record, used, uses);
        self.account_layer(&cell, bytes);
        let mut layers = self.layers.lock();
        if let Some(chain) = chain {
            // Of two with one identity (a lazy one that was unpacked by another way) the unpacked one is preferred.
            let better = layers
                .by_chain
                .get(&chain)
                .and_then(|other| layers.by_id.get(other))
                .is_none_or(|other| other.record().unpacked.is_none());
            if better {
                layers.by_chain.insert(chain, id);
            }
        }
        layers.by_id.insert(id, cell.clone());
        cell
    }

    fn insert_layer(&self, record: LayerRecord, used: u64, uses: u64) -> Arc<LayerCell> {
        self.register_layer(record, used, uses, true)
    }

    pub(crate) fn layer(&self, id: LayerId) -> Option<Layer> {
        self.layers.lock().by_id.get(&id).map(|cell| Layer::new(cell.clone()))
    }

    pub(crate) fn layer_by_chain(&self, chain: ChainId) -> Option<Layer> {
        let layers = self.layers.lock();
        layers.by_chain.get(&chain).and_then(|id| layers.by_id.get(id)).map(|cell| Layer::new(cell.clone()))
    }

    /// Changes a record: in memory, in `info` and in the metadata.
    pub(crate) fn update_layer(&self, cell: &LayerCell, change: impl FnOnce(&mut LayerRecord)) -> Result<()> {
        let mut slot = cell.record.write();
        let mut record = (**slot).clone();
        change(&mut record);
        self.write_info(cell, &record.encode())?;
        self.meta.table("layer").put(&cell.id.0.to_be_bytes(), &record.encode());
        *slot = Arc::new(record);
        Ok(())
    }

    /// Writes the file of a record. Where the directory of the layer is gone it is made again: what else was in it is
    /// found missing, and made good or dropped, when the layer is next checked.
    fn write_info(&self, cell: &LayerCell, bytes: &[u8]) -> Result<()> {
        let dir = LayerDir(self.layout.layer(cell.id));
        let write = || disk::replace(&dir.info(), self.layout.tmp(), bytes, "store.info.rename", false);
        let Err(error) = write() else { return Ok(()) };
        if fs::symlink_metadata(&dir.0).is_ok_and(|meta| meta.is_dir()) {
            return Err(error);
        }
        if cell.gone.load(Ordering::Acquire) {
            return Err(StoreError::damage(format!("layer {} was dropped", cell.id)));
        }
        disk::ensure_dir(&dir.0)?;
        write()?;
        self.log.add(format!("layer {}", cell.id), "its directory is missing", RepairAction::Repaired);
        Ok(())
    }

    /// Notes a use, for the order in which GC takes layers.
    pub(crate) fn touch_layer(&self, cell: &LayerCell) {
        let now = self.clock.unix();
        let uses = cell.uses.fetch_add(1, Ordering::Relaxed) + 1;
        if now >= cell.used.load(Ordering::Relaxed) + USE_GRAIN {
            cell.used.store(now, Ordering::Relaxed);
            let value = [now.to_le_bytes(), uses.to_le_bytes()].concat();
            self.meta.table("use").put(&cell.id.0.to_be_bytes(), &value);
        }
    }

    pub(crate) fn keep_manifest(&self, id: LayerId, manifest: Arc<LayerManifest>) {
        let weight = manifest.len() + 1;
        self.manifests.lock().put(id, manifest, weight);
    }

    /// Returns the manifest of an unpacked layer.
    ///
    /// # Errors
    /// The layer is lazy, or its manifest is not the one that was written.
    pub(crate) fn manifest(&self, cell: &LayerCell) -> Result<Arc<LayerManifest>> {
        if let Some(manifest) = self.manifests.lock().get(&cell.id) {
            return Ok(manifest);
        }
        let record = cell.record();
        let Some(unpacked) = &record.unpacked else { return Err(StoreError::Lazy(cell.id)) };
        let damaged = || StoreError::damage(format!("manifest of layer {}", cell.id));
        let bytes = disk::read(&LayerDir(self.layout.layer(cell.id)).manifest()).ok_or_else(damaged)?;
        if Digest::of(&bytes) != unpacked.manifest {
            return Err(damaged());
        }
        let manifest = match LayerManifest::is_old(&bytes) {
            true => self.upgrade_manifest(cell, &bytes)?,
            false => LayerManifest::decode(&bytes).map_err(kiln_snapshot::Error::from)?,
        };
        let manifest = Arc::new(manifest);
        self.keep_manifest(cell.id, manifest.clone());
        Ok(manifest)
    }

    /// Brings the manifest of a layer that an older program made up to date, on disk too.
    fn upgrade_manifest(&self, cell: &LayerCell, old: &[u8]) -> Result<LayerManifest> {
        let dir = LayerDir(self.layout.layer(cell.id));
        let manifest = kiln_snapshot::layer::upgrade_manifest(old, &dir.fs())?;
        let encoded = manifest.encode();
        // Between the two steps a kill leaves a layer whose manifest is not the recorded one: damage, which is made good.
        disk::replace(&dir.manifest(), self.layout.tmp(), &encoded, "store.manifest.rename", false)?;
        let bytes = cell.record().unpacked.as_ref().and_then(|u| u.disk);
        let unpacked = self.unpacked(&manifest, &encoded, bytes);
        self.update_layer(cell, |record| record.unpacked = Some(unpacked))?;
        Ok(manifest)
    }

    /// Takes a layer out of the tables and deletes its directory. Handles that still live see that it is gone.
    pub(crate) fn remove_layer(&self, id: LayerId) {
        let taken = self.layers.lock().take(id);
        if taken.is_some() {
            self.forget_layer(id);
        }
    }

    /// Removes what is left of a layer that was taken out of the tables.
    pub(crate) fn forget_layer(&self, id: LayerId) {
        self.manifests.lock().remove(&id);
        self.meta.table("layer").delete(&id.0.to_be_bytes());
        self.meta.table("use").delete(&id.0.to_be_bytes());
        self.discard_layer(&self.layout.layer(id));
    }
}
