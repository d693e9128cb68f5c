//! Names of the metadata that calls carry (features 10.3), and the encoding of values that are not ASCII.

use std::collections::BTreeMap;

use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};

pub const SESSION_ID: &str = "x-docker-expose-session-uuid";
pub const SESSION_NAME: &str = "x-docker-expose-session-name";
pub const SESSION_SHARED_KEY: &str = "x-docker-expose-session-sharedkey";
pub const SESSION_METHOD: &str = "x-docker-expose-session-grpc-method";
/// Milliseconds.
pub const SESSION_HEALTH_TIMEOUT: &str = "x-buildkit-session-health-custom-timeout";

pub const DIR_NAME: &str = "dir-name";
pub const INCLUDE_PATTERNS: &str = "include-patterns";
pub const EXCLUDE_PATTERNS: &str = "exclude-patterns";
pub const FOLLOW_PATHS: &str = "followpaths";

pub const EXPORTER_ID: &str = "buildkit-attachable-exporter-id";
pub const EXPORTER_META_PREFIX: &str = "exporter-md-";
pub const EXPORTER_MULTI_PLATFORM: &str = "buildkit-exporter-multi-platform";

pub const STORE_ID: &str = "buildkit-attachable-store-id";
pub const SSH_ID: &str = "buildkit.ssh.id";
pub const UPLOAD_PATH: &str = "urlpath";
pub const UPLOAD_HOST: &str = "urlhost";

/// Clock of the server, RFC 3339 with nanoseconds.
pub const CURRENT_TIMESTAMP: &str = "buildkit-current-timestamp";
/// Names the build that a gateway call on the control socket belongs to.
pub const BUILD_ID: &str = "buildkit-controlapi-buildid";

/// Multi-valued metadata as plain texts.
pub type Values = BTreeMap<String, Vec<String>>;

fn needs_encoding(value: &str) -> bool {
    // Control characters cannot travel in a header either.
    !value.bytes().all(|b| (0x20..0x7f).contains(&b))
}

/// Escapes a text as Go's `url.QueryEscape`.
fn escape(text: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(text.len() + 8);
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            _ => {
                out.push('%');
                out.push(char::from(HEX[usize::from(byte >> 4)]));
                out.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
    out
}

/// Undoes [`escape`]; malformed text gives none.
fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
            }
            b'+' => out.push(b' '),
            other => out.push(other),
        }
    }
    String::from_utf8(out).ok()
}

/// Puts values under `key`, all escaped and marked as such when one of them is not printable ASCII.
pub fn put(map: &mut MetadataMap, key: &str, values: &[String]) {
    let encode = values.iter().any(|v| needs_encoding(v));
    let Ok(name) = AsciiMetadataKey::from_bytes(key.to_ascii_lowercase().as_bytes()) else { return };
    for value in values {
        let text = if encode { escape(value) } else { value.clone() };
        if let Ok(value) = AsciiMetadataValue::try_from(text) {
            map.append(name.clone(), value);
        }
    }
    if encode && let Ok(mark) = AsciiMetadataKey::from_bytes(format!("{key}-encoded").as_bytes()) {
        map.insert(mark, AsciiMetadataValue::from_static("1"));
    }
}

/// Puts one value under `key`.
pub fn put_one(map: &mut MetadataMap, key: &str, value: &str) {
    put(map, key, std::slice::from_ref(&value.to_owned()));
}

/// Returns the values of `key`, decoded. Values that are no text are left out.
pub fn get_all(map: &MetadataMap, key: &str) -> Vec<String> {
    let encoded = map
        .get(format!("{key}-encoded"))
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| matches!(v, "1" | "t" | "T" | "true" | "TRUE" | "True"));
    map.get_all(key)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .filter_map(|v| if encoded { unescape(v) } else { Some(v.to_owned()) })
        .collect()
}

/// Returns the first value of `key`, decoded.
pub fn get_one(map: &MetadataMap, key: &str) -> Option<String> {
    get_all(map, key).into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ascii_travels_as_it_is() {
        let mut map = MetadataMap::new();
        put(&mut map, INCLUDE_PATTERNS, &["a b".into(), "100%+".into()]);
        assert_eq!(map.get_all(INCLUDE_PATTERNS).iter().count(), 2);
        assert!(map.get("include-patterns-encoded").is_none());
        assert_eq!(get_all(&map, INCLUDE_PATTERNS), ["a b", "100%+"]);
    }

    #[test]
    fn everything_is_escaped_when_one_value_needs_it() {
        let mut map = MetadataMap::new();
        let values = ["größe/*".to_owned(), "a b+%".to_owned(), "tab\there".to_owned()];
        put(&mut map, EXCLUDE_PATTERNS, &values);
        assert_eq!(map.get_all(EXCLUDE_PATTERNS).iter().next().unwrap(), "gr%C3%B6%C3%9Fe%2F%2A");
        assert_eq!(get_all(&map, EXCLUDE_PATTERNS), values);
        assert_eq!(get_one(&map, "missing"), None);
    }
}
