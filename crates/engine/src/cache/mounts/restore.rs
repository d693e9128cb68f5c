//! Making a directory of what came of a remote cache. Nothing in it decides where bytes land: the list of files is checked as
//! that of a layer, and written by the writer of layers, which follows no link.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kiln_snapshot::layer::FileMeta;
use kiln_snapshot::{Entry, Kind, LayerBuilder, LayerManifest, Tree};
use kiln_stdx::Fingerprint;

use super::format::{Contents, Pack, damaged};
use crate::error::EngineError;

/// Most packs that are open at once.
const OPEN: usize = 64;

/// Returns which packs the files need.
///
/// # Errors
/// A file is in no pack, or there are more bytes than was said.
pub fn needed(contents: &Contents, files: &LayerManifest, bytes: u64) -> Result<Vec<usize>, EngineError> {
    if files.total_size() > bytes {
        return Err(damaged("the files are longer than was said".to_owned()));
    }
    let mut packs = std::collections::BTreeSet::new();
    for entry in files.entries().iter().filter(|entry| entry.size > 0) {
        let Some(print) = &entry.digest else { continue };
        let pieces = contents.pieces(print).ok_or_else(|| missing(entry))?;
        packs.extend(pieces.iter().filter_map(|piece| contents.place(piece)).map(|place| place.pack));
    }
    Ok(packs.into_iter().collect())
}

/// Where a pack lies that has been taken apart.
pub fn raw_file(dir: &Path, pack: &Pack) -> PathBuf {
    dir.join(format!("{}.raw", pack.blob.digest.hex()))
}

/// Makes the files in `dest`, which is missing or empty, of packs that lie taken apart in `raw`.
///
/// # Errors
/// A file is not what the list says, what may not travel, or cannot be written. `dest` is good for nothing then.
pub fn restore(contents: &Contents, files: &LayerManifest, raw: &Path, dest: &Path) -> Result<(), EngineError> {
    let below = Tree::merge(&[]);
    let mut builder = LayerBuilder::new(dest, &below, &[])?;
    let mut names: HashMap<u32, &[u8]> = HashMap::new();
    let mut packs = Packs { contents, dir: raw, open: HashMap::new() };
    for entry in files.entries() {
        if let Some(group) = entry.nlink_group {
            if let Some(first) = names.get(&group) {
                builder.hard_link(first, &entry.path)?;
                continue;
            }
            names.insert(group, &entry.path);
        }
        let meta = FileMeta::of(entry);
        match entry.kind {
            Kind::Dir => builder.mkdir(&entry.path, &meta)?,
            Kind::Symlink if entry.target.is_empty() || entry.target.contains(&0) => {
                return Err(damaged(format!("{} leads nowhere", kiln_snapshot::path::lossy(&entry.path))));
            }
            Kind::Symlink => builder.symlink(&entry.path, &entry.target, &meta)?,
            Kind::Fifo => builder.node(&entry.path, Kind::Fifo, (0, 0), &meta)?,
            Kind::File => {
                let reader = packs.reader(entry)?;
                let made = builder.file_from_reader(&entry.path, &meta, reader)?;
                if entry.digest.map(|print| (print, entry.size)) != Some(made) {
                    let what = format!("{} is not what the list says", kiln_snapshot::path::lossy(&entry.path));
                    return Err(damaged(what));
                }
            }
            Kind::CharDevice | Kind::BlockDevice | Kind::Whiteout => {
                return Err(damaged(format!("{} is a device", kiln_snapshot::path::lossy(&entry.path))));
            }
        }
    }
    builder.finish()?;
    Ok(())
}

fn missing(entry: &Entry) -> EngineError {
    damaged(format!("no pack has {}", kiln_snapshot::path::lossy(&entry.path)))
}

/// Packs that lie taken apart in a directory.
struct Packs<'a> {
    contents: &'a Contents,
    dir: &'a Path,
    open: HashMap<usize, File>,
}

impl<'a> Packs<'a> {
    /// Returns the bytes of a file.
    fn reader<'p>(&'p mut self, entry: &'p Entry) -> Result<FileReader<'p, 'a>, EngineError> {
        let empty: &[Fingerprint] = &[];
        let pieces = match &entry.digest {
            Some(print) if entry.size > 0 => self.contents.pieces(print).ok_or_else(|| missing(entry))?,
            _ => empty,
        };
        Ok(FileReader { packs: self, pieces: pieces.iter(), at: (0, 0, 0) })
    }

    fn read(&mut self, pack: usize, out: &mut [u8], offset: usize) -> io::Result<usize> {
        if !self.open.contains_key(&pack) {
            if self.open.len() >= OPEN {
                self.open.clear();
            }
            let known = self.contents.packs.get(pack).ok_or(io::ErrorKind::NotFound)?;
            self.open.insert(pack, File::open(raw_file(self.dir, known))?);
        }
        let file = self.open.get(&pack).ok_or(io::ErrorKind::NotFound)?;
        file.read_at(out, offset as u64)
    }
}

/// The bytes of one file, piece by piece.
struct FileReader<'p, 'a> {
    packs: &'p mut Packs<'a>,
    pieces: std::slice::Iter<'p, Fingerprint>,
    /// Pack, offset and length of what is left of the piece that is being read.
    at: (usize, usize, usize),
}

impl Read for FileReader<'_, '_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at.2 == 0 {
            let Some(piece) = self.pieces.next() else { return Ok(0) };
            let place = self.packs.contents.place(piece).ok_or(io::ErrorKind::NotFound)?;
            self.at = (place.pack, place.offset, place.length);
        }
        let (pack, offset, left) = self.at;
        let wanted = out.len().min(left);
        let came = self.packs.read(pack, &mut out[..wanted], offset)?;
        if came == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at = (pack, offset + came, left - came);
        Ok(came)
    }
}
