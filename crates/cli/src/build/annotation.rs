//! `--annotation [TYPE[,TYPE…]:]NAME=VALUE`: annotations for every image output, as attributes of the exporter.

use std::collections::BTreeMap;

use kiln_oci::Platform;

use crate::error::CliError;

/// What can carry annotations.
const TYPES: [&str; 4] = ["manifest", "manifest-descriptor", "index", "index-descriptor"];

/// Returns exporter attributes, `annotation-manifest[linux/amd64].name` and the like.
pub fn attributes(values: &[String]) -> Result<BTreeMap<String, String>, CliError> {
    let mut out = BTreeMap::new();
    for value in values.iter().filter(|v| !v.is_empty()) {
        let (places, pair) = split(value);
        let bad = |why: &str| CliError::user(format!("invalid annotation \"{value}\": {why}"));
        let (name, content) = pair.split_once('=').ok_or_else(|| bad("expected key=value"))?;
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(bad("the key is empty or has spaces in it"));
        }
        for place in places.split(',') {
            let (kind, platform) = match place.strip_suffix(']').and_then(|p| p.split_once('[')) {
                Some((kind, platform)) => (kind, Some(platform)),
                None => (place, None),
            };
            if !TYPES.contains(&kind) {
                let error =
                    CliError::user(format!("invalid annotation \"{value}\": unknown annotation type \"{kind}\""));
                return Err(error.nearest("annotation type", kind, TYPES.into_iter()));
            }
            let platform = match platform {
                Some(_) if kind.starts_with("index") => return Err(bad("an index has no platform")),
                Some(text) => {
                    let platform = Platform::parse(text).map_err(|_| bad(&format!("invalid platform \"{text}\"")))?;
                    format!("[{platform}]")
                }
                None => String::new(),
            };
            out.insert(format!("annotation-{kind}{platform}.{name}"), content.to_owned());
        }
    }
    Ok(out)
}

/// Splits the types off; without any it is the manifest. A key may hold colons itself.
fn split(value: &str) -> (&str, &str) {
    let word = |place: &str| {
        let kind = place.split('[').next().unwrap_or(place);
        !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
    };
    match value.split_once(':') {
        Some((places, pair)) if places.split(',').all(word) => (places, pair),
        _ => ("manifest", value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(value: &str) -> Result<Vec<String>, String> {
        let got = attributes(&[value.to_owned()]).map_err(|e| e.message().to_owned())?;
        Ok(got.into_iter().map(|(k, v)| format!("{k} {v}")).collect())
    }

    #[test]
    fn accepted() {
        for (value, want) in [
            ("a=b", vec!["annotation-manifest.a b"]),
            ("org.x/y=http://h:1/?a=b", vec!["annotation-manifest.org.x/y http://h:1/?a=b"]),
            ("index,manifest-descriptor:k=", vec!["annotation-index.k ", "annotation-manifest-descriptor.k "]),
            ("manifest[linux/amd64]:k=v", vec!["annotation-manifest[linux/amd64].k v"]),
        ] {
            assert_eq!(run(value), Ok(want.into_iter().map(str::to_owned).collect()), "{value}");
        }
    }

    #[test]
    fn refused() {
        for (value, want) in [
            ("a", "expected key=value"),
            ("=x", "the key is empty or has spaces in it"),
            ("manifset:a=b", "unknown annotation type \"manifset\""),
            ("index[linux/amd64]:a=b", "an index has no platform"),
            ("manifest[l/i/n/u]:a=b", "invalid platform \"l/i/n/u\""),
        ] {
            assert_eq!(run(value), Err(format!("invalid annotation \"{value}\": {want}")), "{value}");
        }
    }
}
