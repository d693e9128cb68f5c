//! Tests of compression: round trips, independence of threads and writes, limits of units.

use super::*;
use std::io::Read as _;

/// Bytes that compress somewhat: words of a small language.
fn prose(len: usize, seed: u64) -> Vec<u8> {
    let words = ["layer ", "stage ", "copy ", "digest ", "run ", "\n", "cache ", "0123456789 "];
    let mut state = seed | 1;
    let mut out = Vec::with_capacity(len + 16);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(words[(state % 8) as usize].as_bytes());
        if state.is_multiple_of(29) {
            out.extend_from_slice(&state.to_le_bytes());
        }
    }
    out.truncate(len);
    out
}

fn pack(data: &[u8], compression: Compression, workers: usize, step: usize) -> Vec<u8> {
    let mut writer = Compressor::with_workers(Vec::new(), compression, workers);
    for piece in data.chunks(step) {
        writer.write_all(piece).unwrap();
    }
    writer.finish().unwrap()
}

fn unpack(data: &[u8]) -> (Format, Vec<u8>) {
    let (format, mut reader) = decompress(data).unwrap();
    let mut out = Vec::new();
    reader.read_to_end(&mut out).unwrap();
    (format, out)
}

#[test]
fn round_trips_at_every_edge() {
    for (compression, format, unit) in [
        (Compression::NONE, Format::Plain, 1000),
        (Compression::GZIP, Format::Gzip, 1 << 20),
        (Compression::ZSTD, Format::Zstd, 4 << 20),
    ] {
        for len in [0, 1, unit - 1, unit, unit + 1, 2 * unit, 2 * unit + 77] {
            let data = prose(len, len as u64 + 3);
            let (found, out) = unpack(&pack(&data, compression, 2, 100_000));
            assert_eq!(out.len(), data.len(), "{compression:?} {len}");
            assert!(out == data, "{compression:?} {len}");
            if len > 6 || compression.kind != Kind::None {
                assert_eq!(found, format, "{compression:?} {len}");
            }
        }
    }
}

#[test]
fn output_does_not_depend_on_threads_or_writes() {
    for (kind, len) in [(Kind::Gzip, 3 << 20), (Kind::Zstd, 11 << 20)] {
        let data = prose(len, 9);
        for level in [None, Some(1), Some(5)] {
            let compression = Compression { kind, level };
            let expected = pack(&data, compression, 1, 1 << 20);
            for (workers, step) in [(2, 7_777), (3, 512 * 1024), (16, data.len())] {
                assert!(pack(&data, compression, workers, step) == expected, "{compression:?} {workers} {step}");
            }
        }
    }
}

#[test]
fn a_unit_does_not_depend_on_what_its_thread_did_before() {
    use super::parallel::Codec;
    // Zeros, then numbers: hash chains left over from one turn choices in the other.
    let mut data = vec![0; 3_002_880];
    data.extend((1..=400_000).flat_map(|n| format!("{n}\n").into_bytes()));
    fn check<C: Codec>(data: &[u8], level: i32) {
        let unit = |n: usize| &data[n * C::UNIT..(n + 1) * C::UNIT];
        let count = data.len() / C::UNIT;
        let alone: Vec<_> = (0..count).map(|n| C::new(level).unwrap().compress(unit(n)).unwrap()).collect();
        for start in 0..count {
            let mut codec = C::new(level).unwrap();
            for n in (0..count).rev().cycle().skip(start).take(count) {
                assert!(codec.compress(unit(n)).unwrap() == alone[n], "unit {n}, level {level}");
            }
        }
    }
    for level in [1, 3, 6] {
        check::<gzip::Gzip>(&data, level);
        check::<zstd::Zstd>(&data.repeat(2), level);
    }
}

#[test]
fn incompressible_and_stored_data() {
    let mut state = 88_172_645_463_325_252_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(3 << 20)
    .collect();
    for level in [0, 1, 6, 9] {
        let compression = Compression { kind: Kind::Gzip, level: Some(level) };
        let packed = pack(&noise, compression, 2, 65_536);
        assert!(unpack(&packed).1 == noise, "level {level}");
        assert!(packed.len() < noise.len() + noise.len() / 500, "level {level}: {}", packed.len());
    }
}

#[test]
fn levels_outside_the_range_are_brought_into_it() {
    let data = prose(100_000, 1);
    for (kind, given, same) in
        [(Kind::Gzip, 99, 9), (Kind::Gzip, -3, 0), (Kind::Zstd, 99, 22), (Kind::Zstd, 0, ZSTD_LEVEL)]
    {
        let level = |level| Compression { kind, level: Some(level) };
        assert!(pack(&data, level(given), 1, 4096) == pack(&data, level(same), 1, 4096), "{kind:?} {given}");
    }
}

#[test]
fn failing_output_is_an_error_and_ends() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(buf.len()).ok_or_else(|| io::Error::from(io::ErrorKind::StorageFull))?;
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let data = prose(6 << 20, 4);
    let mut writer = Compressor::new(Full(100_000), Compression::GZIP);
    let failed = writer.write_all(&data).and_then(|()| writer.finish().map(|_| ()));
    assert_eq!(failed.map_err(|e| e.kind()), Err(io::ErrorKind::StorageFull));
}

#[test]
fn concatenated_streams_are_one() {
    for compression in [Compression::GZIP, Compression::ZSTD] {
        let both = [pack(b"one ", compression, 1, 9), pack(b"two", compression, 1, 9)].concat();
        assert_eq!(unpack(&both).1, b"one two");
    }
}

#[test]
fn truncated_and_damaged_streams_are_errors() {
    let data = prose(2 << 20, 6);
    for compression in [Compression::GZIP, Compression::ZSTD] {
        let packed = pack(&data, compression, 2, 1 << 20);
        let read = |bytes: &[u8]| decompress(bytes).and_then(|(_, mut r)| r.read_to_end(&mut Vec::new()));
        assert!(read(&packed[..packed.len() - 1]).is_err(), "{compression:?}");
        assert!(read(&packed[..packed.len() / 2]).is_err(), "{compression:?}");
        let mut bad = packed.clone();
        bad[packed.len() / 3] ^= 0x10;
        assert!(read(&bad).is_err(), "{compression:?}");
    }
}

#[test]
fn foreign_formats_are_read() {
    let bzip2 = "425a6839314159265359283a3a6100000299804000100400400004900020002121980c00\
                 1f0b8bb9229c28481d1d3080";
    let xz = "fd377a585a000004e6d6b4460200210116000000742fe5a301000668656c6c6f0a0000a8a8";
    // Streams that are cut or false must end in an error, not a panic; whole ones are made by the tools in
    // the integration tests.
    for text in [bzip2, xz] {
        let bytes: Vec<u8> = (0..text.len() / 2)
            .filter_map(|i| text.get(2 * i..2 * i + 2).and_then(|h| u8::from_str_radix(h, 16).ok()))
            .collect();
        let (format, mut reader) = decompress(&bytes[..]).unwrap();
        assert_ne!(format, Format::Plain);
        assert!(reader.read_to_end(&mut Vec::new()).is_err());
    }
}
