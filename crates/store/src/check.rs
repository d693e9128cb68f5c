//! Checks before use, and what follows from a bad one: unpack again from a good blob, else drop the layer and all that
//! was made on it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kiln_snapshot::{DamageKind, Entry, LayerManifest, layer as snapshot};

use crate::disk;
use crate::error::{Result, StoreError};
use crate::layer::{Layer, LayerCell};
use crate::layout::{LayerDir, LayerId};
use crate::refs::ImmutableRef;
use crate::repair::RepairAction;
use crate::store::{Inner, Store};

/// How hard to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// By stat, at most once per build and recheck interval; by digest where stat differs or bytes may have been lost.
    Use,
    /// By stat, now.
    Stat,
    /// By digest, now.
    Digest,
}

impl Store {
    /// Checks that the files of a ref are what was written, so that they can be used. Lazy layers pass.
    ///
    /// # Errors
    /// A layer is gone, or was damaged, could not be repaired and has been dropped with all that depends on it. The
    /// caller makes the ref anew.
    pub fn check(&self, r: &ImmutableRef) -> Result<()> {
        for layer in r.layers() {
            self.0.check_layer(self, layer, Depth::Use)?;
            self.0.touch_layer(&layer.cell);
        }
        Ok(())
    }

    /// Checks by stat now, whatever was checked when: for a step that fails in a way that smells of damage.
    ///
    /// # Errors
    /// As [`Store::check`].
    pub fn check_now(&self, r: &ImmutableRef) -> Result<()> {
        r.layers().iter().try_for_each(|layer| self.0.check_layer(self, layer, Depth::Stat))
    }

    /// Reads and verifies every byte of a ref.
    ///
    /// # Errors
    /// As [`Store::check`].
    pub fn check_digests(&self, r: &ImmutableRef) -> Result<()> {
        r.layers().iter().try_for_each(|layer| self.0.check_layer(self, layer, Depth::Digest))
    }

    /// Returns the manifest of a layer; repairs the layer, or drops it, if the manifest is damaged.
    pub(crate) fn manifest(&self, layer: &Layer) -> Result<Arc<LayerManifest>> {
        if layer.is_gone() {
            return Err(StoreError::Gone(layer.id()));
        }
        match self.0.manifest(&layer.cell) {
            Err(e) if !matches!(e, StoreError::Lazy(_)) => {
                let _work = layer.cell.work.lock();
                // Someone else may have repaired it while this thread waited.
                if let Ok(manifest) = self.0.manifest(&layer.cell) {
                    return Ok(manifest);
                }
                self.0.repair_layer(self, layer, &e.to_string())?;
                self.0.manifest(&layer.cell)
            }
            other => other,
        }
    }
}

impl Inner {
    /// Checks one layer, and repairs or drops it.
    pub(crate) fn check_layer(&self, store: &Store, layer: &Layer, depth: Depth) -> Result<()> {
        let cell = &layer.cell;
        let record = cell.record();
        let suspect = record.unpacked.as_ref().is_some_and(|u| self.epochs.is_suspect(&u.stamp));
        if depth == Depth::Use && !suspect && !layer.is_gone() && self.is_fresh(cell.checked.load(Ordering::Relaxed)) {
            return Ok(());
        }
        let _work = cell.work.lock();
        if layer.is_gone() {
            return Err(StoreError::Gone(layer.id()));
        }
        let record = cell.record();
        let Some(unpacked) = &record.unpacked else { return self.check_lazy(cell) };
        let suspect = self.epochs.is_suspect(&unpacked.stamp);
        if depth == Depth::Use && !suspect && self.is_fresh(cell.checked.load(Ordering::Relaxed)) {
            return Ok(());
        }
        let verdict = self.look_at(cell, if suspect { Depth::Digest } else { depth });
        match verdict {
            Ok(()) => {}
            Err(e) if e.class() == kiln_stdx::ErrorClass::Damage || is_missing(&e) => {
                self.repair_layer(store, layer, &e.to_string())?;
            }
            Err(e) => return Err(e),
        }
        if suspect {
            self.update_layer(cell, |record| {
                if let Some(unpacked) = &mut record.unpacked {
                    unpacked.stamp = self.epochs.stamp();
                }
            })?;
        }
        cell.checked.store(self.clock.unix_nanos(), Ordering::Relaxed);
        Ok(())
    }

    /// A lazy layer has only its record to lose.
    fn check_lazy(&self, cell: &LayerCell) -> Result<()> {
        let dir = LayerDir(self.layout.layer(cell.id));
        if disk::Stamp::of(&dir.info()).is_none() {
            disk::ensure_dir(&dir.0)?;
            self.update_layer(cell, |_| {})?;
            self.log.add(format!("layer {}", cell.id), "its record is missing", RepairAction::Repaired);
        }
        Ok(())
    }

    fn look_at(&self, cell: &LayerCell, depth: Depth) -> Result<()> {
        let dir = LayerDir(self.layout.layer(cell.id));
        let record = cell.record();
        let manifest = self.manifest(cell)?;
        if !std::fs::symlink_metadata(dir.fs()).is_ok_and(|m| m.is_dir()) {
            return Err(StoreError::damage(format!("files of layer {} are missing", cell.id)));
        }
        // Where the status differs, something wrote here, and the mark it left is damage even if the bytes are the same.
        // The one exception is a store that was copied as a whole, and has other inodes.
        let verdict = match depth {
            Depth::Digest => snapshot::verify_digest(&manifest, &dir.fs()),
            Depth::Use | Depth::Stat => snapshot::verify_stat(&manifest, &dir.fs()),
        };
        let (manifest, record) = match verdict {
            Ok(()) => (manifest, record),
            Err(damage) if damage.what == DamageKind::Inode => {
                let moved = self.adopt_inodes(cell, &manifest, &dir)?.ok_or(damage)?;
                (moved, cell.record())
            }
            Err(damage) => return Err(damage.into()),
        };
        // The manifest and the record in memory are good here; their files are made good again if they are not.
        let manifest_size = record.unpacked.as_ref().map_or(0, |u| u.manifest_size);
        let on_disk = disk::Stamp::of(&dir.manifest()).map(|s| s.size);
        let wrong = depth == Depth::Digest
            && disk::read(&dir.manifest()).map(kiln_stdx::Digest::of) != record.unpacked.as_ref().map(|u| u.manifest);
        if on_disk != Some(manifest_size) || wrong {
            let encoded = manifest.encode();
            disk::replace(&dir.manifest(), self.layout.tmp(), &encoded, "store.manifest.rename", false)?;
            self.log.add(format!("layer {}", cell.id), "its manifest's file", RepairAction::Repaired);
        }
        let expected = record.encode();
        let info = disk::Stamp::of(&dir.info()).map(|s| s.size);
        if info != Some(expected.len() as u64)
            || (depth == Depth::Digest && disk::read(&dir.info()).as_deref() != Some(&expected))
        {
            let behind = disk::read(&dir.info()).is_some_and(|bytes| record.is_akin(&bytes));
            disk::replace(&dir.info(), self.layout.tmp(), &expected, "store.info.rename", false)?;
            if !behind {
                self.log.add(format!("layer {}", cell.id), "its record's file", RepairAction::Repaired);
            }
        }
        Ok(())
    }

    /// Verifies all files by digest and takes over their inode numbers; `None` if anything else differs.
    fn adopt_inodes(
        &self,
        cell: &LayerCell,
        manifest: &LayerManifest,
        dir: &LayerDir,
    ) -> Result<Option<Arc<LayerManifest>>> {
        let found = snapshot::scan(&dir.fs())?;
        let same = |(a, b): (&Entry, &Entry)| {
            a.path == b.path && a.same_object(b) && a.opaque == b.opaque && a.nlink_group == b.nlink_group
        };
        if found.len() != manifest.len() || !manifest.entries().iter().zip(found.entries()).all(same) {
            return Ok(None);
        }
        let encoded = found.encode();
        let bytes = cell.record().unpacked.as_ref().and_then(|u| u.disk);
        let unpacked = self.unpacked(&found, &encoded, bytes);
        disk::replace(&dir.manifest(), self.layout.tmp(), &encoded, "store.manifest.rename", false)?;
        self.update_layer(cell, |record| record.unpacked = Some(unpacked))?;
        self.log.add(format!("layer {}", cell.id), "its files are other inodes", RepairAction::Repaired);
        let found = Arc::new(found);
        self.keep_manifest(cell.id, found.clone());
        self.forget_trees();
        Ok(Some(found))
    }

    /// Unpacks a damaged layer again, or drops it with all that was made on it. The caller holds the layer's work lock.
    pub(crate) fn repair_layer(&self, store: &Store, layer: &Layer, damage: &str) -> Result<()> {
        let subject = format!("layer {}", layer.id());
        self.manifests.lock().remove(&layer.id());
        self.forget_trees();
        let record = layer.cell.record();
        let blob = record
            .variants
            .iter()
            .filter(|v| v.epoch.is_none())
            .find_map(|v| self.blob(&v.descriptor.digest, true).map(|blob| (blob, v.diff_id)));
        if let Some((blob, diff_id)) = blob {
            let parents = store.ref_of(&record.chain);
            let again = parents
                .ok_or(StoreError::Gone(layer.id()))
                .and_then(|parents| self.unpack_blob(layer, &parents, blob.open()?, diff_id));
            match again {
                Ok(()) => {
                    self.log.add(subject, damage, RepairAction::Repaired);
                    return Ok(());
                }
                Err(e) if e.is_no_space() => return Err(e),
                Err(e) => tracing::warn!(layer = %layer.id(), error = %e, "cannot unpack again"),
            }
        }
        self.log.add(subject, damage, RepairAction::Dropped);
        self.drop_layer(layer.id());
        Err(StoreError::damage(format!("layer {}: {damage}", layer.id())))
    }

    /// Drops a layer and every layer that was made on it.
    pub(crate) fn drop_layer(&self, id: LayerId) {
        // In order, so that a simulation can be repeated.
        let mut doomed = BTreeSet::from([id]);
        {
            let layers = self.layers.lock();
            doomed.extend(layers.by_id.values().filter(|c| c.record().chain.contains(&id)).map(|c| c.id));
        }
        self.doubt();
        for id in doomed {
            self.remove_layer(id);
        }
        self.forget_trees();
    }

    /// Forgets merged trees and content digests of layers that are gone or were unpacked again.
    pub(crate) fn forget_trees(&self) {
        self.trees.lock().retain(|_, _| false);
        self.content.clear();
    }
}

fn is_missing(e: &StoreError) -> bool {
    let missing =
        |e: &std::io::Error| matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::EIO));
    match e {
        StoreError::Io { source, .. } => missing(source),
        _ => false,
    }
}
