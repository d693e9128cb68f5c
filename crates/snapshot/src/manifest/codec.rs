//! Binary form of a manifest, version 2. Version 1 had SHA-256 for files.
//!
//! ```text
//! "kilnLM" 0x00 0x02            magic and version
//! varint                        number of entries
//! per entry, in component order:
//!   varint varint bytes         path: bytes shared with the previous path, length of the rest, the rest
//!   u8                          kind (0 file, 1 directory, 2 symlink, 3 fifo, 4 char, 5 block, 6 whiteout)
//!   u8                          flags: 1 group, 2 opaque, 4 attributes, 8 device
//!   unless a whiteout:
//!     varint mode, uid, gid; zigzag seconds; varint nanoseconds; varint inode
//!     [group] varint            link group
//!     [device] varint varint    major, minor
//!     file: varint size, 32 bytes BLAKE3;  symlink: varint length, bytes
//!     [attributes] varint count, then per attribute: varint length, bytes (name), varint length, bytes (value)
//! 32 bytes                      SHA-256 of everything before
//! ```
//!
//! Varints are LEB128 of at most 64 bits.

use std::collections::BTreeMap;

use kiln_stdx::{Digest, Fingerprint};

use crate::entry::{Entry, Kind};

const MAGIC: &[u8; 6] = b"kilnLM";
const VERSION: u16 = 2;
/// The version that had SHA-256 in place of BLAKE3, and nothing else different.
const WITH_DIGESTS: u16 = 1;

const GROUP: u8 = 1;
const OPAQUE: u8 = 2;
const XATTRS: u8 = 4;
const DEVICE: u8 = 8;

/// Why bytes are not a layer manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They do not start as a manifest does.
    #[error("not a layer manifest")]
    NotAManifest,
    /// They are of a version this program does not know.
    #[error("layer manifest of unknown version {0}")]
    Version(u16),
    /// The checksum at the end does not match.
    #[error("the checksum of the layer manifest is wrong")]
    Checksum,
    /// The bytes end early or hold a malformed value, although the checksum matches.
    #[error("malformed layer manifest")]
    Malformed,
    /// An entry breaks a rule of layer manifests.
    #[error("layer manifest: `{path}`: {what}")]
    Invalid {
        /// The entry's path.
        path: String,
        /// The rule.
        what: &'static str,
    },
}

pub(super) fn encode(entries: &[Entry]) -> Vec<u8> {
    encode_as(VERSION, entries)
}

#[cfg(test)]
pub(super) fn encode_with_digests(entries: &[Entry]) -> Vec<u8> {
    encode_as(WITH_DIGESTS, entries)
}

fn encode_as(version: u16, entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + entries.len() * 96);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&version.to_be_bytes());
    put(&mut out, entries.len() as u64);
    let mut previous: &[u8] = &[];
    for entry in entries {
        let shared = previous.iter().zip(&entry.path).take_while(|(a, b)| a == b).count();
        put(&mut out, shared as u64);
        put_bytes(&mut out, &entry.path[shared..]);
        put_entry(&mut out, entry);
        previous = &entry.path;
    }
    let digest = Digest::of(&out);
    out.extend_from_slice(digest.as_bytes());
    out
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    let device = matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice);
    let flag = |set: bool, bit: u8| if set { bit } else { 0 };
    out.push(kind_byte(entry.kind));
    out.push(
        flag(entry.nlink_group.is_some(), GROUP)
            | flag(entry.opaque, OPAQUE)
            | flag(!entry.xattrs.is_empty(), XATTRS)
            | flag(device, DEVICE),
    );
    if entry.kind == Kind::Whiteout {
        return;
    }
    for n in [entry.mode, entry.uid, entry.gid] {
        put(out, u64::from(n));
    }
    put(out, ((entry.mtime.0 << 1) ^ (entry.mtime.0 >> 63)).cast_unsigned());
    put(out, u64::from(entry.mtime.1));
    put(out, entry.ino);
    if let Some(group) = entry.nlink_group {
        put(out, u64::from(group));
    }
    if device {
        put(out, u64::from(entry.rdev.0));
        put(out, u64::from(entry.rdev.1));
    }
    if let Some(digest) = &entry.digest {
        put(out, entry.size);
        out.extend_from_slice(digest.as_bytes());
    } else if entry.kind == Kind::Symlink {
        put_bytes(out, &entry.target);
    }
    if !entry.xattrs.is_empty() {
        put(out, entry.xattrs.len() as u64);
        for (name, value) in &entry.xattrs {
            put_bytes(out, name);
            put_bytes(out, value);
        }
    }
}

pub(super) fn decode(bytes: &[u8]) -> Result<Vec<Entry>, DecodeError> {
    decode_as(VERSION, bytes)
}

/// Tells whether bytes begin as those of version 1 do.
pub(super) fn is_old(bytes: &[u8]) -> bool {
    bytes.strip_prefix(MAGIC).is_some_and(|rest| rest.starts_with(&WITH_DIGESTS.to_be_bytes()))
}

/// Reads version 1. The bytes of the files' SHA-256 stand where their fingerprints belong.
pub(super) fn decode_with_digests(bytes: &[u8]) -> Result<Vec<Entry>, DecodeError> {
    decode_as(WITH_DIGESTS, bytes)
}

fn decode_as(known: u16, bytes: &[u8]) -> Result<Vec<Entry>, DecodeError> {
    let Some(rest) = bytes.strip_prefix(MAGIC) else { return Err(DecodeError::NotAManifest) };
    let Some((version, _)) = rest.split_first_chunk::<2>() else { return Err(DecodeError::NotAManifest) };
    let version = u16::from_be_bytes(*version);
    if version != known {
        return Err(DecodeError::Version(version));
    }
    let Some((body, sum)) = bytes.split_last_chunk::<32>() else { return Err(DecodeError::Checksum) };
    if Digest::of(body) != Digest::from_bytes(*sum) {
        return Err(DecodeError::Checksum);
    }
    let mut input = Input(body.get(MAGIC.len() + 2..).ok_or(DecodeError::Malformed)?);
    let count = input.number()?;
    // An entry takes four bytes at least, so a count beyond that cannot be true; it must not size an allocation.
    let mut entries = Vec::with_capacity(usize::try_from(count).unwrap_or(usize::MAX).min(input.0.len() / 4));
    let mut previous = Vec::new();
    for _ in 0..count {
        let shared = usize::try_from(input.number()?).map_err(|_| DecodeError::Malformed)?;
        let mut path = previous.get(..shared).ok_or(DecodeError::Malformed)?.to_vec();
        path.extend_from_slice(input.bytes()?);
        previous.clone_from(&path);
        entries.push(input.entry(path)?);
    }
    if input.0.is_empty() { Ok(entries) } else { Err(DecodeError::Malformed) }
}

/// What is left to be read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Result<u8, DecodeError> {
        let (&byte, rest) = self.0.split_first().ok_or(DecodeError::Malformed)?;
        self.0 = rest;
        Ok(byte)
    }

    fn number(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Malformed)
    }

    fn small(&mut self) -> Result<u32, DecodeError> {
        u32::try_from(self.number()?).map_err(|_| DecodeError::Malformed)
    }

    fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let n = usize::try_from(self.number()?).map_err(|_| DecodeError::Malformed)?;
        let (bytes, rest) = self.0.split_at_checked(n).ok_or(DecodeError::Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn entry(&mut self, path: Vec<u8>) -> Result<Entry, DecodeError> {
        let kind = kind_of(self.byte()?).ok_or(DecodeError::Malformed)?;
        let flags = self.byte()?;
        let mut entry = Entry::new(path, kind);
        let device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
        let known = GROUP | OPAQUE | XATTRS | DEVICE;
        if flags & !known != 0 || (flags & DEVICE != 0) != device || (kind == Kind::Whiteout && flags != 0) {
            return Err(DecodeError::Malformed);
        }
        if kind == Kind::Whiteout {
            return Ok(entry);
        }
        entry.opaque = flags & OPAQUE != 0;
        (entry.mode, entry.uid, entry.gid) = (self.small()?, self.small()?, self.small()?);
        let seconds = self.number()?;
        let seconds = (seconds >> 1).cast_signed() ^ -(seconds & 1).cast_signed();
        entry.mtime = (seconds, self.small()?);
        entry.ino = self.number()?;
        if flags & GROUP != 0 {
            entry.nlink_group = Some(self.small()?);
        }
        if device {
            entry.rdev = (self.small()?, self.small()?);
        }
        if kind == Kind::File {
            entry.size = self.number()?;
            let (digest, rest) = self.0.split_first_chunk::<32>().ok_or(DecodeError::Malformed)?;
            self.0 = rest;
            entry.digest = Some(Fingerprint::from_bytes(*digest));
        } else if kind == Kind::Symlink {
            entry.target = self.bytes()?.to_vec();
        }
        if flags & XATTRS != 0 {
            entry.xattrs = self.xattrs()?;
        }
        Ok(entry)
    }

    fn xattrs(&mut self) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, DecodeError> {
        let mut xattrs = BTreeMap::new();
        for _ in 0..self.number()? {
            let (name, value) = (self.bytes()?.to_vec(), self.bytes()?.to_vec());
            if xattrs.insert(name, value).is_some() {
                return Err(DecodeError::Malformed);
            }
        }
        Ok(xattrs)
    }
}

fn kind_byte(kind: Kind) -> u8 {
    match kind {
        Kind::File => 0,
        Kind::Dir => 1,
        Kind::Symlink => 2,
        Kind::Fifo => 3,
        Kind::CharDevice => 4,
        Kind::BlockDevice => 5,
        Kind::Whiteout => 6,
    }
}

fn kind_of(byte: u8) -> Option<Kind> {
    Some(match byte {
        0 => Kind::File,
        1 => Kind::Dir,
        2 => Kind::Symlink,
        3 => Kind::Fifo,
        4 => Kind::CharDevice,
        5 => Kind::BlockDevice,
        6 => Kind::Whiteout,
        _ => return None,
    })
}

fn put(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
