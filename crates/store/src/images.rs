//! The named images: an OCI image layout in `images/`, on disk before success is reported, repaired from what is left
//! of it.
//!
//! Blobs of the layout are hard links to the main blob store, which GC does not take away; small ones (configs,
//! manifests, indexes), that nothing could make again, are files of their own, so that two copies exist. Of
//! `index.json` there is a sealed copy, which wins where the two differ: it is written first and carries a checksum.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use kiln_oci::{Descriptor, Index, Manifest, media};
use kiln_stdx::{Digest, fault, limits};
use parking_lot::Mutex;

use crate::blob::matches_digest;
use crate::disk;
use crate::error::{IoContext, Result, StoreError};
use crate::repair::RepairAction;
use crate::store::{Inner, Store};

const KIND: &str = "kiln.images.v1";
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// Annotation of the tag or reference of an image in a layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation of the full name of an image.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// Annotation of the time an entry was added, RFC 3339 not needed by anyone: seconds since 1970.
const CREATED: &str = "dev.kiln.created";
/// Blobs up to this size are copied instead of linked.
const COPIED: u64 = 256 * 1024;

/// An image of the local image store.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Full name with tag, as `docker.io/library/app:latest`; none for a dangling image.
    pub name: Option<String>,
    /// Its manifest or index.
    pub target: Descriptor,
    /// When it was put there, seconds since 1970.
    pub created: u64,
}

/// The index in memory and what the images hold on to.
#[derive(Default)]
pub(crate) struct ImageTable {
    /// `None` until first used.
    entries: Mutex<Option<Vec<Image>>>,
    pins: Mutex<Option<Arc<BTreeSet<Digest>>>>,
    /// Bytes of those in the main store, when they were last known.
    pub pinned: AtomicU64,
}

impl ImageTable {
    /// Returns the blobs of all images, if they are at hand.
    pub fn known_pins(&self) -> Option<Arc<BTreeSet<Digest>>> {
        self.pins.lock().clone()
    }
}

impl Store {
    /// Returns the images, in the order in which they were put.
    ///
    /// # Errors
    /// The layout cannot be repaired (the disk is full).
    pub fn images(&self) -> Result<Vec<Image>> {
        self.0.with_images(|images| Ok(images.clone()))
    }

    /// Returns the image of that full name.
    ///
    /// # Errors
    /// As [`Store::images`].
    pub fn image(&self, name: &str) -> Result<Option<Image>> {
        Ok(self.images()?.into_iter().find(|image| image.name.as_deref() == Some(name)))
    }

    /// Puts an image under each of `names`, or as a dangling one, and returns when it is on disk. `blobs` are all blobs
    /// of the image, which must be in the store. An image that had one of the names stays, dangling.
    ///
    /// # Errors
    /// A blob is missing; the disk is full or cannot be synced. The image is then not there.
    pub fn put_image(&self, names: &[String], target: &Descriptor, blobs: &[Digest]) -> Result<()> {
        let inner = &self.0;
        let mut guards = Vec::new();
        let mut pinned_any = false;
        for digest in blobs.iter().chain([&target.digest]) {
            let blob = self.blob(digest).ok_or(StoreError::MissingBlob(*digest))?;
            fault::point("store.image.blob").at("link", blob.path())?;
            pinned_any |= inner.pin_blob(digest)?;
            guards.push(blob);
        }
        let now = inner.clock.unix();
        inner.with_images(|images| {
            let has = |name: &String| images.iter().any(|i| i.name.as_ref() == Some(name) && i.target == *target);
            if !pinned_any && !names.is_empty() && names.iter().all(has) {
                return Ok(());
            }
            let before = images.clone();
            for image in images.iter_mut() {
                if image.name.as_ref().is_some_and(|name| names.contains(name)) {
                    image.name = None;
                }
            }
            let new = |name: Option<&String>| Image { name: name.cloned(), target: target.clone(), created: now };
            images.extend(names.iter().map(|name| new(Some(name))));
            if names.is_empty() {
                images.push(new(None));
            }
            tidy(images);
            // The blobs were synced one by one; their names have to be on disk before the index that lists them.
            let dir = inner.layout.images().join("blobs/sha256");
            let synced = fs::File::open(&dir).and_then(|dir| dir.sync_all()).at("sync", &dir);
            let written = synced.and_then(|()| inner.write_index(images));
            if written.is_err() {
                *images = before;
            }
            written
        })
    }

    /// Removes a name, or with the digest of its manifest or index a dangling image, and then the blobs that no other
    /// image has. Tells whether there was one.
    ///
    /// # Errors
    /// The index cannot be written.
    pub fn remove_image(&self, name: &str) -> Result<bool> {
        let removed = self.0.with_images(|images| {
            let before = images.clone();
            images.retain(|image| match &image.name {
                Some(n) => n != name,
                None => image.target.digest.to_string() != name,
            });
            if images.len() == before.len() {
                return Ok(false);
            }
            if let Err(e) = self.0.write_index(images) {
                *images = before;
                return Err(e);
            }
            Ok(true)
        })?;
        if removed {
            self.0.unpin_blobs()?;
        }
        Ok(removed)
    }

    /// Returns the directory of the layout, for `oci-layout://` readers.
    pub fn images_dir(&self) -> PathBuf {
        self.0.layout.images()
    }

    /// Checks that every blob of an image is here and good by stat; what is not is made again from its second copy, or
    /// from the layer that it is a form of.
    ///
    /// # Errors
    /// The digest of the first blob that is gone.
    pub fn check_image(&self, image: &Image) -> Result<()> {
        for digest in self.0.image_blobs(&image.target) {
            self.restore_blob(&digest).ok_or(StoreError::MissingBlob(digest))?;
            self.0.pin_blob(&digest)?;
        }
        Ok(())
    }
}

impl Inner {
    fn with_images<T>(&self, work: impl FnOnce(&mut Vec<Image>) -> Result<T>) -> Result<T> {
        let mut entries = self.images.entries.lock();
        let current = self.read_index(entries.as_deref())?;
        let before = entries.take();
        let images = entries.insert(current);
        let result = work(images);
        if before.as_ref() != Some(images) {
            *self.images.pins.lock() = None;
        }
        result
    }

    fn index_copy(&self) -> PathBuf {
        self.layout.images().join(".kiln-index")
    }

    /// Reads the index as it is on disk, made good again from its copy or from `known`, what is in memory.
    fn read_index(&self, known: Option<&[Image]>) -> Result<Vec<Image>> {
        let dir = self.layout.images();
        disk::ensure_dir(&dir.join("blobs/sha256"))?;
        let index = disk::read(&dir.join("index.json"));
        let copy = disk::read(&self.index_copy());
        let copy = copy.as_deref().and_then(|bytes| disk::unseal(KIND, bytes)).map(<[u8]>::to_vec);
        let good_layout = disk::read(&dir.join("oci-layout")).as_deref() == Some(LAYOUT);
        let (images, good) = match (copy, index, known) {
            (Some(copy), index, _) => {
                let good = index.as_ref() == Some(&copy);
                (parse_index(&copy).unwrap_or_default(), good)
            }
            (None, _, Some(known)) => (known.to_vec(), false),
            (None, Some(index), None) => (parse_index(&index).unwrap_or_default(), false),
            (None, None, None) => (Vec::new(), false),
        };
        if !good || !good_layout {
            let fresh = images.is_empty() && fs::symlink_metadata(dir.join("oci-layout")).is_err();
            if !fresh {
                self.log.add("images", "the index, its copy or the layout file differs", RepairAction::Repaired);
            }
            self.write_index(&images)?;
        }
        Ok(images)
    }

    fn write_index(&self, images: &[Image]) -> Result<()> {
        let dir = self.layout.images();
        let json = index_json(images)?;
        disk::replace(&dir.join("oci-layout"), self.layout.tmp(), LAYOUT, "store.image.layout", true)?;
        let sealed = disk::seal(KIND, json.clone());
        disk::replace(&self.index_copy(), self.layout.tmp(), &sealed, "store.image.copy", true)?;
        disk::replace(&dir.join("index.json"), self.layout.tmp(), &json, "store.image.index", true)
    }

    fn pinned_path(&self, digest: &Digest) -> PathBuf {
        self.layout.images().join("blobs/sha256").join(digest.hex())
    }

    /// Makes sure that the layout has the blob, which is in the main store and good, and that its bytes are on disk.
    /// Tells whether anything was to be done.
    fn pin_blob(&self, digest: &Digest) -> Result<bool> {
        let (main, pinned) = (self.layout.blob(digest), self.pinned_path(digest));
        let size = disk::Stamp::of(&main).map(|s| s.size);
        if size.is_some_and(|size| size <= COPIED) {
            if !matches_digest(&pinned, digest) {
                let bytes = fs::read(&main).at("read", &main)?;
                disk::replace(&pinned, self.layout.tmp(), &bytes, "store.image.small", true)?;
                return Ok(true);
            }
            return Ok(false);
        }
        if same_file(&main, &pinned) {
            return Ok(false);
        }
        disk::remove_tree(&pinned).at("remove", &pinned)?;
        match fs::hard_link(&main, &pinned) {
            Err(e) if e.raw_os_error() == Some(libc::EMLINK) => {
                fs::copy(&main, &pinned).map(|_| ()).at("copy", &pinned)
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other.at("link", &pinned),
        }?;
        fs::File::open(&pinned).and_then(|file| file.sync_all()).at("sync", &pinned)?;
        Ok(true)
    }

    /// Removes from the layout the blobs that no image has.
    fn unpin_blobs(&self) -> Result<()> {
        let pins = self.pinned_blobs()?;
        let dir = self.layout.images().join("blobs/sha256");
        for entry in fs::read_dir(&dir).at("list", &dir)?.flatten() {
            let name = entry.file_name();
            let digest = name.to_str().and_then(|n| format!("sha256:{n}").parse::<Digest>().ok());
            if digest.is_none_or(|digest| !pins.contains(&digest)) {
                let _ = disk::remove_tree(&entry.path());
            }
        }
        Ok(())
    }

    /// Returns the blobs of all images.
    pub(crate) fn pinned_blobs(&self) -> Result<Arc<BTreeSet<Digest>>> {
        if let Some(pins) = self.images.pins.lock().clone() {
            return Ok(pins);
        }
        let images = self.with_images(|images| Ok(images.clone()))?;
        let pins: BTreeSet<Digest> = images.iter().flat_map(|image| self.image_blobs(&image.target)).collect();
        let pins = Arc::new(pins);
        *self.images.pins.lock() = Some(pins.clone());
        Ok(pins)
    }

    /// Returns all blobs that a manifest or index reaches, itself included, as far as they are here.
    pub(crate) fn image_blobs(&self, target: &Descriptor) -> BTreeSet<Digest> {
        let mut found = BTreeSet::new();
        let mut work = vec![target.clone()];
        while let Some(descriptor) = work.pop() {
            if !found.insert(descriptor.digest) {
                continue;
            }
            let (is_index, is_manifest) =
                (media::is_index(&descriptor.media_type), media::is_manifest(&descriptor.media_type));
            if !is_index && !is_manifest {
                continue;
            }
            let Some(bytes) = self.small_blob(&descriptor.digest) else { continue };
            if is_index {
                work.extend(Index::from_json(&bytes).map(|index| index.manifests).unwrap_or_default());
            } else if let Ok(manifest) = Manifest::from_json(&bytes) {
                work.push(manifest.config);
                work.extend(manifest.layers);
            }
        }
        found
    }

    fn small_blob(&self, digest: &Digest) -> Option<Vec<u8>> {
        let good = |path: PathBuf| {
            let small = disk::Stamp::of(&path).is_some_and(|s| s.size <= limits::MANIFEST);
            fs::read(path).ok().filter(|bytes| small && Digest::of(bytes) == *digest)
        };
        good(self.layout.blob(digest)).or_else(|| good(self.pinned_path(digest)))
    }

    /// Makes the layout's blobs good again from the main store, and the other way round. Returns what is lost.
    pub(crate) fn repair_images(&self, store: &Store) -> Result<Vec<Digest>> {
        let mut lost = Vec::new();
        *self.images.pins.lock() = None;
        for &digest in self.pinned_blobs()?.iter() {
            if self.blob(&digest, true).is_none() && store.restore_blob(&digest).is_none() {
                lost.push(digest);
                continue;
            }
            self.pin_blob(&digest)?;
        }
        Ok(lost)
    }
}

fn same_file(a: &std::path::Path, b: &std::path::Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (fs::symlink_metadata(a), fs::symlink_metadata(b)) {
        (Ok(a), Ok(b)) => a.is_file() && (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Drops dangling entries whose image has a name, and repeated ones.
fn tidy(images: &mut Vec<Image>) {
    let named: BTreeSet<Digest> = images.iter().filter(|i| i.name.is_some()).map(|i| i.target.digest).collect();
    let mut seen = BTreeSet::new();
    images.retain(|image| {
        (image.name.is_some() || !named.contains(&image.target.digest))
            && seen.insert((image.name.clone(), image.target.digest))
    });
}

fn index_json(images: &[Image]) -> Result<Vec<u8>> {
    let entries = images.iter().map(|image| {
        let mut descriptor = image.target.clone();
        for key in [REF_NAME, IMAGE_NAME, CREATED] {
            descriptor.annotations.remove(key);
        }
        if let Some(name) = &image.name {
            let short = name.rsplit('/').next().and_then(|last| last.split_once(':')).map_or("latest", |(_, tag)| tag);
            descriptor.annotations.insert(REF_NAME.into(), short.to_owned());
            descriptor.annotations.insert(IMAGE_NAME.into(), name.clone());
        }
        descriptor.annotations.insert(CREATED.into(), image.created.to_string());
        descriptor
    });
    Index::new(media::OCI_INDEX, entries.collect())
        .to_manifest_json()
        .map_err(|e| StoreError::Invalid(format!("image index: {e}")))
}

/// Reads an index; entries that other tools added count, by whatever name they have.
fn parse_index(json: &[u8]) -> Option<Vec<Image>> {
    let index = Index::from_json(json).ok()?;
    let image = |mut target: Descriptor| {
        let annotations: &mut BTreeMap<String, String> = &mut target.annotations;
        let created = annotations.remove(CREATED).and_then(|t| t.parse().ok()).unwrap_or(0);
        let short = annotations.remove(REF_NAME);
        let name = annotations.remove(IMAGE_NAME).or(short);
        Image { name, target, created }
    };
    Some(index.manifests.into_iter().map(image).collect())
}

#[cfg(test)]
mod tests;
