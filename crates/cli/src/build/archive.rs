//! Tells an archive from a Dockerfile by its first bytes.

/// Bytes that are looked at.
pub const HEAD: usize = 1024;

/// First bytes of compressed data: bzip2, gzip, xz, zstd.
const MAGIC: [&[u8]; 4] = [b"BZh", b"\x1f\x8b\x08", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"];

/// Returns whether `head` begins a tar archive, plain or compressed.
pub fn is_archive(head: &[u8]) -> bool {
    MAGIC.iter().any(|m| head.starts_with(m)) || is_tar_header(head)
}

/// Checks the checksum of a tar header: the sum of its 512 bytes with the checksum field read as spaces.
fn is_tar_header(head: &[u8]) -> bool {
    let Some(header) = head.get(..512) else { return false };
    let field: String = header[148..156].iter().filter(|b| b.is_ascii_digit()).map(|&b| char::from(b)).collect();
    let Ok(stored) = u32::from_str_radix(&field, 8) else { return false };
    let sum: u32 =
        header.iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { 32 } else { u32::from(b) }).sum();
    sum == stored && sum != 8 * 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str) -> Vec<u8> {
        let mut block = vec![0u8; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[257..262].copy_from_slice(b"ustar");
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum::<u32>() + 8 * 32;
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    #[test]
    fn kinds() {
        assert!(is_archive(&header("Dockerfile")));
        assert!(is_archive(b"\x1f\x8b\x08\x00rest"));
        assert!(is_archive(b"BZh91AY"));
        assert!(is_archive(b"\xfd7zXZ\x00\x00"));
        assert!(is_archive(b"\x28\xb5\x2f\xfd\x04"));
        assert!(!is_archive(b"FROM scratch\n"));
        assert!(!is_archive(&[0u8; 1024]));
        assert!(!is_archive(&vec![b'#'; 1024]));
        let mut broken = header("Dockerfile");
        broken[0] ^= 1;
        assert!(!is_archive(&broken));
    }
}
