//! `--cache-from` and `--cache-to`.

use std::collections::BTreeMap;

use super::csv;
use crate::error::CliError;

/// A remote cache as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheEntry {
    /// Backend: `registry`, `local`, `inline`, `gha`, `s3`, `azblob`, `http`.
    pub kind: String,
    /// Attributes.
    pub attrs: BTreeMap<String, String>,
}

/// Parses values: a list of references, or `type=...,name=value,...`.
pub fn parse(values: &[String]) -> Result<Vec<CacheEntry>, CliError> {
    let mut out = Vec::new();
    for value in values.iter().filter(|v| !v.is_empty()) {
        let fields = csv::fields(value).map_err(|e| CliError::user(format!("invalid cache: {e}")))?;
        if !value.contains('=') {
            out.extend(fields.into_iter().filter(|f| !f.is_empty()).map(|reference| CacheEntry {
                kind: "registry".to_owned(),
                attrs: BTreeMap::from([("ref".to_owned(), reference)]),
            }));
            continue;
        }
        let mut entry = CacheEntry { kind: String::new(), attrs: BTreeMap::new() };
        for field in &fields {
            let Some((key, value)) = field.split_once('=') else {
                return Err(CliError::user(format!("invalid value {field}")));
            };
            match key.to_lowercase().as_str() {
                "type" => value.clone_into(&mut entry.kind),
                key => drop(entry.attrs.insert(key.to_owned(), value.to_owned())),
            }
        }
        if entry.kind.is_empty() {
            return Err(CliError::user(format!("type required for \"{value}\"")));
        }
        out.push(entry);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let shown = |value: &str| {
            parse(&[value.to_owned()]).map_err(|e| e.message().to_owned()).map(|entries| {
                entries.iter().map(|e| format!("{} {:?}", e.kind, e.attrs)).collect::<Vec<_>>().join("; ")
            })
        };
        for (value, want) in [
            ("user/app:cache", Ok(r#"registry {"ref": "user/app:cache"}"#)),
            ("a,b", Ok(r#"registry {"ref": "a"}; registry {"ref": "b"}"#)),
            ("type=local,SRC=/x,tag=t", Ok(r#"local {"src": "/x", "tag": "t"}"#)),
            ("src=/x", Err("type required for \"src=/x\"")),
            ("type=local,src", Err("invalid value src")),
        ] {
            assert_eq!(shown(value).as_deref().map_err(String::as_str), want, "{value}");
        }
    }
}
