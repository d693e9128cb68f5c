//! Blobs: bytes named by their digest. Published by rename after verification, checked by size and time when used,
//! by digest where those differ.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kiln_stdx::{Digest, DigestHasher, Fingerprint, FingerprintHasher, fault};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::budget::{LetGo, Reservation};
use crate::disk::{self, Stamp};
use crate::epoch;
use crate::error::{IoContext, Result, StoreError};
use crate::partial::{Claim, WORTH};
use crate::repair::RepairAction;
use crate::store::{Inner, Store};

/// How old a persisted time of last use may get before it is written again, in seconds.
pub(crate) const USE_GRAIN: u64 = 60;

/// Bytes read at once when a blob is checked.
const PIECE: usize = 256 << 10;

/// What is remembered of a blob's file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct BlobRow {
    pub size: u64,
    pub mtime: i64,
    /// What later checks compare; rows of older programs have none.
    #[serde(default)]
    pub print: Option<Fingerprint>,
    pub stamp: epoch::Stamp,
    pub created: u64,
    pub used: u64,
}

pub(crate) struct BlobCell {
    pub digest: Digest,
    pub row: Mutex<BlobRow>,
    /// When the file was last found good, in nanoseconds of the clock; 0 is never.
    checked: AtomicU64,
}

pub(crate) type BlobTable = Mutex<HashMap<Digest, Arc<BlobCell>>>;

/// A blob that is in the store and was good at its last check. While a value of this type lives, GC leaves it alone.
#[derive(Clone)]
pub struct Blob {
    cell: Arc<BlobCell>,
    path: PathBuf,
    size: u64,
    _let_go: LetGo,
}

impl Blob {
    /// The digest of its bytes.
    pub fn digest(&self) -> Digest {
        self.cell.digest
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Its file, which is never to be written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells whether its file is there with its length, whenever that was last checked.
    pub(crate) fn stands(&self) -> bool {
        Stamp::of(&self.path).is_some_and(|stamp| stamp.size == self.size)
    }

    /// Opens it for reading.
    ///
    /// # Errors
    /// The file went away or cannot be opened.
    pub fn open(&self) -> Result<File> {
        File::open(&self.path).at("open", &self.path)
    }

    /// Opens it for reading bytes that leave the engine: a read to the end fails if the digest is not right.
    ///
    /// # Errors
    /// As [`Blob::open`].
    pub fn open_verified(&self) -> Result<VerifyingReader> {
        let check = Check::of(self.cell.digest, self.cell.row.lock().print);
        Ok(VerifyingReader { file: self.open()?, check: Some(check), digest: self.cell.digest })
    }
}

/// Finds out whether bytes are a blob's: by its fingerprint where that is known, which costs little.
enum Check {
    Print(Box<FingerprintHasher>, Fingerprint),
    Digest(DigestHasher, Digest),
}

impl Check {
    fn of(digest: Digest, print: Option<Fingerprint>) -> Self {
        match print {
            Some(print) => Self::Print(Box::default(), print),
            None => Self::Digest(DigestHasher::new(), digest),
        }
    }

    fn update(&mut self, data: &[u8]) {
        match self {
            Self::Print(hasher, _) => hasher.update(data),
            Self::Digest(hasher, _) => hasher.update(data),
        }
    }

    fn holds(self) -> bool {
        match self {
            Self::Print(hasher, expected) => hasher.finish() == expected,
            Self::Digest(hasher, expected) => hasher.finish() == expected,
        }
    }
}

/// Reads a blob and tells at the end whether its bytes were right.
pub struct VerifyingReader {
    file: File,
    check: Option<Check>,
    digest: Digest,
}

impl Read for VerifyingReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buf)?;
        if n > 0 {
            if let Some(check) = &mut self.check {
                check.update(&buf[..n]);
            }
        } else if !buf.is_empty()
            && let Some(check) = self.check.take()
            && !check.holds()
        {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("blob {} is damaged", self.digest)));
        }
        Ok(n)
    }
}

/// What is being found out of the bytes that come in.
#[derive(Default)]
pub(crate) struct Hashers {
    /// None where the writer verifies the digest.
    digest: Option<DigestHasher>,
    print: FingerprintHasher,
}

impl Hashers {
    pub(crate) fn new() -> Self {
        Self { digest: Some(DigestHasher::new()), print: FingerprintHasher::new() }
    }

    pub(crate) fn update(&mut self, data: &[u8]) {
        if let Some(hasher) = &mut self.digest {
            hasher.update(data);
        }
        self.print.update(data);
    }
}

/// A blob on its way in. Dropping it removes what was written.
pub struct Ingest {
    store: Store,
    tmp: PathBuf,
    file: Option<File>,
    hashers: Hashers,
    written: u64,
    expected: Option<Digest>,
    size: Option<u64>,
    /// Of one that can be gone on with after it broke off.
    claim: Option<Claim>,
    reservation: Reservation,
}

impl Ingest {
    pub(crate) fn resumed(
        store: &Store,
        tmp: PathBuf,
        file: File,
        hashers: Hashers,
        written: u64,
        (digest, size): (Digest, u64),
        claim: Claim,
    ) -> Self {
        let reservation = store.reserve(size);
        let (store, file, expected, size) = (store.clone(), Some(file), Some(digest), Some(size));
        Self { store, tmp, file, hashers, written, expected, size, claim: Some(claim), reservation }
    }

    /// Leaves the digest to the caller, with its state over what was written so far: from here on nothing but bytes that
    /// complete the announced digest may be committed, and they are not hashed a second time.
    pub fn trust(&mut self) -> DigestHasher {
        match self.expected {
            Some(_) => self.hashers.digest.take().unwrap_or_default(),
            None => self.hashers.digest.clone().unwrap_or_default(),
        }
    }

    /// Says what the digest is, of a blob begun by [`Store::ingest_hashed`].
    pub(crate) fn hashed_as(&mut self, digest: Digest) {
        self.expected = Some(digest);
    }

    /// Drops what was written for good, also of an attempt that could be gone on with.
    pub fn discard(mut self) {
        self.finish_claim();
    }

    /// From here on the file is one like any other, which goes away when this is dropped.
    fn finish_claim(&mut self) {
        if self.claim.take().is_some() {
            let _ = fs::remove_file(&self.tmp);
        }
    }

    /// The number of bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Verifies size and digest and publishes the blob.
    ///
    /// # Errors
    /// Size or digest differ from what was announced; the disk is full.
    pub fn commit(mut self) -> Result<Blob> {
        let Hashers { digest, print } = std::mem::take(&mut self.hashers);
        if let Some(size) = self.size
            && size != self.written
        {
            let got = self.written;
            self.finish_claim();
            return Err(StoreError::Size { expected: size, got });
        }
        let digest = match (digest.map(DigestHasher::finish), self.expected) {
            (Some(got), Some(expected)) if got != expected => {
                self.finish_claim();
                return Err(StoreError::Mismatch { expected, got });
            }
            (Some(got), _) => got,
            (None, Some(expected)) => expected,
            (None, None) => return Err(StoreError::Invalid("nobody has hashed a blob".to_owned())),
        };
        if let (Some(file), Some(_)) = (&self.file, &self.claim) {
            file.set_permissions(fs::Permissions::from_mode(0o444)).at("change", &self.tmp)?;
        }
        self.file = None;
        let published = self.store.0.publish_blob(&self.tmp, digest, print.finish());
        if let (Some(claim), Ok(_)) = (&self.claim, &published) {
            claim.arrival.published();
        }
        self.finish_claim();
        published
    }
}

impl Write for Ingest {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::BrokenPipe.into()) };
        fault::point("store.blob.write")?;
        self.reservation.grow_to(self.written + buf.len() as u64);
        let n = file.write(buf)?;
        self.hashers.update(&buf[..n]);
        self.written += n as u64;
        if self.size.is_some_and(|size| self.written > size) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more bytes than announced"));
        }
        if let Some(claim) = &self.claim {
            claim.arrival.written(self.written);
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        let kept = self.claim.is_some() && self.written >= WORTH;
        if !kept {
            let _ = fs::remove_file(&self.tmp);
        }
    }
}

impl Store {
    /// Returns the blob if it is here and good: by size and time, or by digest where these differ or where the last
    /// session ended badly.
    pub fn blob(&self, digest: &Digest) -> Option<Blob> {
        self.0.blob(digest, false)
    }

    /// Returns the blob if it is here and its bytes have been read and verified now.
    pub fn verify_blob(&self, digest: &Digest) -> Option<Blob> {
        self.0.blob(digest, true)
    }

    /// Begins a blob; give what is known of it.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn ingest(&self, expected: Option<Digest>, size: Option<u64>) -> Result<Ingest> {
        let tmp = self.0.layout.tmp();
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o444).open(&tmp).at("create", &tmp)?;
        let hashers = Hashers::new();
        let reservation = self.reserve(size.unwrap_or_default());
        let (store, file) = (self.clone(), Some(file));
        Ok(Ingest { store, tmp, file, hashers, written: 0, expected, size, claim: None, reservation })
    }

    /// As [`Store::ingest`], for bytes that are hashed before they come; their digest follows.
    pub(crate) fn ingest_hashed(&self) -> Result<Ingest> {
        let mut ingest = self.ingest(None, None)?;
        ingest.hashers.digest = None;
        Ok(ingest)
    }

    /// Stores bytes that are in memory.
    ///
    /// # Errors
    /// As [`Ingest::commit`].
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Blob> {
        let digest = Digest::of(bytes);
        if let Some(blob) = self.blob(&digest) {
            return Ok(blob);
        }
        let mut ingest = self.ingest(Some(digest), Some(bytes.len() as u64))?;
        ingest.write_all(bytes).at("write", &ingest.tmp.clone())?;
        ingest.commit()
    }

    /// Reads a whole blob of at most `limit` bytes, verified.
    ///
    /// # Errors
    /// It is missing, too large, or damaged (it is then dropped).
    pub fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        for _ in 0..2 {
            let blob = self.blob(digest).ok_or(StoreError::MissingBlob(*digest))?;
            if blob.size() > limit {
                return Err(StoreError::Invalid(format!("blob {digest} is larger than {limit} bytes")));
            }
            let bytes = fs::read(blob.path()).at("read", blob.path());
            if let Ok(bytes) = bytes
                && Digest::of(&bytes) == *digest
            {
                return Ok(bytes);
            }
            // Verifying finds a good copy or drops the blob, so the second round settles it.
            self.verify_blob(digest);
        }
        Err(StoreError::MissingBlob(*digest))
    }
}

impl Inner {
    pub(crate) fn load_blobs(&self) {
        let rows = self.meta.table("blob").scan_prefix(b"");
        let mut blobs = self.blobs.lock();
        for (key, value) in rows {
            let (Ok(bytes), Ok(row)) =
                (<[u8; 32]>::try_from(key.as_slice()), serde_json::from_slice::<BlobRow>(&value))
            else {
                continue;
            };
            let digest = Digest::from_bytes(bytes);
            self.account_blob(row.size, true);
            blobs.insert(digest, Arc::new(BlobCell { digest, row: Mutex::new(row), checked: AtomicU64::new(0) }));
        }
    }

    fn handle(&self, cell: Arc<BlobCell>) -> Blob {
        let path = self.layout.blob(&cell.digest);
        let size = cell.row.lock().size;
        self.touch_blob(&cell);
        Blob { cell, path, size, _let_go: LetGo }
    }

    fn touch_blob(&self, cell: &BlobCell) {
        let now = self.clock.unix();
        let mut row = cell.row.lock();
        let stale = now >= row.used + USE_GRAIN;
        if stale {
            row.used = now;
            self.save_blob(&cell.digest, &row);
        }
    }

    fn save_blob(&self, digest: &Digest, row: &BlobRow) {
        if let Ok(value) = serde_json::to_vec(row) {
            self.meta.table("blob").put(digest.as_bytes(), &value);
        }
    }

    pub(crate) fn blob(&self, digest: &Digest, verify: bool) -> Option<Blob> {
        let cell = self.blobs.lock().get(digest).cloned();
        let path = self.layout.blob(digest);
        if let Some(cell) = &cell
            && !verify
        {
            let suspect = self.epochs.is_suspect(&cell.row.lock().stamp);
            if !suspect && self.is_fresh(cell.checked.load(Ordering::Relaxed)) {
                return Some(self.handle(cell.clone()));
            }
            let (size, mtime) = {
                let row = cell.row.lock();
                (row.size, row.mtime)
            };
            if !suspect && Stamp::of(&path) == Some(Stamp { size, mtime }) {
                cell.checked.store(self.clock.unix_nanos(), Ordering::Relaxed);
                return Some(self.handle(cell.clone()));
            }
        }
        let print = cell.as_ref().and_then(|cell| cell.row.lock().print);
        if Stamp::of(&path).is_some()
            && let Some(print) = verified(&path, digest, print)
        {
            return self.register_blob(*digest, &path, print).map(|cell| self.handle(cell));
        }
        self.rescue_blob(digest, cell.is_some())
    }

    /// Takes a damaged or missing blob from the image layout if that has a good copy, else forgets it.
    fn rescue_blob(&self, digest: &Digest, known: bool) -> Option<Blob> {
        let path = self.layout.blob(digest);
        let had_file = fs::symlink_metadata(&path).is_ok();
        if !known && !had_file && !self.layout.images().join("blobs/sha256").join(digest.hex()).exists() {
            return None;
        }
        let damage = if had_file { "content differs" } else { "file is missing" };
        let _ = disk::remove_tree(&path);
        let copy = self.layout.images().join("blobs/sha256").join(digest.hex());
        if Stamp::of(&copy).is_some()
            && let Some(print) = verified(&copy, digest, None)
            && self.link_into_blobs(&copy, &path).is_ok()
        {
            self.log.add(format!("blob {digest}"), damage, RepairAction::Repaired);
            return self.register_blob(*digest, &path, print).map(|cell| self.handle(cell));
        }
        self.forget_blob(digest);
        if known || had_file {
            self.log.add(format!("blob {digest}"), damage, RepairAction::Dropped);
        }
        None
    }

    pub(crate) fn link_into_blobs(&self, from: &Path, path: &Path) -> Result<()> {
        if let Some(dir) = path.parent() {
            disk::ensure_dir(dir)?;
        }
        match fs::hard_link(from, path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other.at("link", path),
        }
    }

    /// Removes a blob from the table and its file from the disk; a link in the image layout stays.
    pub(crate) fn forget_blob(&self, digest: &Digest) {
        let gone = self.blobs.lock().remove(digest);
        if let Some(cell) = gone {
            self.account_blob(cell.row.lock().size, false);
        }
        self.meta.table("blob").delete(digest.as_bytes());
        let _ = disk::remove_tree(&self.layout.blob(digest));
    }

    /// Notes a file whose digest has just been verified.
    fn register_blob(&self, digest: Digest, path: &Path, print: Fingerprint) -> Option<Arc<BlobCell>> {
        let stamp = Stamp::of(path)?;
        let now = self.clock.unix();
        let known = self.blobs.lock().get(&digest).map(|cell| cell.row.lock().created);
        let created = known.unwrap_or(now);
        let (Stamp { size, mtime }, print, stamp) = (stamp, Some(print), self.epochs.stamp());
        let row = BlobRow { size, mtime, print, stamp, created, used: now };
        self.save_blob(&digest, &row);
        let checked = self.clock.unix_nanos();
        let mut blobs = self.blobs.lock();
        if let Some(cell) = blobs.get(&digest) {
            let before = std::mem::replace(&mut *cell.row.lock(), row);
            self.account_blob(before.size, false);
            self.account_blob(size, true);
            cell.checked.store(checked, Ordering::Relaxed);
            return Some(cell.clone());
        }
        let cell = Arc::new(BlobCell { digest, row: Mutex::new(row), checked: AtomicU64::new(checked) });
        blobs.insert(digest, cell.clone());
        self.account_blob(size, true);
        Some(cell)
    }

    fn publish_blob(&self, tmp: &Path, digest: Digest, print: Fingerprint) -> Result<Blob> {
        let path = self.layout.blob(&digest);
        if let Some(blob) = self.blob(&digest, false) {
            return Ok(blob);
        }
        fault::point("store.blob.rename").at("rename", &path)?;
        if let Some(dir) = path.parent() {
            disk::ensure_dir(dir)?;
        }
        fs::rename(tmp, &path).at("rename", &path)?;
        fault::point("store.blob.renamed").at("rename", &path)?;
        let cell = self
            .register_blob(digest, &path, print)
            .ok_or_else(|| StoreError::damage(format!("blob {digest} vanished while it was published")))?;
        Ok(self.handle(cell))
    }

    /// Tells whether a blob is in the table.
    pub(crate) fn knows_blob(&self, digest: &Digest) -> bool {
        self.blobs.lock().contains_key(digest)
    }

    /// Returns every blob that is in the table, and every file of the blob directory that is not.
    pub(crate) fn all_blobs(&self) -> Vec<Digest> {
        let mut found: std::collections::BTreeSet<Digest> = self.blobs.lock().keys().copied().collect();
        let top = self.layout.root.join("blobs/sha256");
        for dir in fs::read_dir(top).into_iter().flatten().flatten() {
            for file in fs::read_dir(dir.path()).into_iter().flatten().flatten() {
                let name = file.file_name();
                if let Some(digest) = name.to_str().and_then(|n| format!("sha256:{n}").parse().ok()) {
                    found.insert(digest);
                }
            }
        }
        found.into_iter().collect()
    }
}

/// Reads a file and returns its fingerprint if it is the blob `digest`; `print` is what is known of that.
fn verified(path: &Path, digest: &Digest, print: Option<Fingerprint>) -> Option<Fingerprint> {
    let mut hashers = Hashers { digest: print.is_none().then(DigestHasher::new), print: FingerprintHasher::new() };
    let mut file = File::open(path).ok()?;
    let mut buffer = vec![0; PIECE];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hashers.update(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    let got = hashers.print.finish();
    let right = print.is_none_or(|print| print == got) && hashers.digest.is_none_or(|h| h.finish() == *digest);
    right.then_some(got)
}

/// Tells whether a file of which nothing else is known is the blob `digest`.
pub(crate) fn matches_digest(path: &Path, digest: &Digest) -> bool {
    verified(path, digest, None).is_some()
}
