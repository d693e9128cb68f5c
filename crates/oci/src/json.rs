//! JSON as image tools write it: what is hashed is formatted in one way only.

use serde::{Deserialize, Serialize};

/// Why a value could not be written or read as JSON.
#[derive(Debug, thiserror::Error)]
#[error("bad {what} JSON: {source}")]
pub struct JsonError {
    /// What the document is: `manifest`, `image config`, …
    pub what: &'static str,
    source: serde_json::Error,
}

impl JsonError {
    /// Wraps a parser's or writer's error.
    pub fn new(what: &'static str, source: serde_json::Error) -> Self {
        Self { what, source }
    }
}

/// Reads `null` as the empty value: Go programs write nil lists and maps so.
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Returns compact JSON with object keys sorted, the form of image configs.
///
/// # Errors
/// A value that JSON cannot express.
pub fn to_compact_json<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, JsonError> {
    // Going through `Value` sorts the keys: its maps are ordered.
    let value = serde_json::to_value(value).map_err(|e| JsonError::new(what, e))?;
    serde_json::to_vec(&value).map(escape_html).map_err(|e| JsonError::new(what, e))
}

/// Returns JSON indented by two spaces in field order, the form of manifests and indexes.
///
/// # Errors
/// A value that JSON cannot express.
pub fn to_indented_json<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, JsonError> {
    serde_json::to_vec_pretty(value).map(escape_html).map_err(|e| JsonError::new(what, e))
}

/// Returns compact JSON in field order: what Go's encoder writes for a struct, byte for byte.
///
/// # Errors
/// A value that JSON cannot express.
pub fn to_ordered_json<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, JsonError> {
    serde_json::to_vec(value).map(escape_html).map_err(|e| JsonError::new(what, e))
}

/// Escapes `<`, `>`, `&`, U+2028 and U+2029 as Go's encoder does, so that digests agree with other tools'.
///
/// These characters appear in JSON only inside strings, so a replacement of bytes is safe.
fn escape_html(json: Vec<u8>) -> Vec<u8> {
    if !json.iter().any(|b| matches!(b, b'<' | b'>' | b'&' | 0xe2)) {
        return json;
    }
    let mut out = Vec::with_capacity(json.len() + 32);
    let mut rest = json.as_slice();
    while let Some((&byte, tail)) = rest.split_first() {
        let (text, used): (&[u8], usize) = match byte {
            b'<' => (b"\\u003c", 1),
            b'>' => (b"\\u003e", 1),
            b'&' => (b"\\u0026", 1),
            0xe2 if tail.starts_with(&[0x80, 0xa8]) => (b"\\u2028", 3),
            0xe2 if tail.starts_with(&[0x80, 0xa9]) => (b"\\u2029", 3),
            _ => (&rest[..1], 1),
        };
        out.extend_from_slice(text);
        rest = &rest[used..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn keys_are_sorted_and_html_is_escaped() {
        let value = HashMap::from([("b", "x<y>&"), ("a", "\u{2028}é")]);
        let json = to_compact_json("test", &value).unwrap();
        assert_eq!(String::from_utf8(json).unwrap(), "{\"a\":\"\\u2028é\",\"b\":\"x\\u003cy\\u003e\\u0026\"}");
    }
}
