//! Decompression by the first bytes of the input.

use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read};

/// Most memory in KiB that an xz stream may ask for: its strongest preset needs 65 MiB, rare settings more.
const XZ_MEMORY: u32 = 1 << 20;

/// What compressed an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Nothing that is known.
    Plain,
    /// gzip, of any number of members.
    Gzip,
    /// Zstandard, of any number of frames.
    Zstd,
    /// bzip2, of any number of streams.
    Bzip2,
    /// xz, of any number of streams.
    Xz,
}

impl Format {
    /// Tells the format by the first bytes; six are enough.
    pub fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame may come first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            _ => Self::Plain,
        }
    }
}

/// Returns a reader of the decompressed bytes of `input`, with the format its first bytes show.
///
/// # Errors
/// When the start cannot be read, or a decoder not be made.
pub fn decompress<'a>(mut input: impl BufRead + Send + 'a) -> io::Result<(Format, Box<dyn Read + Send + 'a>)> {
    let mut start = Vec::with_capacity(6);
    while start.len() < 6 {
        let taken = match input.fill_buf() {
            Ok([]) => break,
            Ok(buf) => {
                let n = buf.len().min(6 - start.len());
                start.extend_from_slice(&buf[..n]);
                n
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => 0,
            Err(e) => return Err(e),
        };
        input.consume(taken);
    }
    let format = Format::of(&start);
    let whole = Cursor::new(start).chain(input);
    Ok((
        format,
        match format {
            Format::Plain => Box::new(whole),
            Format::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
            Format::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(BufReader::new(whole))?),
            Format::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(whole)),
            Format::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(whole, true, XZ_MEMORY)),
        },
    ))
}
