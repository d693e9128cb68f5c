//! A hash with a specified byte encoding, for every key that outlives a process.
//!
//! Encoding: the domain, then for each field its name, a type byte and its value; every text or byte string is
//! preceded by its length as a little-endian `u64`. Two different field lists can therefore not encode alike.

use crate::digest::{Digest, DigestHasher};

/// Builds a [`Digest`] from named, typed, length-prefixed fields.
#[must_use = "a hasher does nothing until `finish`"]
pub struct StableHasher(DigestHasher);

impl StableHasher {
    /// Starts a key of the given domain, for example `kiln.exec.v1`.
    pub fn new(domain: &str) -> Self {
        let mut hasher = Self(DigestHasher::new());
        hasher.put(domain.as_bytes());
        hasher
    }

    fn put(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn field(mut self, name: &str, kind: u8, value: &[u8]) -> Self {
        self.put(name.as_bytes());
        self.0.update(&[kind]);
        self.put(value);
        self
    }

    /// Adds a byte string.
    pub fn bytes(self, name: &str, value: &[u8]) -> Self {
        self.field(name, b'b', value)
    }

    /// Adds a text.
    pub fn str(self, name: &str, value: &str) -> Self {
        self.field(name, b's', value.as_bytes())
    }

    /// Adds an unsigned number.
    pub fn u64(self, name: &str, value: u64) -> Self {
        self.field(name, b'u', &value.to_le_bytes())
    }

    /// Adds a signed number.
    pub fn i64(self, name: &str, value: i64) -> Self {
        self.field(name, b'i', &value.to_le_bytes())
    }

    /// Adds a truth value.
    pub fn bool(self, name: &str, value: bool) -> Self {
        self.field(name, b't', &[u8::from(value)])
    }

    /// Adds a digest.
    pub fn digest(self, name: &str, value: &Digest) -> Self {
        self.field(name, b'd', value.as_bytes())
    }

    /// Adds a list of texts; its length is part of the key.
    pub fn strs<S: AsRef<str>>(mut self, name: &str, values: impl ExactSizeIterator<Item = S>) -> Self {
        self = self.field(name, b'l', &(values.len() as u64).to_le_bytes());
        for value in values {
            self.put(value.as_ref().as_bytes());
        }
        self
    }

    /// Returns the key.
    pub fn finish(self) -> Digest {
        self.0.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_borders_count() {
        let ab = StableHasher::new("t").str("a", "bc").finish();
        assert_ne!(ab, StableHasher::new("t").str("ab", "c").finish());
        assert_ne!(ab, StableHasher::new("t").bytes("a", b"bc").finish());
        assert_ne!(ab, StableHasher::new("u").str("a", "bc").finish());
        assert_ne!(
            StableHasher::new("t").strs("l", ["a", "b"].iter()).finish(),
            StableHasher::new("t").strs("l", ["ab"].iter()).finish()
        );
    }

    #[test]
    fn encoding_is_pinned() {
        // Changing this value throws away every cache: it needs a new on-disk version.
        let got = StableHasher::new("kiln.test.v1").str("name", "x").u64("n", 3).bool("b", true).finish();
        let mut want = Vec::new();
        let mut put = |b: &[u8]| {
            want.extend_from_slice(&(b.len() as u64).to_le_bytes());
            want.extend_from_slice(b);
        };
        put(b"kiln.test.v1");
        put(b"name");
        want.push(b's');
        let mut put = |b: &[u8]| {
            want.extend_from_slice(&(b.len() as u64).to_le_bytes());
            want.extend_from_slice(b);
        };
        put(b"x");
        put(b"n");
        want.push(b'u');
        let mut put = |b: &[u8]| {
            want.extend_from_slice(&(b.len() as u64).to_le_bytes());
            want.extend_from_slice(b);
        };
        put(&3u64.to_le_bytes());
        put(b"b");
        want.push(b't');
        let mut put = |b: &[u8]| {
            want.extend_from_slice(&(b.len() as u64).to_le_bytes());
            want.extend_from_slice(b);
        };
        put(&[1]);
        assert_eq!(got, Digest::of(want));
    }
}
