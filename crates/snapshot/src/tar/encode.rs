//! Writing headers: ustar where everything fits, else a PAX extended header before it.
//!
//! The bytes are those that Go's archive/tar writes for the same header in its PAX format, which is what other
//! builders use, so equal layers have equal digests across builders.

use std::collections::BTreeMap;

use base64::Engine as _;

use super::header::BLOCK;

/// What ends an archive: two blocks of zeros.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// A member to be written.
#[derive(Debug, Clone)]
pub struct Header<'a> {
    /// The name; that of a directory ends in a slash.
    pub path: &'a [u8],
    /// The type as the format has it: `0` file, `1` hard link, `2` symbolic link, `3` character device, `4` block
    /// device, `5` directory, `6` named pipe.
    pub kind: u8,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Modification time in seconds since 1970.
    pub mtime: i64,
    /// Bytes of data that follow.
    pub size: u64,
    /// Target of a link.
    pub link: &'a [u8],
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes; `None` for none.
    pub xattrs: Option<&'a BTreeMap<Vec<u8>, Vec<u8>>>,
}

/// Appends the header blocks of `header` to `out`. Names and link targets must not hold NUL bytes.
pub fn encode(header: &Header<'_>, out: &mut Vec<u8>) {
    let split = split_path(header.path);
    let mut records = records(header);
    let needs_pax = records.keys().any(|key| key != b"path") || (records.contains_key(&b"path"[..]) && split.is_none());
    let mut block = [0u8; BLOCK];
    let (mut prefix, mut name): (&[u8], Vec<u8>) = (b"", ascii(header.path));
    if needs_pax {
        write_records(header.path, &std::mem::take(&mut records), out);
    } else if let Some((before, after)) = split {
        (prefix, name) = (before, after.to_vec());
    }
    put_name(&mut block[..100], &name);
    put_octal(&mut block[100..108], i64::from(header.mode & 0o7777));
    put_octal(&mut block[108..116], i64::from(header.uid));
    put_octal(&mut block[116..124], i64::from(header.gid));
    put_octal(&mut block[124..136], i64::try_from(header.size).unwrap_or(0));
    put_octal(&mut block[136..148], header.mtime);
    block[156] = header.kind;
    put_name(&mut block[157..257], &ascii(header.link));
    put_octal(&mut block[329..337], i64::from(header.device.0));
    put_octal(&mut block[337..345], i64::from(header.device.1));
    put_name(&mut block[345..500], prefix);
    finish(&mut block, out);
}

/// Returns the records for everything that the plain header cannot hold.
fn records(header: &Header<'_>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut records = BTreeMap::new();
    for (key, text) in [("path", header.path), ("linkpath", header.link)] {
        if text.len() > 100 || !text.is_ascii() {
            records.insert(key.into(), text.to_vec());
        }
    }
    let numbers = [
        ("uid", i128::from(header.uid), 8),
        ("gid", i128::from(header.gid), 8),
        ("size", i128::from(header.size), 12),
        ("mtime", i128::from(header.mtime), 12),
    ];
    for (key, number, width) in numbers {
        if !(0..1i128 << (3 * (width - 1))).contains(&number) {
            records.insert(key.into(), number.to_string().into_bytes());
        }
    }
    for (name, value) in header.xattrs.into_iter().flatten() {
        if name.contains(&b'=') {
            // The key would end at the sign; libarchive's records escape it.
            let value = base64::engine::general_purpose::STANDARD_NO_PAD.encode(value);
            records.insert([b"LIBARCHIVE.xattr.", &percent_encode(name)[..]].concat(), value.into_bytes());
        } else {
            records.insert([b"SCHILY.xattr.", &name[..]].concat(), value.clone());
        }
    }
    records
}

fn write_records(path: &[u8], records: &BTreeMap<Vec<u8>, Vec<u8>>, out: &mut Vec<u8>) {
    let mut data = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        // The length counts its own digits.
        let mut len = rest + rest.to_string().len();
        if len.to_string().len() != rest.to_string().len() {
            len = rest + len.to_string().len();
        }
        data.extend_from_slice(len.to_string().as_bytes());
        data.push(b' ');
        data.extend_from_slice(key);
        data.push(b'=');
        data.extend_from_slice(value);
        data.push(b'\n');
    }
    let mut name = ascii(&extended_name(path));
    name.truncate(100);
    while name.last() == Some(&b'/') {
        name.pop();
    }
    let mut block = [0u8; BLOCK];
    block[..name.len()].copy_from_slice(&name);
    for (at, width) in [(100, 8), (108, 8), (116, 8), (136, 12)] {
        put_octal(&mut block[at..at + width], 0);
    }
    put_octal(&mut block[124..136], i64::try_from(data.len()).unwrap_or(0));
    block[156] = b'x';
    finish(&mut block, out);
    out.extend_from_slice(&data);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

/// Returns the name that an extended header itself has: `dir/PaxHeaders.0/name`.
fn extended_name(path: &[u8]) -> Vec<u8> {
    let cut = path.iter().rposition(|&b| b == b'/').map_or(0, |i| i + 1);
    let joined = [&path[..cut], b"/PaxHeaders.0/", &path[cut..]].concat();
    let (clean, _) = crate::path::clean(&joined);
    clean
}

/// Splits a long name for ustar's prefix field, where that is possible.
fn split_path(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= 100 || !path.is_ascii() {
        return None;
    }
    let mut end = path.len();
    if end > 156 {
        end = 156;
    } else if path.last() == Some(&b'/') {
        end -= 1;
    }
    let slash = path[..end].iter().rposition(|&b| b == b'/').filter(|&i| i > 0)?;
    let name = &path[slash + 1..];
    (!name.is_empty() && name.len() <= 100 && slash <= 155).then_some((&path[..slash], name))
}

fn put_name(field: &mut [u8], name: &[u8]) {
    let n = name.len().min(field.len());
    field[..n].copy_from_slice(&name[..n]);
    // A cut name that ends in a slash would look like a directory to simple readers.
    if name.len() > field.len() && field[n - 1] == b'/' {
        let end = field[..n - 1].iter().rposition(|&b| b != b'/').map_or(0, |i| i + 1);
        field[end] = 0;
    }
}

fn put_octal(field: &mut [u8], number: i64) {
    let width = field.len() - 1;
    let fits = number >= 0 && number >> (3 * width).min(62) == 0;
    let digits = format!("{:0width$o}", if fits { number } else { 0 });
    field[..width].copy_from_slice(digits.as_bytes());
}

fn finish(block: &mut [u8; BLOCK], out: &mut Vec<u8>) {
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.extend_from_slice(block);
}

fn ascii(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(|b| b.is_ascii() && *b != 0).collect()
}

fn percent_encode(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for &byte in name {
        if byte.is_ascii_graphic() && byte != b'=' && byte != b'%' {
            out.push(byte);
        } else {
            out.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
    out
}
