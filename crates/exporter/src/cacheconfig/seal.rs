//! A digest inside a cache config, for stores that keep configs by name and vouch for nothing.
//!
//! A single bit can lead a key to another layer and still be a good config. BuildKit ignores the field; configs without it,
//! as BuildKit writes them, are taken as they are.

use std::borrow::Cow;

use kiln_oci::JsonError;
use kiln_stdx::Digest;

/// What a sealed config begins with; the digest of the config without the field follows.
const FIELD: &[u8] = br#"{"io.kiln.digest":""#;
/// What stands between the digest and the rest.
const NEXT: &[u8] = br#"","#;

/// Puts the digest of `config` into it, as its first field. What is no JSON object with fields stays as it is.
pub fn seal(config: &[u8]) -> Vec<u8> {
    match config.strip_prefix(b"{") {
        Some(rest) if rest != b"}" => [FIELD, Digest::of(config).to_string().as_bytes(), NEXT, rest].concat(),
        _ => config.to_vec(),
    }
}

/// Returns a config as it was before it was sealed.
///
/// # Errors
/// It has been sealed and changed since.
pub(super) fn open(config: &[u8]) -> Result<Cow<'_, [u8]>, JsonError> {
    let Some(sealed) = config.strip_prefix(FIELD) else { return Ok(Cow::Borrowed(config)) };
    let end = sealed.iter().position(|byte| *byte == b'"').unwrap_or(sealed.len());
    let (digest, rest) = sealed.split_at(end);
    let plain = [b"{", rest.strip_prefix(NEXT).unwrap_or_default()].concat();
    if Digest::of(&plain).to_string().as_bytes() == digest {
        return Ok(Cow::Owned(plain));
    }
    Err(JsonError::new("cache config", serde::de::Error::custom("it does not have the digest that it says")))
}
