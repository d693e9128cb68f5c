//! Content digests: SHA-256 with the `sha256:<hex>` text form of the OCI image spec ("Digests").

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use aws_lc_rs::digest::{Context, SHA256, digest};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A SHA-256 digest. Cheap to copy; its text form is `sha256:` and 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// Why a text is not a digest that kiln can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseDigestError {
    /// The text has no `algorithm:` prefix.
    #[error("`{0}` is not a digest: expected `sha256:` and 64 hex digits")]
    Malformed(String),
    /// The algorithm is known to OCI but not supported here.
    #[error("digest algorithm `{0}` is not supported, only sha256 is")]
    Algorithm(String),
}

impl Digest {
    /// Returns the digest of `data`.
    pub fn of(data: impl AsRef<[u8]>) -> Self {
        Self::of_sha256(digest(&SHA256, data.as_ref()))
    }

    fn of_sha256(value: aws_lc_rs::digest::Digest) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(value.as_ref());
        Self(bytes)
    }

    /// Returns the digest with these raw bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the 64 hex digits without the algorithm.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// Hashes everything `reader` gives and returns the digest with the number of bytes read.
    ///
    /// # Errors
    /// Whatever `reader` fails with.
    pub fn of_reader(mut reader: impl Read) -> io::Result<(Self, u64)> {
        let mut hasher = DigestHasher::new();
        // On the stack and not large: most files are small, and clearing a buffer for each would cost more than reading.
        let mut buf = [0u8; 16 * 1024];
        let mut total = 0u64;
        loop {
            let n = match reader.read(&mut buf) {
                Ok(0) => return Ok((hasher.finish(), total)),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            hasher.update(&buf[..n]);
            total += n as u64;
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut buf = [0u8; 64];
        // The buffer has exactly the encoded size, so this cannot fail; an error would only drop the digits.
        hex::encode_to_slice(self.0, &mut buf).map_err(|_| fmt::Error)?;
        write!(f, "sha256:{}", std::str::from_utf8(&buf).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(&self.0[..6]))
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let malformed = || ParseDigestError::Malformed(s.chars().take(100).collect());
        let (algorithm, digits) = s.split_once(':').ok_or_else(malformed)?;
        if algorithm != "sha256" {
            return Err(match algorithm {
                "sha384" | "sha512" | "blake3" => ParseDigestError::Algorithm(algorithm.to_owned()),
                _ => malformed(),
            });
        }
        if digits.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(malformed());
        }
        let mut bytes = [0u8; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| malformed())?;
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A streaming SHA-256.
#[derive(Clone)]
pub struct DigestHasher(Context);

impl Default for DigestHasher {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl DigestHasher {
    /// Returns a hasher that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `data`.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// Returns the digest of all that was added.
    pub fn finish(self) -> Digest {
        Digest::of_sha256(self.0.finish())
    }
}

/// A writer that hashes and counts what passes through it.
pub struct DigestWriter<W> {
    inner: W,
    hasher: DigestHasher,
    written: u64,
}

impl<W> DigestWriter<W> {
    /// Wraps `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, hasher: DigestHasher::new(), written: 0 }
    }

    /// Returns the number of bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Returns the inner writer, the digest and the number of bytes written.
    pub fn finish(self) -> (W, Digest, u64) {
        (self.inner, self.hasher.finish(), self.written)
    }
}

impl<W: Write> Write for DigestWriter<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn text_form_round_trips() {
        let digest = Digest::of(b"");
        assert_eq!(digest.to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>(), Ok(digest));
    }

    #[test]
    fn bad_texts_are_refused() {
        for text in ["", "sha256", "sha256:", "sha256:abc", "md5:00", &EMPTY.to_uppercase(), &EMPTY[..70]] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
        assert_eq!("sha512:00".parse::<Digest>(), Err(ParseDigestError::Algorithm("sha512".into())));
    }

    #[test]
    fn writer_and_reader_agree_with_one_shot() {
        let data = vec![7u8; 300_000];
        let mut writer = DigestWriter::new(Vec::new());
        writer.write_all(&data).unwrap();
        let (copy, digest, n) = writer.finish();
        assert_eq!((copy == data, digest, n), (true, Digest::of(&data), 300_000));
        assert_eq!(Digest::of_reader(&data[..]).unwrap(), (digest, 300_000));
    }
}
