//! Fingerprints: BLAKE3 of bytes, for what stays inside the store. Without instructions for SHA-256 a processor makes one in
//! a tenth of the time of a [`Digest`](crate::Digest), and it is as good at telling bytes apart. What other tools get to
//! see has digests.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A BLAKE3 hash of 256 bits. Its text form is `blake3:` and 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

/// A text that is no fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a fingerprint: expected `blake3:` and 64 hex digits")]
pub struct ParseFingerprintError;

impl Fingerprint {
    /// Returns the fingerprint of `data`.
    pub fn of(data: impl AsRef<[u8]>) -> Self {
        Self(blake3::hash(data.as_ref()).into())
    }

    /// Returns the fingerprint with these raw bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads `reader` to its end with `buffer`, the larger the faster, and returns the fingerprint and the number of bytes.
    ///
    /// # Errors
    /// Whatever `reader` fails with.
    pub fn of_reader(mut reader: impl Read, buffer: &mut [u8]) -> io::Result<(Self, u64)> {
        let mut hasher = FingerprintHasher::new();
        let mut total = 0;
        loop {
            match reader.read(buffer) {
                Ok(0) => return Ok((hasher.finish(), total)),
                Ok(n) => {
                    hasher.update(&buffer[..n]);
                    total += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3:{}", hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3:{}", hex::encode(&self.0[..6]))
    }
}

impl FromStr for Fingerprint {
    type Err = ParseFingerprintError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("blake3:").ok_or(ParseFingerprintError)?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| ParseFingerprintError)?;
        Ok(Self(bytes))
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A fingerprint of bytes that come piece by piece. Pieces of 16 KiB and more use all that the processor has.
#[derive(Clone, Default)]
pub struct FingerprintHasher(blake3::Hasher);

impl FingerprintHasher {
    /// Returns a hasher that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `data`.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// Returns the fingerprint of all that was added.
    pub fn finish(&self) -> Fingerprint {
        Fingerprint(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips() {
        let print = Fingerprint::of("");
        let text = "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!((print.to_string().as_str(), text.parse()), (text, Ok(print)));
        for bad in ["", "blake3:", "blake3:00", &text[7..], &text.replace("blake3", "sha256")] {
            assert_eq!(bad.parse::<Fingerprint>(), Err(ParseFingerprintError), "{bad}");
        }
    }

    #[test]
    fn pieces_make_no_difference() {
        let data: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        let whole = Fingerprint::of(&data);
        for piece in [1, 1000, 1 << 16] {
            let mut hasher = FingerprintHasher::new();
            data.chunks(piece).for_each(|chunk| hasher.update(chunk));
            assert_eq!(hasher.finish(), whole);
            assert_eq!(Fingerprint::of_reader(&data[..], &mut vec![0; piece]).unwrap(), (whole, 100_000));
        }
    }
}
