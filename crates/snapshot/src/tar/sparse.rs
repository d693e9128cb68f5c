//! Sparse files: which parts of the file the archive holds.

use super::header::{BLOCK, number};
use super::pax::digits;
use crate::error::ArchiveProblem;

/// Most parts of one file. GNU tar makes one per hole; a file of 1 TiB in 1 MiB pieces has as many.
const PARTS: usize = 1 << 20;

/// Most bytes of holes in one file. Holes cost no room in the archive but have to be hashed as zeros, so without
/// a bound a few bytes could keep a machine busy for ever. Large enough for a `lastlog` of 32-bit user ids.
const HOLES: u64 = 1 << 40;

/// Parts (offset, length) that are stored one after the other, in a file of `size` bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Map {
    pub(super) parts: Vec<(u64, u64)>,
    pub(super) size: u64,
}

impl Map {
    /// Checks that the parts are in order, inside the file, and as long together as what the archive stores.
    pub(super) fn check(mut self, stored: u64) -> Result<Self, ArchiveProblem> {
        let (mut end, mut sum) = (0u64, 0u64);
        for &(offset, len) in &self.parts {
            if offset < end {
                return Err(ArchiveProblem::BadSparseMap);
            }
            end = offset.checked_add(len).filter(|&end| end <= self.size).ok_or(ArchiveProblem::BadSparseMap)?;
            sum = sum.checked_add(len).ok_or(ArchiveProblem::BadSparseMap)?;
        }
        if sum != stored || i64::try_from(self.size).is_err() {
            return Err(ArchiveProblem::BadSparseMap);
        }
        if self.size - sum > HOLES {
            return Err(ArchiveProblem::TooLarge("the holes of a sparse file"));
        }
        self.parts.retain(|&(_, len)| len > 0);
        Ok(self)
    }

    /// Adds a part.
    pub(super) fn push(&mut self, offset: u64, len: u64) -> Result<(), ArchiveProblem> {
        if self.parts.len() == PARTS {
            return Err(ArchiveProblem::TooLarge("a sparse map"));
        }
        self.parts.push((offset, len));
        Ok(())
    }

    /// Reads GNU's old form out of the header block; the flag tells whether blocks with more parts follow.
    pub(super) fn from_gnu_header(block: &[u8; BLOCK]) -> Result<(Self, bool), ArchiveProblem> {
        let size = number(&block[483..495]).and_then(|n| u64::try_from(n).ok()).ok_or(ArchiveProblem::BadSparseMap)?;
        let mut map = Self { parts: Vec::new(), size };
        map.read_pairs(&block[386..482])?;
        Ok((map, block[482] != 0))
    }

    /// Reads a block of more parts; the flag is as in [`from_gnu_header`](Self::from_gnu_header).
    pub(super) fn extend_gnu(&mut self, block: &[u8; BLOCK]) -> Result<bool, ArchiveProblem> {
        self.read_pairs(&block[..504])?;
        Ok(block[504] != 0)
    }

    fn read_pairs(&mut self, fields: &[u8]) -> Result<(), ArchiveProblem> {
        for pair in fields.chunks_exact(24) {
            if pair[0] == 0 {
                return Ok(());
            }
            let part = |field| number(field).and_then(|n| u64::try_from(n).ok()).ok_or(ArchiveProblem::BadSparseMap);
            self.push(part(&pair[..12])?, part(&pair[12..])?)?;
        }
        Ok(())
    }
}

/// Reads the map of version 1.0, decimal lines at the start of the member's data, block by block.
#[derive(Debug, Default)]
pub(super) struct DataMap {
    line: Vec<u8>,
    numbers: Vec<u64>,
}

impl DataMap {
    /// Takes one block; returns true when the map is complete.
    pub(super) fn take(&mut self, block: &[u8; BLOCK]) -> Result<bool, ArchiveProblem> {
        for &byte in block {
            if byte != b'\n' {
                self.line.push(byte);
                if self.line.len() > 20 {
                    return Err(ArchiveProblem::BadSparseMap);
                }
                continue;
            }
            self.numbers.push(digits(&self.line).ok_or(ArchiveProblem::BadSparseMap)?);
            self.line.clear();
            let count = self.numbers[0];
            if count > PARTS as u64 {
                return Err(ArchiveProblem::TooLarge("a sparse map"));
            }
            if self.numbers.len() as u64 == 1 + 2 * count {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the map of a file of `size` bytes.
    pub(super) fn finish(self, size: u64) -> Map {
        Map { parts: self.numbers[1..].chunks_exact(2).map(|pair| (pair[0], pair[1])).collect(), size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_checked() {
        let map = |parts: &[(u64, u64)], size| Map { parts: parts.to_vec(), size };
        assert_eq!(map(&[(0, 1), (5, 2), (9, 0)], 9).check(3).unwrap().parts, [(0, 1), (5, 2)]);
        assert!(map(&[(5, 2), (0, 1)], 9).check(3).is_err(), "out of order");
        assert!(map(&[(0, 4), (3, 2)], 9).check(6).is_err(), "overlap");
        assert!(map(&[(8, 4)], 9).check(4).is_err(), "behind the end");
        assert!(map(&[(0, 4)], 9).check(5).is_err(), "stored size differs");
        assert!(map(&[(u64::MAX, 2)], u64::MAX).check(2).is_err(), "overflow");
        assert!(map(&[], 1 << 50).check(0).is_err(), "a bomb");
    }
}
