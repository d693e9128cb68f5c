//! Blobs into layers, and layers into blobs.

use std::fs;
use std::io::{BufReader, Read, Write};
use std::path::PathBuf;

use kiln_oci::{Descriptor, DiffId, media};
use kiln_snapshot::compress::{self, Compression, Compressor, Kind};
use kiln_snapshot::layer::{self as snapshot, TarOptions};
use kiln_stdx::{Digest, DigestWriter, ErrorClass, fault};

use crate::account;
use crate::blob::Blob;
use crate::disk;
use crate::error::{IoContext, Result, StoreError};
use crate::layer::Layer;
use crate::layout::LayerDir;
use crate::record::{LayerRecord, Variant};
use crate::refs::ImmutableRef;
use crate::store::{Inner, Store};

/// Which compressed form of a layer is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct BlobOptions {
    /// The compression to use where one is made.
    pub compression: Compression,
    /// Refuse forms of another compression; without it any form that is here is taken.
    pub force: bool,
    /// Cut modification times to this one (`rewrite-timestamp`), seconds since 1970.
    pub epoch: Option<i64>,
    /// Take only forms whose bytes are here, and make one from the layer's files where none is: for layers whose blob can
    /// no longer be fetched. Its archive need not be the one that was pulled.
    pub here: bool,
}

/// A compressed form of a layer.
#[derive(Clone)]
pub struct LayerBlob {
    /// Media type (OCI), digest and size.
    pub descriptor: Descriptor,
    /// The digest of the uncompressed archive.
    pub diff_id: DiffId,
    /// The bytes; `None` if the layer came from elsewhere and its blob was never fetched (see [`Layer::origin`]).
    pub blob: Option<Blob>,
}

impl Store {
    /// Unpacks a layer from its compressed blob onto `parents`, the chain below it. Does nothing if it is unpacked;
    /// of several callers at once one works.
    ///
    /// # Errors
    /// The archive is malformed or not the one with the layer's diff id; the disk is full.
    pub fn unpack(&self, layer: &Layer, parents: &ImmutableRef, blob: impl Read + Send) -> Result<()> {
        let _work = layer.cell.work.lock();
        if layer.is_gone() {
            return Err(StoreError::Gone(layer.id()));
        }
        if layer.is_unpacked() {
            return Ok(());
        }
        let expected = layer.diff_id().ok_or(StoreError::Lazy(layer.id()))?;
        self.0.unpack_blob(layer, parents, blob, expected.0)
    }

    /// Returns a compressed form of a layer, made now if need be; a form once made is kept. Deterministic: the same
    /// layer and options give the same bytes.
    ///
    /// # Errors
    /// The layer is lazy and a form is asked for that its blob does not have and cannot be made from it, since it is not here;
    /// the layer is damaged and was dropped; the disk is full.
    pub fn layer_blob(&self, layer: &Layer, options: &BlobOptions) -> Result<LayerBlob> {
        let _work = layer.cell.work.lock();
        if layer.is_gone() {
            return Err(StoreError::Gone(layer.id()));
        }
        if let Some(found) = self.0.find_variant(layer, options) {
            return Ok(found);
        }
        match self.0.make_variant(self, layer, options) {
            Err(e) if e.class() == ErrorClass::Damage => {
                // The files are not what they were: unpack them again from some other form, and archive those.
                self.0.repair_layer(self, layer, &e.to_string())?;
                self.0.make_variant(self, layer, options)
            }
            other => other,
        }
    }

    /// Returns a blob as [`Store::blob`] does, or makes it again if it is a form of a layer whose files are here.
    pub fn restore_blob(&self, digest: &Digest) -> Option<Blob> {
        if let Some(blob) = self.blob(digest) {
            return Some(blob);
        }
        for layer in self.layers() {
            let record = layer.cell.record();
            let variant = record.variants.iter().find(|v| v.descriptor.digest == *digest);
            let Some((variant, compression)) = variant.and_then(|v| Some((v, parse_compression(&v.compression)?)))
            else {
                continue;
            };
            let options = BlobOptions { compression, force: true, epoch: variant.epoch, here: false };
            match self.layer_blob(&layer, &options) {
                Ok(made) if made.descriptor.digest == *digest => return made.blob,
                Ok(_) => {}
                Err(e) => tracing::warn!(%digest, error = %e, "cannot make a blob again"),
            }
        }
        None
    }
}

impl Inner {
    /// Tells whether the original archive of a layer can be had from some form that is here.
    fn has_archive(&self, record: &LayerRecord) -> bool {
        record.variants.iter().any(|v| v.epoch.is_none() && self.blob(&v.descriptor.digest, false).is_some())
    }

    fn find_variant(&self, layer: &Layer, options: &BlobOptions) -> Option<LayerBlob> {
        let record = layer.cell.record();
        let name = compression_name(&options.compression);
        let fits = |v: &&Variant| {
            v.epoch == options.epoch
                && (!options.force
                    || v.compression == name
                    || (v.compression.is_empty() && kind_of(v) == kind_name(&options.compression)))
        };
        let mut remote = None;
        // What was asked for before other forms that would also do.
        let mut candidates: Vec<&Variant> = record.variants.iter().filter(fits).collect();
        candidates.sort_by_key(|v| v.compression != name);
        for variant in candidates {
            let found =
                |blob| LayerBlob { descriptor: variant.descriptor.clone(), diff_id: DiffId(variant.diff_id), blob };
            let digest = &variant.descriptor.digest;
            // Its bytes are about to leave, so a check that is a little old does not do.
            match self.blob(digest, false).filter(Blob::stands).or_else(|| self.blob(digest, true)) {
                Some(blob) => return Some(found(Some(blob))),
                None if options.here => {}
                None if record.unpacked.is_none() || (variant.compression.is_empty() && remote.is_none()) => {
                    remote = Some(found(None));
                }
                None => {}
            }
        }
        // A form that is elsewhere need not be fetched where it can be made.
        remote.filter(|_| !self.has_archive(&record))
    }

    /// Makes a blob from the layer's files, or from another blob of it that has the same archive inside.
    fn make_variant(&self, store: &Store, layer: &Layer, options: &BlobOptions) -> Result<LayerBlob> {
        let record = layer.cell.record();
        let store_blob = |write: &mut dyn FnMut(&mut dyn Write) -> Result<Digest>| -> Result<(Blob, Digest)> {
            // Uncompressed, the blob is the archive, which is hashed where it is written.
            let same = options.compression.kind == Kind::None;
            let ingest = if same { store.ingest_hashed()? } else { store.ingest(None, None)? };
            let mut compressor = Compressor::new(ingest, options.compression);
            let diff_id = write(&mut compressor)?;
            let mut ingest = compressor.finish().at("compress", &self.layout.root)?;
            if same {
                ingest.hashed_as(diff_id);
            }
            Ok((ingest.commit()?, diff_id))
        };
        // A pulled layer's archive need not be what kiln would write; its identity is kept by compressing it again.
        let source = record.variants.iter().filter(|v| v.epoch.is_none() && options.epoch.is_none());
        let source = source.filter_map(|v| Some((self.blob(&v.descriptor.digest, true)?, v.diff_id))).next();
        let (blob, diff_id) = match source {
            Some((source, diff_id)) => {
                let (blob, got) = store_blob(&mut |out| {
                    let mut archive = open_archive(source.open()?).at("read", source.path())?;
                    let mut writer = DigestWriter::new(out);
                    std::io::copy(&mut archive, &mut writer).at("compress", source.path())?;
                    Ok(writer.finish().1)
                })?;
                if got != diff_id {
                    return Err(StoreError::Mismatch { expected: diff_id, got });
                }
                (blob, diff_id)
            }
            // Whoever asks fetches that archive, and asks again for another made from the files where it cannot be had.
            None if !options.here && options.epoch.is_none() && record.variants.iter().any(is_pulled) => {
                let pulled = record.variants.iter().find(|v| is_pulled(v)).map(|v| v.descriptor.digest);
                return Err(pulled.map_or(StoreError::Lazy(layer.id()), StoreError::MissingBlob));
            }
            None if record.unpacked.is_none() => {
                let missing = record.variants.first().map(|v| v.descriptor.digest);
                return Err(missing.map_or(StoreError::Lazy(layer.id()), StoreError::MissingBlob));
            }
            None => {
                let manifest = self.manifest(&layer.cell)?;
                let fs = LayerDir(self.layout.layer(layer.id())).fs();
                let tar = TarOptions { epoch: options.epoch };
                store_blob(&mut |out| Ok(snapshot::write_tar(&manifest, &fs, out, &tar)?.diff_id))?
            }
        };
        let descriptor = Descriptor::new(media_type(&options.compression), blob.digest(), blob.size());
        let variant = Variant {
            descriptor: descriptor.clone(),
            diff_id,
            compression: compression_name(&options.compression),
            epoch: options.epoch,
        };
        self.update_layer(&layer.cell, |record| {
            if variant.epoch.is_none() {
                record.diff_id.get_or_insert(DiffId(diff_id));
            }
            record.variants.retain(|v| (&v.compression, v.epoch) != (&variant.compression, variant.epoch));
            record.variants.push(variant);
        })?;
        Ok(LayerBlob { descriptor, diff_id: DiffId(diff_id), blob: Some(blob) })
    }

    /// Unpacks and publishes; whatever files the layer had are replaced. The caller holds the layer's work lock.
    pub(crate) fn unpack_blob(
        &self,
        layer: &Layer,
        parents: &ImmutableRef,
        blob: impl Read + Send,
        expected: Digest,
    ) -> Result<()> {
        let lower = parents.tree()?;
        let place = |what: &str| self.layout.drafts().join(format!("{}-{what}", layer.id()));
        let aside = Aside { files: place("unpack"), manifest: place("manifest") };
        for path in [&aside.files, &aside.manifest] {
            disk::remove_tree(path).at("remove", path)?;
        }
        let result = self.unpack_aside(layer, (parents, &lower), blob, expected, &aside);
        for path in [&aside.files, &aside.manifest] {
            if fs::symlink_metadata(path).is_ok() {
                self.discard(path);
            }
        }
        result
    }

    fn unpack_aside(
        &self,
        layer: &Layer,
        (parents, lower): (&ImmutableRef, &kiln_snapshot::Tree),
        blob: impl Read + Send,
        expected: Digest,
        aside: &Aside,
    ) -> Result<()> {
        fault::point("store.unpack.start").at("unpack", &aside.files)?;
        let begun = self.clock.unix_nanos();
        let archive = open_archive(blob).map_err(kiln_snapshot::Error::Input)?;
        let room = parents.store().room(&aside.files);
        let applied = snapshot::apply(room.for_archive(archive), &aside.files, lower, &parents.dirs())?;
        if applied.diff_id != expected {
            return Err(StoreError::Mismatch { expected, got: applied.diff_id });
        }
        let encoded = applied.manifest.encode();
        disk::write_new(&aside.manifest, &encoded)?;
        let bytes = account::layer_bytes(&applied.manifest, &aside.files, encoded.len() as u64);
        room.settle();
        self.account_finished(bytes);
        let _room = parents.store().reserve_written(bytes);
        let dir = LayerDir(self.layout.layer(layer.id()));
        disk::ensure_dir(&dir.0)?;
        // The record says "unpacked" last: a kill in between leaves a lazy layer with leftovers, which go here next time.
        if fs::symlink_metadata(dir.fs()).is_ok() {
            self.discard(&dir.fs());
        }
        fault::point("store.unpack.fs").at("rename", &dir.fs())?;
        fs::rename(&aside.files, dir.fs()).at("rename", &dir.fs())?;
        let _ = disk::remove_tree(&dir.manifest());
        let _ = disk::remove_tree(&dir.sums());
        fault::point("store.unpack.manifest").at("rename", &dir.manifest())?;
        fs::rename(&aside.manifest, dir.manifest()).at("rename", &dir.manifest())?;
        let unpacked = self.unpacked(&applied.manifest, &encoded, Some(bytes));
        // Its download counts, too, where it is unpacked while it comes.
        let cost = self.clock.unix_nanos().saturating_sub(begun) / 1_000_000;
        self.update_layer(&layer.cell, |record| {
            record.unpacked = Some(unpacked);
            record.cost_ms = Some(cost);
        })?;
        self.account_layer(&layer.cell, bytes);
        layer.cell.checked.store(self.clock.unix_nanos(), std::sync::atomic::Ordering::Relaxed);
        self.keep_manifest(layer.id(), std::sync::Arc::new(applied.manifest));
        Ok(())
    }
}

/// Where a layer is unpacked before it is published. No directory is around both: making one and removing it would take as
/// long as unpacking a small layer.
struct Aside {
    files: PathBuf,
    manifest: PathBuf,
}

/// Returns what is inside a blob, by its first bytes.
fn open_archive<'a>(blob: impl Read + Send + 'a) -> std::io::Result<Box<dyn Read + Send + 'a>> {
    Ok(compress::decompress(BufReader::with_capacity(1 << 18, blob))?.1)
}

fn kind_name(compression: &Compression) -> &'static str {
    match compression.kind {
        Kind::None => "none",
        Kind::Gzip => "gzip",
        Kind::Zstd => "zstd",
    }
}

/// Reads what [`compression_name`] wrote.
fn parse_compression(name: &str) -> Option<Compression> {
    let (kind, level) = match name.split_once('-') {
        Some((kind, level)) => (kind, Some(level.parse().ok()?)),
        None => (name, None),
    };
    let kinds = [Compression::NONE, Compression::GZIP, Compression::ZSTD];
    let found = kinds.iter().find(|c| kind_name(c) == kind)?;
    Some(Compression { level, ..*found })
}

/// Tells whether a form came as it is from elsewhere.
fn is_pulled(variant: &Variant) -> bool {
    variant.compression.is_empty()
}

/// The compression of a pulled blob, by its media type.
fn kind_of(variant: &Variant) -> &'static str {
    let media_type = variant.descriptor.media_type.as_str();
    if media_type.ends_with("gzip") {
        "gzip"
    } else if media_type.ends_with("zstd") {
        "zstd"
    } else {
        "none"
    }
}

fn compression_name(compression: &Compression) -> String {
    match compression.level {
        Some(level) => format!("{}-{level}", kind_name(compression)),
        None => kind_name(compression).to_owned(),
    }
}

fn media_type(compression: &Compression) -> &'static str {
    match compression.kind {
        Kind::None => media::OCI_LAYER,
        Kind::Gzip => media::OCI_LAYER_GZIP,
        Kind::Zstd => media::OCI_LAYER_ZSTD,
    }
}
