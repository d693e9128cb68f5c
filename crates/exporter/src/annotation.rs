//! Annotations asked for by attributes: `annotation[-TYPE][[PLATFORM]].KEY`.

use std::collections::BTreeMap;

use kiln_oci::{Annotations, Platform};

use crate::error::{ExportError, Result};

/// What an annotation is put on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AnnotationTarget {
    Manifest,
    ManifestDescriptor,
    Index,
    IndexDescriptor,
}

/// All annotations of one export.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnnotationSet(BTreeMap<(Option<Platform>, AnnotationTarget), Annotations>);

/// Reads the name of an annotation attribute; none for other attributes.
///
/// # Errors
/// An unknown type, a platform that is none, an index with a platform.
fn parse_key(name: &str) -> Result<Option<(Option<Platform>, AnnotationTarget, String)>> {
    let Some(rest) = name.strip_prefix("annotation") else { return Ok(None) };
    // The key begins behind the first dot that is not inside the brackets.
    let (head, key) = match rest.find(']') {
        Some(end) if rest.find('.').is_none_or(|dot| dot > end) => {
            let (head, tail) = rest.split_at(end + 1);
            match tail.strip_prefix('.') {
                Some(key) => (head, key),
                None => return Ok(None),
            }
        }
        _ => match rest.split_once('.') {
            Some(parts) => parts,
            None => return Ok(None),
        },
    };
    let (kind, platform) = match head.split_once('[') {
        Some((kind, platform)) => (kind, platform.strip_suffix(']')),
        None => (head, None),
    };
    if key.is_empty() || key.contains(char::is_whitespace) || !(kind.is_empty() || kind.starts_with('-')) {
        return Ok(None);
    }
    let target = match kind {
        "" | "-manifest" => AnnotationTarget::Manifest,
        "-manifest-descriptor" => AnnotationTarget::ManifestDescriptor,
        "-index" => AnnotationTarget::Index,
        "-index-descriptor" => AnnotationTarget::IndexDescriptor,
        other => {
            let known = "expected manifest, manifest-descriptor, index or index-descriptor";
            return Err(ExportError::invalid(name, &other[1..], known));
        }
    };
    let platform = platform.map(Platform::parse).transpose();
    let platform = platform.map_err(|e| ExportError::invalid(name, &e.0, e.to_string()))?;
    if platform.is_some() && matches!(target, AnnotationTarget::Index | AnnotationTarget::IndexDescriptor) {
        return Err(ExportError::invalid(name, head, "an index has no platform"));
    }
    Ok(Some((platform, target, key.to_owned())))
}

impl AnnotationSet {
    /// Takes in the attribute `name`; tells whether it is an annotation.
    ///
    /// # Errors
    /// An annotation that is malformed.
    pub fn accept(&mut self, name: &str, value: &str) -> Result<bool> {
        let Some((platform, target, key)) = parse_key(name)? else { return Ok(false) };
        self.0.entry((platform, target)).or_default().insert(key, value.to_owned());
        Ok(true)
    }

    /// Adds the annotations of `other`, which win.
    pub fn merge(&mut self, other: Self) {
        for (place, annotations) in other.0 {
            self.0.entry(place).or_default().extend(annotations);
        }
    }

    /// Returns what to put on `target`: what was asked for everywhere, then what was for `platform`.
    pub fn of(&self, target: AnnotationTarget, platform: Option<&Platform>) -> Annotations {
        let mut all = self.0.get(&(None, target)).cloned().unwrap_or_default();
        if let Some(platform) = platform {
            let key = (Some(platform.clone().normalize()), target);
            all.extend(self.0.get(&key).cloned().unwrap_or_default());
        }
        all
    }

    /// Returns the platforms that annotations are for.
    pub fn platforms(&self) -> impl Iterator<Item = &Platform> {
        self.0.keys().filter_map(|(platform, _)| platform.as_ref())
    }

    /// Tells whether there is something on `target`.
    pub fn has(&self, target: AnnotationTarget) -> bool {
        self.0.iter().any(|((_, t), annotations)| *t == target && !annotations.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_with_type_and_platform() {
        for (name, want) in [
            ("annotation.a.b", Some((None, AnnotationTarget::Manifest, "a.b"))),
            ("annotation-index.x", Some((None, AnnotationTarget::Index, "x"))),
            ("annotation-manifest-descriptor.x", Some((None, AnnotationTarget::ManifestDescriptor, "x"))),
            ("annotation[linux/arm64].org.x", Some((Some("linux/arm64"), AnnotationTarget::Manifest, "org.x"))),
            ("annotation.key[0].x", Some((None, AnnotationTarget::Manifest, "key[0].x"))),
            ("annotation", None),
            ("annotations.x", None),
            ("annotation.", None),
            ("name", None),
        ] {
            let got = parse_key(name).unwrap();
            let want = want
                .map(|(p, t, k): (Option<&str>, _, &str)| (p.map(|p| Platform::parse(p).unwrap()), t, k.to_owned()));
            assert_eq!(got, want, "{name}");
        }
        for name in ["annotation-layer.x", "annotation[no/such/plat/form].x", "annotation-index[linux/amd64].x"] {
            assert!(parse_key(name).is_err(), "{name}");
        }
    }

    #[test]
    fn the_platforms_own_value_wins() {
        let mut set = AnnotationSet::default();
        assert!(set.accept("annotation.k", "all").unwrap());
        assert!(set.accept("annotation[linux/amd64].k", "one").unwrap());
        assert!(!set.accept("compression", "gzip").unwrap());
        let amd64 = Platform::new("linux", "amd64", "");
        assert_eq!(set.of(AnnotationTarget::Manifest, Some(&amd64))["k"], "one");
        assert_eq!(set.of(AnnotationTarget::Manifest, None)["k"], "all");
        assert!(set.of(AnnotationTarget::Index, None).is_empty());
    }
}
