//! Makes the layer of a client's directory from its listing, the last state, and whatever has to be read.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;

use kiln_snapshot::layer::{FileMeta, Overrides};
use kiln_snapshot::{Entry, Kind, LayerBuilder, LayerManifest, Tree};
use kiln_stdx::{Digest, Fingerprint};
use kiln_store::{FileSum, ImmutableRef, RecordType, Store};
use tokio_util::sync::CancellationToken;

use super::ahead::ahead;
use crate::error::EngineError;
use crate::layers;

/// Files up to this size are read and hashed on other threads before it is their turn to be written.
const SMALL: u64 = 256 << 10;
/// How many names are handled between looks at the cancel token.
const STRIDE: usize = 256;

/// The state that a directory had in an earlier build.
pub struct Last {
    pub reference: ImmutableRef,
    manifest: Arc<LayerManifest>,
    dir: PathBuf,
}

impl Last {
    /// Returns the last state, if it is one layer and whole.
    pub fn of(store: &Store, reference: ImmutableRef) -> Option<Self> {
        store.check(&reference).ok()?;
        let [manifest] = <[_; 1]>::try_from(reference.manifests().ok()?).ok()?;
        let dir = reference.dirs().pop()?;
        Some(Self { reference, manifest, dir })
    }

    /// Returns what was at `path`.
    pub fn get(&self, path: &[u8]) -> Option<&Entry> {
        self.manifest.get(path)
    }

    /// Tells whether the directory held exactly this.
    pub fn equals(&self, entries: &[Entry]) -> bool {
        let old = self.manifest.entries().iter().filter(|e| !e.path.is_empty());
        old.clone().count() == entries.len() && old.zip(entries).all(|(a, b)| a.path == b.path && a.same_object(b))
    }
}

/// Where the bytes of a file come from.
pub trait Contents: Sync {
    /// Opens the file that stands at `place` in the listing.
    ///
    /// # Errors
    /// It cannot be read any more.
    fn open(&self, place: usize, entry: &Entry) -> std::io::Result<File>;

    /// Learns that all bytes of a file were read, from this descriptor, and what they were.
    fn read(&self, place: usize, entry: &Entry, file: &File);
}

/// A small file that was read whole.
struct Small {
    bytes: Vec<u8>,
    digest: Fingerprint,
}

/// A directory to be made into a layer.
pub struct Assembly<'a> {
    pub store: &'a Store,
    pub last: Option<&'a Last>,
    /// In component order. Files have a digest where their bytes are known to be those of the last state.
    pub entries: Vec<Entry>,
    /// Names that are one inode: the place of the first name by the place of each later one.
    pub links: HashMap<usize, usize>,
    pub contents: &'a dyn Contents,
    pub description: String,
    pub cancel: &'a CancellationToken,
}

impl Assembly<'_> {
    /// Writes the layer, or returns the last state when nothing differs from it.
    ///
    /// # Errors
    /// A file that cannot be read, a full disk, a call that was called off.
    pub fn finish(self) -> Result<ImmutableRef, EngineError> {
        if let Some(last) = self.last
            && last.equals(&self.entries)
        {
            return Ok(last.reference.clone());
        }
        let scratch = self.store.scratch();
        let draft = self.store.draft()?;
        let (tree, dirs) = (Tree::default(), Vec::new());
        let mut builder = LayerBuilder::new(&draft.fs(), &tree, &dirs)?;
        let mut small: Vec<usize> = (0..self.entries.len()).filter(|&place| self.is_written(place)).collect();
        draft.room().take(small.iter().map(|&place| self.entries[place].size).sum());
        small.retain(|&place| self.entries[place].size <= SMALL);
        ahead(
            &small,
            |&place| self.read(place),
            |next| {
                let mut small = small.iter().copied().peekable();
                for (place, entry) in self.entries.iter().enumerate() {
                    if place % STRIDE == 0 && self.cancel.is_cancelled() {
                        return Err(EngineError::canceled());
                    }
                    let read = small.next_if_eq(&place).and_then(|_| next()).transpose()?.flatten();
                    self.place(place, entry, read, &mut builder)?;
                }
                Ok(())
            },
        )?;
        let manifest = builder.finish()?;
        let info = layers::info(&scratch, self.description.clone(), RecordType::SourceLocal);
        let layer = self.store.commit(draft, manifest, info)?;
        Ok(scratch.with_layer(layer))
    }

    /// Returns what the last state has at the path, if the bytes are the same.
    fn unchanged(&self, entry: &Entry) -> Option<(&Last, &Entry)> {
        let (last, digest) = (self.last?, entry.digest?);
        Some((last, last.get(&entry.path).filter(|old| old.digest == Some(digest))?))
    }

    /// Tells whether it is a file whose bytes are not here yet.
    fn is_written(&self, place: usize) -> bool {
        let entry = &self.entries[place];
        entry.kind == Kind::File && !self.links.contains_key(&place) && self.unchanged(entry).is_none()
    }

    /// Reads and hashes a small file; none when it has grown beyond one.
    fn read(&self, place: usize) -> Result<Option<Small>, EngineError> {
        let entry = &self.entries[place];
        let file = self.contents.open(place, entry).map_err(|e| unreadable(&e))?;
        let mut bytes = Vec::with_capacity(usize::try_from(entry.size).unwrap_or_default() + 1);
        (&file).take(SMALL + 1).read_to_end(&mut bytes)?;
        let size = bytes.len() as u64;
        if size > SMALL {
            return Ok(None);
        }
        let digest = Fingerprint::of(&bytes);
        self.learn(place, entry, &file, (digest, size), || {
            let mut sum = FileSum::new(entry);
            sum.update(&bytes);
            sum.finish()
        });
        Ok(Some(Small { bytes, digest }))
    }

    /// Remembers what the bytes of a file were.
    fn learn(
        &self,
        place: usize,
        entry: &Entry,
        file: &File,
        (digest, size): (Fingerprint, u64),
        sum: impl FnOnce() -> Digest,
    ) {
        let written = Entry { digest: Some(digest), size, ..entry.clone() };
        if size == entry.size {
            self.store.note_file_sum(&written, sum());
        }
        self.contents.read(place, &written, file);
    }

    fn place(
        &self,
        place: usize,
        entry: &Entry,
        read: Option<Small>,
        builder: &mut LayerBuilder<'_>,
    ) -> Result<(), EngineError> {
        if let Some(first) = self.links.get(&place).and_then(|first| self.entries.get(*first)) {
            return Ok(builder.hard_link(&first.path, &entry.path)?);
        }
        let meta = FileMeta::of(entry);
        match entry.kind {
            Kind::Dir => builder.mkdir(&entry.path, &meta)?,
            Kind::Symlink => builder.symlink(&entry.path, &entry.target, &meta)?,
            Kind::Fifo | Kind::CharDevice | Kind::BlockDevice => {
                builder.node(&entry.path, entry.kind, entry.rdev, &meta)?;
            }
            Kind::Whiteout => {}
            Kind::File => match read {
                Some(small) => builder.file_of(&entry.path, &meta, &small.bytes, small.digest)?,
                None => self.file(place, entry, &meta, builder)?,
            },
        }
        Ok(())
    }

    fn file(
        &self,
        place: usize,
        entry: &Entry,
        meta: &FileMeta,
        builder: &mut LayerBuilder<'_>,
    ) -> Result<(), EngineError> {
        // The last state has the same bytes: link them, or copy them when mode or time differ.
        if let Some((last, old)) = self.unchanged(entry) {
            let source = last.dir.join(OsString::from_vec(old.path.clone()));
            let overrides = Overrides {
                owner: Some((entry.uid, entry.gid)),
                mode: Some(entry.mode),
                mtime: Some(entry.mtime),
                xattrs: Some(entry.xattrs.clone()),
            };
            builder.link_or_copy(&source, old, &entry.path, &overrides)?;
            return Ok(());
        }
        let file = self.contents.open(place, entry).map_err(|e| unreadable(&e))?;
        let mut summing = Summing { inner: &file, sum: FileSum::new(entry) };
        let (digest, size) = builder.file_from_reader(&entry.path, meta, &mut summing)?;
        self.learn(place, entry, &file, (digest, size), || summing.sum.finish());
        Ok(())
    }
}

/// The error of a name in the client's directory that cannot be read; the cause tells which one.
pub fn unreadable(error: &std::io::Error) -> EngineError {
    EngineError::user(format!("failed to read the build context: {error}"))
        .with_hint("exclude the path in .dockerignore, or make it readable")
}

/// Makes the content digest of a file while its bytes pass by.
struct Summing<R> {
    inner: R,
    sum: FileSum,
}

impl<R: Read> Read for Summing<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.sum.update(&buf[..n]);
        Ok(n)
    }
}

/// Returns the fingerprint of a reader's bytes.
///
/// # Errors
/// The reader's.
pub fn print_of(reader: impl Read) -> std::io::Result<Fingerprint> {
    // Most files are small: clearing a large buffer for each would cost more than reading.
    let mut buffer = [0; 32 << 10];
    Fingerprint::of_reader(reader, &mut buffer).map(|(print, _)| print)
}
