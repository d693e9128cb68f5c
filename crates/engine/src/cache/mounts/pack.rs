//! Reading a mount and putting what a remote cache lacks of it into packs.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_snapshot::{Entry, Kind, LayerManifest};
use kiln_stdx::{ErrorClass, Fingerprint, FingerprintHasher};
use rustix::fs::{CWD, Mode, OFlags};

use super::cut;
use super::format::{Contents, PACK, Pack, Part, Table, compress};
use crate::error::EngineError;

/// How often a mount is read again in which something changed meanwhile.
const ATTEMPTS: usize = 3;

/// What is made for one export.
pub struct Packer {
    known: Arc<Contents>,
    /// Where packs are written.
    dir: PathBuf,
    raw: Vec<u8>,
    pieces: Vec<(Fingerprint, u32)>,
    seen: HashSet<Fingerprint>,
    table: Table,
}

impl Packer {
    /// Returns one that leaves out what is known, and writes packs into `dir`.
    pub fn new(known: Arc<Contents>, dir: PathBuf) -> Self {
        Self { known, dir, raw: Vec::new(), pieces: Vec::new(), seen: HashSet::new(), table: Table::default() }
    }

    /// Puts the content of the mount's files into packs, where they are not yet. A file that is not what the list says is
    /// told: it was written meanwhile.
    ///
    /// # Errors
    /// A file cannot be read, or a pack not be written.
    pub fn add(&mut self, mount: &Path, files: &LayerManifest) -> Result<Option<Vec<u8>>, EngineError> {
        for entry in files.entries() {
            let Some(print) = entry.digest.filter(|_| entry.size > 0) else { continue };
            if self.seen.contains(&print) || self.known.pieces(&print).is_some() {
                continue;
            }
            if !self.file(mount, entry, print)? {
                return Ok(Some(entry.path.clone()));
            }
        }
        Ok(None)
    }

    fn file(&mut self, mount: &Path, entry: &Entry, print: Fingerprint) -> Result<bool, EngineError> {
        let path = mount.join(std::ffi::OsStr::from_bytes(&entry.path));
        // A pipe that came into its place must not block.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::openat(CWD, &path, flags, Mode::empty()) else { return Ok(false) };
        let mut file = File::from(file).take(entry.size.saturating_add(1));
        let mut hasher = FingerprintHasher::new();
        let mut pieces = Vec::new();
        let mut data = Vec::new();
        loop {
            let missing = (2 * cut::MAX).saturating_sub(data.len());
            let came = (&mut file).take(missing as u64).read_to_end(&mut data)?;
            if data.is_empty() {
                break;
            }
            hasher.update(&data[data.len() - came..]);
            let mut at = 0;
            while data.len() - at >= cut::MAX || (came == 0 && at < data.len()) {
                let length = cut::first(&data[at..]);
                let piece = &data[at..at + length];
                pieces.push(self.piece(piece)?);
                at += length;
            }
            data.drain(..at);
        }
        if hasher.finish() != print {
            return Ok(false);
        }
        self.seen.insert(print);
        if pieces.len() > 1 {
            self.table.files.push((print, pieces));
        }
        Ok(true)
    }

    fn piece(&mut self, bytes: &[u8]) -> Result<Fingerprint, EngineError> {
        let print = Fingerprint::of(bytes);
        if self.known.place(&print).is_none() && self.seen.insert(print) {
            self.raw.extend_from_slice(bytes);
            // No piece is longer than 1 MiB.
            self.pieces.push((print, bytes.len() as u32));
            if self.raw.len() >= PACK {
                self.flush()?;
            }
        }
        Ok(print)
    }

    fn flush(&mut self) -> Result<(), EngineError> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        let bytes = compress(&self.raw)?;
        let blob = Part::of(&bytes);
        std::fs::write(file_of(&self.dir, &blob), &bytes)?;
        self.raw.clear();
        self.table.packs.push(Pack { blob, pieces: std::mem::take(&mut self.pieces) });
        Ok(())
    }

    /// Writes the last pack and returns what is in all of them.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self) -> Result<Table, EngineError> {
        self.flush()?;
        Ok(self.table)
    }
}

/// Returns where a pack is written.
pub fn file_of(dir: &Path, part: &Part) -> PathBuf {
    dir.join(part.digest.hex())
}

/// Lists the files of a mount, and puts those into packs that are not known.
///
/// # Errors
/// It cannot be read, or is written all the time.
pub fn read(packer: &mut Packer, mount: &Path) -> Result<LayerManifest, EngineError> {
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        // A file that goes while the directory is read is no reason to give up.
        let files = match kiln_snapshot::layer::scan(mount) {
            Ok(scanned) => portable(scanned)?,
            Err(error) => {
                last = error.to_string();
                continue;
            }
        };
        match packer.add(mount, &files)? {
            None => return Ok(files),
            Some(path) => last = format!("{} changed while it was read", kiln_snapshot::path::lossy(&path)),
        }
    }
    Err(EngineError::new(ErrorClass::Environment, last))
}

/// Returns what travels of a list: no devices, nothing that belongs to one file system.
fn portable(files: LayerManifest) -> Result<LayerManifest, EngineError> {
    let travels = |entry: &&Entry| matches!(entry.kind, Kind::File | Kind::Dir | Kind::Symlink | Kind::Fifo);
    let entries = files.entries().iter().filter(travels);
    let entries = entries.map(|entry| Entry { ino: 0, opaque: false, ..entry.clone() }).collect();
    LayerManifest::new(entries).map_err(|e| EngineError::from_error(ErrorClass::Bug, e))
}
