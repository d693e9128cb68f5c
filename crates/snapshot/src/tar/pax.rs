//! Extended headers of POSIX.1-2001 and what GNU, star and libarchive put into them.

use std::collections::BTreeMap;

use base64::Engine as _;

use crate::error::ArchiveProblem;

/// What one extended header says.
#[derive(Debug, Clone, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) sparse: PaxSparse,
}

/// GNU's records for sparse files, versions 0.0, 0.1 and 1.0.
#[derive(Debug, Clone, Default)]
pub(super) struct PaxSparse {
    pub(super) version: (Option<u64>, Option<u64>),
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    pub(super) map: Option<Vec<(u64, u64)>>,
    /// Offset of version 0.0 that waits for its length.
    offset: Option<u64>,
}

impl Pax {
    /// Reads the records of one header on top of what is known; an empty value takes a key back.
    pub(super) fn read(&mut self, mut data: &[u8]) -> Result<(), ArchiveProblem> {
        while !data.is_empty() {
            // Padding that some writers leave behind the last record.
            if data.iter().all(|&b| b == 0) {
                return Ok(());
            }
            let (record, rest) = split(data).ok_or(ArchiveProblem::BadExtendedHeader)?;
            let eq = record.iter().position(|&b| b == b'=').ok_or(ArchiveProblem::BadExtendedHeader)?;
            self.set(&record[..eq], &record[eq + 1..])?;
            data = rest;
        }
        Ok(())
    }

    /// Returns what a global header says that later members may inherit: nothing that names or sizes one file.
    pub(super) fn inheritable(&self) -> Self {
        Self { path: None, link: None, size: None, sparse: PaxSparse::default(), ..self.clone() }
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), ArchiveProblem> {
        let bytes = || (!value.is_empty()).then(|| value.to_vec());
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.insert(name.to_vec(), value.to_vec());
            return Ok(());
        }
        if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            let value = base64::engine::general_purpose::STANDARD_NO_PAD
                .decode(value.trim_ascii_end().strip_suffix(b"==").or(value.strip_suffix(b"=")).unwrap_or(value))
                .map_err(|_| ArchiveProblem::BadValue("LIBARCHIVE.xattr"))?;
            self.xattrs.entry(percent_decode(name)).or_insert(value);
            return Ok(());
        }
        match key {
            b"path" => self.path = bytes(),
            b"linkpath" => self.link = bytes(),
            b"size" => self.size = unsigned(value, "size")?,
            b"uid" => self.uid = unsigned(value, "uid")?.map(|n| i64::try_from(n).unwrap_or(i64::MAX)),
            b"gid" => self.gid = unsigned(value, "gid")?.map(|n| i64::try_from(n).unwrap_or(i64::MAX)),
            b"mtime" => {
                self.mtime = match value {
                    b"" => None,
                    _ => Some(time(value).ok_or(ArchiveProblem::BadValue("mtime"))?),
                };
            }
            _ => return self.sparse.set(key, value),
        }
        Ok(())
    }
}

impl PaxSparse {
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), ArchiveProblem> {
        const WHAT: &str = "a sparse record";
        match key {
            b"GNU.sparse.major" => self.version.0 = unsigned(value, WHAT)?,
            b"GNU.sparse.minor" => self.version.1 = unsigned(value, WHAT)?,
            b"GNU.sparse.name" => self.name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.real_size = unsigned(value, WHAT)?,
            b"GNU.sparse.numblocks" => self.map = self.map.take().or(Some(Vec::new())),
            b"GNU.sparse.offset" => self.offset = unsigned(value, WHAT)?,
            b"GNU.sparse.numbytes" => {
                let (Some(offset), Some(len)) = (self.offset.take(), unsigned(value, WHAT)?) else {
                    return Err(ArchiveProblem::BadSparseMap);
                };
                self.map.get_or_insert_default().push((offset, len));
            }
            b"GNU.sparse.map" => {
                let numbers: Option<Vec<u64>> = value.split(|&b| b == b',').map(digits).collect();
                let numbers =
                    if value.is_empty() { Vec::new() } else { numbers.ok_or(ArchiveProblem::BadSparseMap)? };
                if numbers.len() % 2 != 0 {
                    return Err(ArchiveProblem::BadSparseMap);
                }
                self.map = Some(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect());
            }
            // Access times, comments, character sets, names of owners, vendors' own: nothing a layer keeps.
            _ => {}
        }
        Ok(())
    }
}

/// Splits `length key=value\n` off the front; returns `key=value` and what follows.
fn split(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = data.iter().take(20).position(|&b| b == b' ')?;
    let len = usize::try_from(digits(&data[..space])?).ok()?;
    let (record, rest) = data.split_at_checked(len)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    Some((record, rest))
}

fn unsigned(value: &[u8], what: &'static str) -> Result<Option<u64>, ArchiveProblem> {
    match value {
        b"" => Ok(None),
        _ => digits(value).map(Some).ok_or(ArchiveProblem::BadValue(what)),
    }
}

/// Reads a non-empty run of decimal digits.
pub(super) fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Reads `[-]seconds[.fraction]`; digits beyond nanoseconds are cut.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let dot = value.iter().position(|&b| b == b'.').unwrap_or(value.len());
    let seconds = i64::try_from(digits(&value[..dot])?).ok()?;
    let mut nanos = 0u32;
    let fraction = value.get(dot + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    for i in 0..9 {
        nanos = nanos * 10 + fraction.get(i).map_or(0, |b| u32::from(b - b'0'));
    }
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        // Nanoseconds count up from the second before.
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

fn percent_decode(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|h| std::str::from_utf8(h).ok()).and_then(|h| u8::from_str_radix(h, 16).ok());
        match (byte, hex) {
            (b'%', Some(decoded)) => {
                out.push(decoded);
                rest = &tail[2..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(data: &[u8]) -> Result<Pax, ArchiveProblem> {
        let mut pax = Pax::default();
        pax.read(data).map(|()| pax)
    }

    #[test]
    fn records() {
        let pax = read(b"12 path=a b\n22 mtime=1.5000000019\n17 uid=123456789\n").unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a b"[..]));
        assert_eq!(pax.mtime, Some((1, 500_000_001)));
        assert_eq!(pax.uid, Some(123_456_789));
        let pax = read(b"12 path=a b\n8 path=\n").unwrap();
        assert_eq!(pax.path, None, "an empty value takes the key back");
        let pax = read(b"30 SCHILY.xattr.user.a=\x00\n=\xff\n\n\n").unwrap();
        assert_eq!(pax.xattrs[&b"user.a"[..]], b"\x00\n=\xff\n\n");
        let pax = read(b"35 LIBARCHIVE.xattr.user.a%3Db=AP8\n").unwrap();
        assert_eq!(pax.xattrs[&b"user.a=b"[..]], b"\x00\xff");
    }

    #[test]
    fn times_before_1970_count_up() {
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        assert_eq!(time(b"12345678901.1"), Some((12_345_678_901, 100_000_000)));
        for bad in [&b""[..], b".5", b"-", b"1.x", b"1e5", b"99999999999999999999"] {
            assert_eq!(time(bad), None, "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn malformed_records() {
        for bad in
            [&b"5 a=b"[..], b"6 a=b\nx", b"99 a=b\n", b"x a=b\n", b"7 abcd\n", b"3 \n", b"18446744073709551616 a=b\n"]
        {
            assert_eq!(read(bad).err(), Some(ArchiveProblem::BadExtendedHeader), "{}", bad.escape_ascii());
        }
        assert!(read(b"11 mtime=x\n").is_err());
        assert!(read(b"25 GNU.sparse.numbytes=1\n").is_err());
        assert!(read(b"24 GNU.sparse.map=1,2,3\n").is_err());
    }
}
