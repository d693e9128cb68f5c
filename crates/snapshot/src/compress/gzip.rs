//! gzip as one member whose units can be compressed apart: each starts with the input before it as dictionary and
//! ends on a byte boundary with an empty stored block, as pigz does.

use std::io;

use flate2::{Compress, Compression, FlushCompress, Status};

use super::parallel::{Codec, Frame, Unit};

/// Magic, deflate, no flags, no time, no extra flags, unknown system; the end is CRC-32 and length.
pub(super) const FRAME: Frame = Frame { header: &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff], checksum: true };

/// The codec, which is its level.
pub(super) struct Gzip(Compression);

impl Codec for Gzip {
    const UNIT: usize = 512 * 1024;
    /// Deflate cannot refer further back.
    const BEFORE: usize = 32 * 1024;

    fn new(level: i32) -> io::Result<Self> {
        Ok(Self(Compression::new(level.clamp(0, 9).cast_unsigned())))
    }

    fn compress(&mut self, unit: &Unit) -> io::Result<Vec<u8>> {
        // A state that is reset keeps hash chains of what it compressed before, which can turn its choice between
        // equally long matches: the bytes would depend on which thread took which unit. A new one costs some 20 µs.
        let mut state = Compress::new(self.0, false);
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
                return Ok(if out.len() > unit.data.len() + 64 { stored(unit) } else { out });
            }
            out.reserve(unit.data.len() / 4 + 1024);
        }
    }
}

/// Returns the unit as stored blocks: what the fast levels make of incompressible bytes can be larger than that.
fn stored(unit: &Unit) -> Vec<u8> {
    let mut out = Vec::with_capacity(unit.data.len() + unit.data.len() / 4096 + 16);
    let mut blocks = unit.data.chunks(0xffff).peekable();
    while let Some(block) = blocks.next() {
        let len = (block.len() as u16).to_le_bytes();
        out.push(u8::from(unit.last && blocks.peek().is_none()));
        out.extend_from_slice(&[len[0], len[1], !len[0], !len[1]]);
        out.extend_from_slice(block);
    }
    out
}
