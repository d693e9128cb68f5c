//! Bytes that are read in pieces: a binary or an archive is too large to be held whole.

/// Something with a length that is read at offsets.
pub trait ReadAt {
    /// Length in bytes.
    fn size(&self) -> u64;

    /// Returns exactly `length` bytes from `offset`; none where they are not all there or cannot be read.
    fn read_at(&self, offset: u64, length: usize) -> Option<Vec<u8>>;
}

impl ReadAt for &[u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        let start = usize::try_from(offset).ok()?;
        self.get(start..start.checked_add(length)?).map(<[u8]>::to_vec)
    }
}

/// Returns all of `source`; none if it has more than `most` bytes.
pub(crate) fn whole(source: &dyn ReadAt, most: u64) -> Option<Vec<u8>> {
    let size = source.size();
    if size > most { None } else { source.read_at(0, usize::try_from(size).ok()?) }
}

/// Inflates `packed` with `reader`, at most `most` bytes; none for more, or for damaged bytes.
pub(crate) fn inflated(mut reader: impl std::io::Read, most: u64) -> Option<Vec<u8>> {
    use std::io::Read as _;
    let mut out = Vec::new();
    reader.by_ref().take(most + 1).read_to_end(&mut out).ok()?;
    (out.len() as u64 <= most).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_whole_or_none() {
        let source = b"abcdef".as_slice();
        assert_eq!(source.read_at(2, 4).as_deref(), Some(&b"cdef"[..]));
        assert_eq!(source.read_at(2, 5), None);
        assert_eq!(source.read_at(u64::MAX, 1), None);
        assert_eq!(whole(&source, 5), None);
        assert_eq!(whole(&source, 6).as_deref(), Some(source));
    }
}
