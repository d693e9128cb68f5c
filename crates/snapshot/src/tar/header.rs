//! One 512-byte header block.

use crate::error::ArchiveProblem;

/// Size of a block of the format, in bytes.
pub(super) const BLOCK: usize = 512;

/// A header block that was read.
pub(super) struct Block<'a>(pub(super) &'a [u8; BLOCK]);

impl Block<'_> {
    /// Tells whether the block marks the end.
    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|&b| b == 0)
    }

    /// Tells whether the checksum is right, as unsigned bytes or, as some old writers had it, as signed ones.
    pub(super) fn checksum_matches(&self) -> bool {
        let Some(stated) = octal(&self.0[148..156]) else { return false };
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (i, &byte) in self.0.iter().enumerate() {
            let byte = if (148..156).contains(&i) { b' ' } else { byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        stated == unsigned || stated == signed
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    /// Returns the name, joined with the prefix that the ustar format has.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = text(&self.0[345..500]);
        // GNU's format has other fields where ustar has the prefix.
        if &self.0[257..263] == b"ustar\0" && !prefix.is_empty() {
            return [prefix, b"/", name].concat();
        }
        name.to_vec()
    }

    pub(super) fn link(&self) -> &[u8] {
        text(&self.0[157..257])
    }

    pub(super) fn mode(&self) -> Result<u32, ArchiveProblem> {
        self.field(100, 8, "mode").map(|n| (n & 0o7777) as u32)
    }

    pub(super) fn uid(&self) -> Result<i64, ArchiveProblem> {
        self.field(108, 8, "uid")
    }

    pub(super) fn gid(&self) -> Result<i64, ArchiveProblem> {
        self.field(116, 8, "gid")
    }

    pub(super) fn size(&self) -> Result<i64, ArchiveProblem> {
        self.field(124, 12, "size")
    }

    pub(super) fn mtime(&self) -> Result<i64, ArchiveProblem> {
        self.field(136, 12, "mtime")
    }

    pub(super) fn device(&self) -> Result<(u32, u32), ArchiveProblem> {
        let part = |at, what| {
            self.field(at, 8, what).and_then(|n| u32::try_from(n).map_err(|_| ArchiveProblem::BadValue(what)))
        };
        Ok((part(329, "devmajor")?, part(337, "devminor")?))
    }

    fn field(&self, at: usize, len: usize, what: &'static str) -> Result<i64, ArchiveProblem> {
        number(&self.0[at..at + len]).ok_or(ArchiveProblem::BadValue(what))
    }
}

/// Reads a numeric field: octal digits, or GNU's base 256 where the first bit is set.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 == 0 {
        return octal(field);
    }
    // The second bit is the sign; the rest is a number in two's complement.
    let negative = first & 0x40 != 0;
    let mut value = i128::from(first & 0x3f);
    if negative {
        value -= 0x40;
    }
    for &byte in rest {
        value = (value << 8) | i128::from(byte);
    }
    i64::try_from(value).ok()
}

fn octal(field: &[u8]) -> Option<i64> {
    let start = field.iter().position(|&b| b != b' ').unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(|&b| b == 0 || b == b' ').unwrap_or(digits.len());
    digits[..end].iter().try_fold(0i64, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// Returns a text field up to its first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&b| b == 0).unwrap_or(field.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"77777777777\0"), Some(0o77_777_777_777));
        assert_eq!(number(b"12x"), None);
        assert_eq!(number(b"-1"), None);
        assert_eq!(number(&[0x80, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]), Some(-2));
        assert_eq!(number(&[0x80, 0x7f, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None, "beyond 64 bits");
    }
}
