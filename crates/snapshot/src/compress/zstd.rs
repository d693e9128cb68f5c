//! Zstandard as a sequence of frames, each of one unit. Decoders read such a sequence as one stream.

use std::io;

use zstd::bulk::Compressor;

use super::ZSTD_LEVEL;
use super::parallel::{Codec, Unit};

/// Twice the window of the default level, so that little is lost at the seams.
const UNIT: usize = 4 << 20;

/// The codec.
pub(super) struct Zstd {
    level: i32,
}

impl Zstd {
    pub(super) fn new(level: Option<i32>) -> Self {
        let level = level.filter(|&level| level != 0).unwrap_or(ZSTD_LEVEL);
        Self { level: level.clamp(1, 22) }
    }
}

impl Codec for Zstd {
    type State = Compressor<'static>;

    fn unit(&self) -> usize {
        UNIT
    }

    fn dictionary(&self) -> usize {
        0
    }

    fn state(&self) -> io::Result<Self::State> {
        let mut compressor = Compressor::new(self.level)?;
        compressor.include_checksum(true)?;
        compressor.include_contentsize(true)?;
        Ok(compressor)
    }

    fn header(&self) -> Vec<u8> {
        Vec::new()
    }

    fn see(&mut self, _: &[u8]) {}

    fn level(&self) -> i32 {
        self.level
    }

    fn compress(_: i32, state: &mut Self::State, unit: &Unit) -> io::Result<Vec<u8>> {
        state.compress(&unit.data)
    }

    fn trailer(&self) -> Vec<u8> {
        Vec::new()
    }

    fn ends_with_empty_unit(&self) -> bool {
        // No bytes at all are no zstd stream, so an empty input needs its frame; any other has one already.
        false
    }
}
