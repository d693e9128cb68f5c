//! Zstandard as a sequence of frames, each of one unit. Decoders read such a sequence as one stream.

use std::io;

use zstd::bulk::Compressor;

use super::parallel::Codec;

/// The codec.
pub(super) struct Zstd(Compressor<'static>);

impl Codec for Zstd {
    /// Twice the window of the default level, so that little is lost at the seams.
    const UNIT: usize = 4 << 20;

    fn new(level: i32) -> io::Result<Self> {
        let mut compressor = Compressor::new(level.clamp(1, 22))?;
        compressor.include_checksum(true)?;
        compressor.include_contentsize(true)?;
        Ok(Self(compressor))
    }

    fn compress(&mut self, unit: &[u8]) -> io::Result<Vec<u8>> {
        self.0.compress(unit)
    }
}
