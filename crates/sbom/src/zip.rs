//! Entries of zip archives, as far as Java archives need them: stored or deflated, with at most 65,535 entries.

use crate::bytes::{ReadAt, inflated};

/// How far the end record may be from the end: its own length and the longest comment.
const TAIL: u64 = 22 + 65_535;
/// Largest directory in bytes.
const DIRECTORY: usize = 64 << 20;

/// A file of an archive.
#[derive(Debug, Clone)]
pub(crate) struct ZipEntry {
    pub(crate) name: String,
    method: u16,
    packed: u64,
    size: u64,
    offset: u64,
}

/// Returns the directory of an archive; none for what is none.
pub(crate) fn entries(source: &dyn ReadAt) -> Option<Vec<ZipEntry>> {
    let length = source.size().min(TAIL);
    let tail = source.read_at(source.size() - length, usize::try_from(length).ok()?)?;
    let at = tail.windows(4).rposition(|bytes| bytes == b"PK\x05\x06")?;
    let end = tail.get(at..at + 22)?;
    let size = usize::try_from(number(end, 12, 4)).ok().filter(|size| *size <= DIRECTORY)?;
    let directory = source.read_at(number(end, 16, 4), size)?;
    let mut rest = directory.as_slice();
    let mut found = Vec::new();
    while let Some(head) = rest.get(..46).filter(|head| head.starts_with(b"PK\x01\x02")) {
        let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(short(head, at)));
        let Some(text) = rest.get(46..46 + name) else { break };
        found.push(ZipEntry {
            name: String::from_utf8_lossy(text).into_owned(),
            method: short(head, 10),
            packed: number(head, 20, 4),
            size: number(head, 24, 4),
            offset: number(head, 42, 4),
        });
        rest = rest.get(46 + name + extra + comment..).unwrap_or_default();
    }
    Some(found)
}

impl ZipEntry {
    /// Returns the file's bytes; none for more than `most`, for other compressions and for damage.
    pub(crate) fn read(&self, source: &dyn ReadAt, most: u64) -> Option<Vec<u8>> {
        if self.size > most || self.packed > most {
            return None;
        }
        let head = source.read_at(self.offset, 30).filter(|head| head.starts_with(b"PK\x03\x04"))?;
        let skip = 30 + u64::from(short(&head, 26)) + u64::from(short(&head, 28));
        let packed = source.read_at(self.offset.checked_add(skip)?, usize::try_from(self.packed).ok()?)?;
        match self.method {
            0 => Some(packed),
            8 => inflated(flate2::read::DeflateDecoder::new(packed.as_slice()), most),
            _ => None,
        }
    }
}

fn number(bytes: &[u8], at: usize, size: usize) -> u64 {
    bytes[at..at + size].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

fn short(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Returns an archive with these files, deflated.
#[cfg(test)]
pub(crate) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    use std::io::Write;
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in files {
        let mut packer = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        packer.write_all(bytes).expect("pack");
        let packed = packer.finish().expect("pack");
        let lengths = [packed.len(), bytes.len()].map(|l| u32::try_from(l).expect("small").to_le_bytes()).concat();
        let name_length = u16::try_from(name.len()).expect("short").to_le_bytes();
        let offset = u32::try_from(out.len()).expect("small").to_le_bytes();
        let common = [&[20, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &lengths, &name_length, &[0, 0]].concat();
        out.extend([b"PK\x03\x04", &common[..], name.as_bytes(), &packed].concat());
        let more = [&[0; 10][..], &offset].concat();
        directory.extend([b"PK\x01\x02", &[20, 0][..], &common, &more, name.as_bytes()].concat());
    }
    let at = u32::try_from(out.len()).expect("small").to_le_bytes();
    let size = u32::try_from(directory.len()).expect("small").to_le_bytes();
    [&out[..], &directory, b"PK\x05\x06", &[0; 8], &size, &at, &[0; 2]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_out_as_they_went_in() {
        let text = "line\n".repeat(100);
        let zip = archive(&[("a.txt", b"A"), ("dir/b.txt", text.as_bytes())]);
        let list = entries(&zip.as_slice()).expect("an archive");
        assert_eq!(list.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["a.txt", "dir/b.txt"]);
        assert_eq!(list[1].read(&zip.as_slice(), 1 << 20).as_deref(), Some(text.as_bytes()));
        assert_eq!(list[1].read(&zip.as_slice(), 10), None);
    }

    #[test]
    fn damage_ends_nothing_but_the_reading() {
        let zip = archive(&[("a.txt", b"A"), ("b", b"BBBB")]);
        for at in 0..zip.len() {
            let mut broken = zip.clone();
            broken[at] = 0xff;
            for entry in entries(&broken.as_slice()).unwrap_or_default() {
                drop(entry.read(&broken.as_slice(), 1 << 10));
            }
            for entry in entries(&&zip[..at]).unwrap_or_default() {
                drop(entry.read(&&zip[..at], 1 << 10));
            }
        }
    }
}
