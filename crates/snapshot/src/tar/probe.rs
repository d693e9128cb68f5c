//! Telling archives from other files.

use super::header::Block;

/// Size of a header in bytes: what [`is_tar`] wants to see.
pub const BLOCK: usize = super::header::BLOCK;

/// Tells whether `start`, the first bytes of an uncompressed file, is the start of a tar archive: a whole header
/// whose checksum is right and whose name is not empty. Archives without any member are not told from zeros.
pub fn is_tar(start: &[u8]) -> bool {
    let Some(block) = start.first_chunk() else { return false };
    let block = Block(block);
    !block.is_zero() && block.checksum_matches() && !block.path().is_empty() && block.size().is_ok_and(|n| n >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::{Header, encode};

    #[test]
    fn headers_are_told_from_other_bytes() {
        let mut archive = Vec::new();
        let header = Header {
            path: b"a",
            kind: b'0',
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            size: 0,
            link: b"",
            device: (0, 0),
            xattrs: None,
        };
        encode(&header, &mut archive);
        assert!(is_tar(&archive));
        assert!(!is_tar(&archive[..511]));
        assert!(!is_tar(&[0; 512]));
        assert!(!is_tar(&[b'7'; 512]));
        archive[0] ^= 1;
        assert!(!is_tar(&archive));
    }
}
