//! Where content is cut into pieces: by a rolling hash of what is there, so that a change moves the cuts near it only.
//!
//! The cuts are those of FastCDC with normalized sizes: below the average one a stricter condition makes cuts rare, above it a
//! laxer one makes them likely.

use std::sync::OnceLock;

use kiln_stdx::Fingerprint;

/// Fewest bytes of a piece that is not the last one of its file.
pub const MIN: usize = 64 << 10;
/// What most pieces are near to, in bytes.
const NORMAL: usize = 256 << 10;
/// Most bytes of a piece.
pub const MAX: usize = 1 << 20;
/// How many bits of the hash are zero at a cut, below and above the normal size.
const STRICT: u32 = 20;
const LAX: u32 = 16;

/// Returns how many bytes of `data` are its first piece. Unless `data` is all there is, it has to be [`MAX`] bytes or more.
pub fn first(data: &[u8]) -> usize {
    let gear = gear();
    let end = data.len().min(MAX);
    let mut hash = 0u64;
    for (at, byte) in data.iter().enumerate().take(end).skip(MIN) {
        hash = (hash << 1).wrapping_add(gear[usize::from(*byte)]);
        let bits = if at < NORMAL { STRICT } else { LAX };
        if hash >> (64 - bits) == 0 {
            return at;
        }
    }
    end
}

/// A number for each byte, the same everywhere and always: other cuts would send everything again.
fn gear() -> &'static [u64; 256] {
    static GEAR: OnceLock<[u64; 256]> = OnceLock::new();
    GEAR.get_or_init(|| {
        std::array::from_fn(|byte| {
            let print = Fingerprint::of(format!("kiln.mounts.gear.v1:{byte}"));
            print.as_bytes().iter().take(8).fold(0, |number, part| number << 8 | u64::from(*part))
        })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Returns bytes that look like noise and are the same each time.
    fn noise(length: usize, mut seed: u64) -> Vec<u8> {
        let step = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56) as u8
        };
        std::iter::repeat_with(step).take(length).collect()
    }

    fn pieces(mut data: &[u8]) -> Vec<&[u8]> {
        let mut out = Vec::new();
        while !data.is_empty() {
            let (piece, rest) = data.split_at(first(data));
            out.push(piece);
            data = rest;
        }
        out
    }

    #[test]
    fn cuts_stay_where_nothing_changed() {
        let old = noise(12 << 20, 1);
        let mut new = old.clone();
        new.splice(5_000_000..5_000_010, *b"something of another length");
        let known: HashSet<&[u8]> = pieces(&old).into_iter().collect();
        let sent: usize = pieces(&new).into_iter().filter(|piece| !known.contains(piece)).map(<[u8]>::len).sum();
        assert!(sent <= 2 * MAX, "{sent} bytes of new pieces");
        let sizes: Vec<usize> = pieces(&old).iter().map(|piece| piece.len()).collect();
        assert!(sizes.iter().rev().skip(1).all(|size| (MIN..=MAX).contains(size)), "{sizes:?}");
        assert!((24..=96).contains(&sizes.len()), "{} pieces of 12 MiB", sizes.len());
    }

    #[test]
    fn what_never_changes_is_cut_at_the_longest() {
        assert_eq!(
            pieces(&vec![0; 3 * MAX + 5]).iter().map(|piece| piece.len()).collect::<Vec<_>>(),
            [MAX, MAX, MAX, 5]
        );
        assert_eq!((first(b""), first(b"short")), (0, 5));
    }
}
