//! gzip as one member whose units can be compressed apart: each starts with the input before it as dictionary and
//! ends on a byte boundary with an empty stored block, as pigz does.

use std::io;

use flate2::{Compress, Compression, Crc, FlushCompress, Status};

use super::GZIP_LEVEL;
use super::parallel::{Codec, Unit};

const UNIT: usize = 512 * 1024;
/// Deflate cannot refer further back.
const WINDOW: usize = 32 * 1024;

/// The codec.
pub(super) struct Gzip {
    level: u32,
    crc: Crc,
}

impl Gzip {
    pub(super) fn new(level: Option<i32>) -> Self {
        let level = level.map_or(GZIP_LEVEL, |level| level.clamp(0, 9).cast_unsigned());
        Self { level, crc: Crc::new() }
    }
}

impl Codec for Gzip {
    type State = Compress;

    fn unit(&self) -> usize {
        UNIT
    }

    fn dictionary(&self) -> usize {
        WINDOW
    }

    fn state(&self) -> io::Result<Compress> {
        Ok(Compress::new(Compression::new(self.level), false))
    }

    fn header(&self) -> Vec<u8> {
        // Magic, deflate, no flags, no time, no extra flags, unknown system.
        vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff]
    }

    fn see(&mut self, data: &[u8]) {
        self.crc.update(data);
    }

    fn level(&self) -> i32 {
        self.level.cast_signed()
    }

    fn compress(_: i32, state: &mut Compress, unit: &Unit) -> io::Result<Vec<u8>> {
        state.reset();
        if !unit.before.is_empty() {
            state.set_dictionary(&unit.before)?;
        }
        let flush = if unit.last { FlushCompress::Finish } else { FlushCompress::Sync };
        let mut out = Vec::with_capacity(unit.data.len() / 2 + 1024);
        loop {
            let done = usize::try_from(state.total_in()).unwrap_or(usize::MAX);
            let status = state.compress_vec(unit.data.get(done..).unwrap_or_default(), &mut out, flush)?;
            let taken = state.total_in() == unit.data.len() as u64;
            // Room left over means that everything, the flush included, is out.
            if status == Status::StreamEnd || (!unit.last && taken && out.len() < out.capacity()) {
                return Ok(out);
            }
            out.reserve(unit.data.len() / 4 + 1024);
        }
    }

    fn trailer(&self) -> Vec<u8> {
        [self.crc.sum().to_le_bytes(), self.crc.amount().to_le_bytes()].concat()
    }

    fn ends_with_empty_unit(&self) -> bool {
        true
    }
}
