//! JSON as image tools write it: what is hashed is formatted in one way only.

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use serde_json::ser::{CompactFormatter, Formatter, Serializer};

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
    let out = Out::default();
    let formatter = SortedKeys { out: out.clone(), objects: Vec::new(), members: Vec::new() };
    value.serialize(&mut Serializer::with_formatter(out.clone(), formatter)).map_err(|e| JsonError::new(what, e))?;
    Ok(escape_html(out.0.take()))
}

/// What is written, for the writer and for the formatter, which looks back at it.
#[derive(Clone, Default)]
struct Out(Rc<RefCell<Vec<u8>>>);

impl Out {
    fn len(&self) -> usize {
        self.0.borrow().len()
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Compact JSON whose objects are put in order as each ends. Building values first, as trees, takes ten times as long
/// for configs with much history.
struct SortedKeys {
    out: Out,
    /// Of each open object: where its first member is in `members`, and where that begins in the text.
    objects: Vec<(usize, usize)>,
    /// Of each member of the open objects: where it begins in the text, and where its key ends.
    members: Vec<(usize, usize)>,
}

impl SortedKeys {
    /// Puts the members of the object that just ended in order.
    fn close(&mut self) {
        let Some((first, start)) = self.objects.pop() else { return };
        let members = self.members.split_off(first);
        let mut text = self.out.0.borrow_mut();
        let key = |&(from, to): &(usize, usize)| text.get(from + 1..to.saturating_sub(1)).unwrap_or_default();
        if members.is_sorted_by(|a, b| order(key(a), key(b)).is_le()) {
            return;
        }
        // A comma stands between a member and the next.
        let ends = members.iter().skip(1).map(|(from, _)| from - 1).chain([text.len()]);
        let mut ranges: Vec<_> = members.iter().zip(ends).collect();
        ranges.sort_by(|(a, _), (b, _)| order(key(a), key(b)));
        let pieces: Vec<&[u8]> =
            ranges.iter().map(|((from, _), to)| text.get(*from..*to).unwrap_or_default()).collect();
        let sorted = pieces.join(&b',');
        text.truncate(start);
        text.extend_from_slice(&sorted);
    }
}

/// Compares keys as they stand between their quotes by the text that they are.
fn order(a: &[u8], b: &[u8]) -> std::cmp::Ordering {
    let plain = |key: &[u8]| -> Option<String> {
        key.contains(&b'\\').then(|| serde_json::from_slice(&[b"\"", key, b"\""].concat()).ok()).flatten()
    };
    let (left, right) = (plain(a), plain(b));
    left.as_ref().map_or(a, |text| text.as_bytes()).cmp(right.as_ref().map_or(b, |text| text.as_bytes()))
}

impl Formatter for SortedKeys {
    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        CompactFormatter.begin_object(writer)?;
        self.objects.push((self.members.len(), self.out.len()));
        Ok(())
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        CompactFormatter.begin_object_key(writer, first)?;
        self.members.push((self.out.len(), 0));
        Ok(())
    }

    fn end_object_key<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        let at = self.out.len();
        if let Some((_, end)) = self.members.last_mut() {
            *end = at;
        }
        Ok(())
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close();
        CompactFormatter.end_object(writer)
    }
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

    #[test]
    fn order_is_that_of_texts_at_every_depth() {
        #[derive(Serialize)]
        struct Inner {
            z: u8,
            a: Option<f64>,
            #[serde(flatten)]
            rest: HashMap<&'static str, Vec<HashMap<&'static str, i64>>>,
        }
        let list = vec![HashMap::from([("b c", 1), ("b", -2), ("b\"", 3), ("b\n", 4), ("", 5)]), HashMap::new()];
        let value = HashMap::from([
            ("y", Inner { z: 1, a: None, rest: HashMap::from([("m", list)]) }),
            ("x", Inner { z: 2, a: Some(0.5), rest: HashMap::new() }),
        ]);
        let tree = serde_json::to_value(&value).unwrap();
        let want = serde_json::to_string(&tree).unwrap();
        assert!(want.contains(r#"{"":5,"b":-2,"b\n":4,"b c":1,"b\"":3}"#), "{want}");
        assert_eq!(String::from_utf8(to_compact_json("test", &value).unwrap()).unwrap(), want);
    }
}
