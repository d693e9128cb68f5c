//! The header that goes before a file's bytes: the fields of a tar header as text, in a fixed order.

use kiln_snapshot::{Entry, Kind};
use kiln_stdx::{Digest, DigestHasher};

/// Hashes a file's content digest while its bytes pass by.
pub struct FileSum(DigestHasher);

impl FileSum {
    /// Starts the sum of a regular file with the mode, owner, size and extended attributes of `entry`.
    pub fn new(entry: &Entry) -> Self {
        Self(header(entry))
    }

    /// Adds bytes of the file.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// Returns the content digest of the file.
    pub fn finish(self) -> Digest {
        self.0.finish()
    }
}

/// Returns a hasher that has seen the header of `entry`.
///
/// Device numbers are part of it, although BuildKit leaves them out of what it scans on disk (it does hash those that
/// file sync brings): two devices must not look alike.
pub(super) fn header(entry: &Entry) -> DigestHasher {
    let (kind, size, mode): (u8, u64, u32) = match entry.kind {
        Kind::File | Kind::Whiteout => (b'0', entry.size, entry.mode),
        Kind::Dir => (b'5', 0, entry.mode),
        Kind::Symlink => (b'2', 0, 0o777),
        Kind::CharDevice => (b'3', 0, entry.mode),
        Kind::BlockDevice => (b'4', 0, entry.mode),
        Kind::Fifo => (b'6', 0, entry.mode),
    };
    let device = matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice);
    let (major, minor) = if device { entry.rdev } else { (0, 0) };
    let mut text = Vec::with_capacity(128);
    text.extend_from_slice(b"name");
    number(&mut text, b"mode", u64::from(mode & 0o7777));
    number(&mut text, b"uid", u64::from(entry.uid));
    number(&mut text, b"gid", u64::from(entry.gid));
    number(&mut text, b"size", size);
    text.extend_from_slice(b"typeflag");
    text.push(kind);
    text.extend_from_slice(b"linkname");
    if entry.kind == Kind::Symlink {
        text.extend_from_slice(&entry.target);
    }
    text.extend_from_slice(b"unamegname");
    number(&mut text, b"devmajor", u64::from(major));
    number(&mut text, b"devminor", u64::from(minor));
    for (name, value) in &entry.xattrs {
        let of_host = name.starts_with(b"security.") || name.starts_with(b"system.");
        if name == b"security.capability" || !of_host {
            text.extend_from_slice(name);
            text.extend_from_slice(value);
        }
    }
    let mut hasher = DigestHasher::new();
    hasher.update(&text);
    hasher
}

fn number(text: &mut Vec<u8>, name: &[u8], value: u64) {
    text.extend_from_slice(name);
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut value = value;
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    text.extend_from_slice(&digits[at..]);
}
