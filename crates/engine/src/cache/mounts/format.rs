//! How cache mounts lie in a remote cache.
//!
//! Files are content, named by fingerprint, cut into pieces where they are long. Pieces are gathered into packs of a few
//! megabytes, each a blob, compressed. What is in which pack stands in tables, one for each export that made packs; a later
//! export adds what it has that no pack has. A mount is a list of its files, in the form of layer manifests, without inode
//! numbers. The root names all of these and is found under a name beside that of the cache.

use std::collections::HashMap;
use std::io::{BufReader, Cursor, Read, Write};

use kiln_oci::Descriptor;
use kiln_snapshot::LayerManifest;
use kiln_snapshot::compress::{Compression, Compressor, decompress};
use kiln_stdx::{Digest, ErrorClass, Fingerprint};
use serde::{Deserialize, Serialize};

use crate::error::EngineError;

/// Version of the format.
pub const VERSION: u32 = 1;
/// Media type of the root.
pub const ROOT_TYPE: &str = "application/vnd.kiln.mounts.root.v1+json";
/// Media type of packs, tables and lists of files.
pub const PART_TYPE: &str = "application/vnd.kiln.mounts.part.v1+zstd";

/// Bytes of pieces that make a pack.
pub const PACK: usize = 8 << 20;
/// Most bytes of a pack, taken apart.
const PACK_MAX: usize = PACK + super::cut::MAX;
/// Most bytes of a root.
pub const ROOT_MAX: u64 = 4 << 20;
/// Most bytes of a table or a list of files, taken apart.
const LIST_MAX: usize = 128 << 20;
/// Most bytes that a compressed part may have.
const PART_MAX: u64 = 256 << 20;
/// Most bytes of files in one mount.
const MOUNT_MAX: u64 = 256 << 30;

/// A blob by its digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Part {
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

impl Part {
    /// Returns what names these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self { digest: Digest::of(bytes), size: bytes.len() as u64 }
    }

    /// Returns the part as manifests list it.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(PART_TYPE, self.digest, self.size)
    }
}

/// What is found under the name of a cache's mounts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    pub version: u32,
    pub mounts: Vec<Travelled>,
    pub packs: Vec<Part>,
    pub tables: Vec<Part>,
}

/// One mount of a root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Travelled {
    /// What steps call it.
    pub id: String,
    pub platform: String,
    /// What tells it from others of this name.
    pub key: String,
    /// The last day since 1970 on which a build that named it was exported.
    pub day: u64,
    /// Bytes of its files.
    pub bytes: u64,
    pub files: Part,
}

impl Root {
    /// Reads a root.
    ///
    /// # Errors
    /// It is none, or one of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, EngineError> {
        let root: Self = serde_json::from_slice(bytes).map_err(|e| damaged(format!("the list of mounts: {e}")))?;
        if root.version != VERSION {
            return Err(damaged(format!("version {} of the list of mounts is not known", root.version)));
        }
        let lists = || root.tables.iter().chain(root.mounts.iter().map(|mount| &mount.files));
        // What does not shrink grows a little.
        let packs = root.packs.iter().find(|part| part.size > PACK_MAX as u64 + (1 << 16));
        if let Some(part) = packs.or_else(|| lists().find(|part| part.size > PART_MAX)) {
            return Err(damaged(format!("the part {} has {} bytes", part.digest, part.size)));
        }
        if let Some(mount) = root.mounts.iter().find(|mount| mount.bytes > MOUNT_MAX) {
            return Err(damaged(format!("the mount {} has {} bytes", mount.id, mount.bytes)));
        }
        Ok(root)
    }

    /// Returns the bytes of the root.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Returns all that it names, each once.
    pub fn parts(&self) -> Vec<Part> {
        let all = self.mounts.iter().map(|mount| &mount.files).chain(&self.tables).chain(&self.packs);
        let mut seen = std::collections::HashSet::new();
        all.filter(|part| seen.insert(part.digest)).cloned().collect()
    }
}

/// What is in packs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    pub packs: Vec<Pack>,
    /// Files of more than one piece.
    pub files: Vec<(Fingerprint, Vec<Fingerprint>)>,
}

/// A pack and its pieces, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    pub blob: Part,
    pub pieces: Vec<(Fingerprint, u32)>,
}

impl Pack {
    /// Returns how many bytes it has, taken apart.
    pub fn length(&self) -> usize {
        self.pieces.iter().fold(0, |sum, (_, length)| sum.saturating_add(*length as usize))
    }
}

/// Where a piece lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which pack of the contents.
    pub pack: usize,
    pub offset: usize,
    pub length: usize,
}

/// All that tables tell of packs that are there.
#[derive(Debug, Default)]
pub struct Contents {
    pub packs: Vec<Pack>,
    places: HashMap<Fingerprint, Place>,
    files: HashMap<Fingerprint, Vec<Fingerprint>>,
}

impl Contents {
    /// Gathers tables; packs for which `there` does not hold are left out.
    ///
    /// # Errors
    /// A table tells of a pack that no export makes.
    pub fn of(tables: Vec<Table>, there: impl Fn(&Part) -> bool) -> Result<Self, EngineError> {
        let mut contents = Self::default();
        for table in tables {
            for pack in table.packs {
                if pack.length() > PACK_MAX {
                    return Err(damaged(format!("the pack {} is too long", pack.blob.digest)));
                }
                if there(&pack.blob) {
                    contents.add(pack);
                }
            }
            contents.files.extend(table.files);
        }
        Ok(contents)
    }

    fn add(&mut self, pack: Pack) {
        let mut offset = 0;
        for (print, length) in &pack.pieces {
            let length = *length as usize;
            self.places.entry(*print).or_insert(Place { pack: self.packs.len(), offset, length });
            offset += length;
        }
        self.packs.push(pack);
    }

    /// Returns where a piece is.
    pub fn place(&self, piece: &Fingerprint) -> Option<Place> {
        self.places.get(piece).copied()
    }

    /// Returns the lists of pieces that these files need.
    pub fn joined(&self, files: &LayerManifest) -> Vec<(Fingerprint, Vec<Fingerprint>)> {
        let prints = files.entries().iter().filter_map(|entry| entry.digest);
        prints.filter_map(|print| Some((print, self.files.get(&print)?.clone()))).collect()
    }

    /// Returns the pieces of a file; none unless all are there.
    pub fn pieces<'a>(&'a self, file: &'a Fingerprint) -> Option<&'a [Fingerprint]> {
        let one = || self.places.contains_key(file).then_some(std::slice::from_ref(file));
        let many = || self.files.get(file).map(Vec::as_slice);
        one().or_else(|| many().filter(|pieces| pieces.iter().all(|piece| self.places.contains_key(piece))))
    }
}

/// Compresses a part.
///
/// # Errors
/// The compressor fails.
pub fn compress(bytes: &[u8]) -> Result<Vec<u8>, EngineError> {
    let mut compressor = Compressor::new(Vec::with_capacity(bytes.len() / 2), Compression::ZSTD);
    compressor.write_all(bytes)?;
    Ok(compressor.finish()?)
}

fn expand(bytes: &[u8], most: usize) -> Result<Vec<u8>, EngineError> {
    let failed = |e: std::io::Error| damaged(format!("a part cannot be taken apart: {e}"));
    let (_, reader) = decompress(BufReader::new(Cursor::new(bytes))).map_err(failed)?;
    let mut out = Vec::new();
    reader.take(most as u64 + 1).read_to_end(&mut out).map_err(failed)?;
    if out.len() > most { Err(damaged("a part is longer than it may be".to_owned())) } else { Ok(out) }
}

/// Takes a pack apart.
///
/// # Errors
/// It is damaged, or has another length than its table says.
pub fn unpack(pack: &Pack, bytes: &[u8]) -> Result<Vec<u8>, EngineError> {
    let out = expand(bytes, PACK_MAX)?;
    if out.len() == pack.length() {
        Ok(out)
    } else {
        Err(damaged("a pack is not as long as its table says".to_owned()))
    }
}

/// Reads a table.
///
/// # Errors
/// It is damaged.
pub fn read_table(bytes: &[u8]) -> Result<Table, EngineError> {
    serde_json::from_slice(&expand(bytes, LIST_MAX)?).map_err(|e| damaged(format!("a table of packs: {e}")))
}

/// Writes a table.
///
/// # Errors
/// The compressor fails.
pub fn write_table(table: &Table) -> Result<Vec<u8>, EngineError> {
    compress(&serde_json::to_vec(table).map_err(|e| EngineError::from_error(ErrorClass::Bug, e))?)
}

/// Reads the list of a mount's files.
///
/// # Errors
/// It is damaged.
pub fn read_files(bytes: &[u8]) -> Result<LayerManifest, EngineError> {
    LayerManifest::decode(&expand(bytes, LIST_MAX)?).map_err(|e| damaged(format!("the list of files: {e}")))
}

/// Writes the list of a mount's files.
///
/// # Errors
/// It has more files than an import reads.
pub fn write_files(files: &LayerManifest) -> Result<Vec<u8>, EngineError> {
    let bytes = files.encode();
    if bytes.len() > LIST_MAX {
        return Err(EngineError::user("a cache mount has too many files to travel"));
    }
    compress(&bytes)
}

/// Returns the error of what cannot be used.
pub fn damaged(what: String) -> EngineError {
    EngineError::new(ErrorClass::Remote, format!("damaged: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(pieces: &[(&str, u32)]) -> Pack {
        let pieces = pieces.iter().map(|(text, length)| (Fingerprint::of(text), *length)).collect();
        Pack { blob: Part::of(format!("{pieces:?}").as_bytes()), pieces }
    }

    #[test]
    fn files_are_found_by_their_pieces() {
        let (one, two) = (pack(&[("a", 1), ("b", 2)]), pack(&[("c", 4)]));
        let whole = (Fingerprint::of("abc"), vec![Fingerprint::of("a"), Fingerprint::of("c")]);
        let table = Table { packs: vec![one, two.clone()], files: vec![whole.clone()] };
        let table = read_table(&write_table(&table).unwrap()).unwrap();
        let all = Contents::of(vec![table.clone()], |_| true).unwrap();
        assert_eq!(all.place(&Fingerprint::of("b")), Some(Place { pack: 0, offset: 1, length: 2 }));
        assert_eq!(all.pieces(&whole.0), Some(&whole.1[..]));
        assert_eq!(all.pieces(&Fingerprint::of("b")).map(<[_]>::len), Some(1));
        // Without the second pack the file is not whole.
        let less = Contents::of(vec![table], |part| *part != two.blob).unwrap();
        assert_eq!(less.pieces(&whole.0), None);
    }

    #[test]
    fn what_lies_is_refused() {
        let long = pack(&[("a", u32::MAX), ("b", u32::MAX)]);
        let table = Table { packs: vec![long], files: Vec::new() };
        assert!(Contents::of(vec![table], |_| true).unwrap_err().to_string().contains("too long"));
        let short = pack(&[("a", 3)]);
        assert!(unpack(&short, &compress(b"four").unwrap()).is_err());
        assert_eq!(unpack(&short, &compress(b"abc").unwrap()).unwrap(), b"abc");
        assert!(expand(&compress(&vec![0; 1 << 20]).unwrap(), 1 << 10).is_err(), "a bomb");
        assert!(read_files(&compress(b"kilnLM and so on").unwrap()).is_err());
        for text in ["{}", r#"{"version":2,"mounts":[],"packs":[],"tables":[]}"#, "[", "null"] {
            assert_eq!(Root::decode(text.as_bytes()).unwrap_err().class(), ErrorClass::Remote, "{text}");
        }
        let part = Part { digest: Digest::of("x"), size: u64::MAX };
        let root = Root { version: VERSION, packs: vec![part], ..Root::default() };
        assert!(Root::decode(&root.encode()).unwrap_err().to_string().contains("bytes"));
    }
}
