//! Modules of Node: the `package.json` of each.

use serde_json::Value;

use crate::package::{Ecosystem, Package};

/// Returns the module that a `package.json` describes; none for one without name or version, as parts of modules have.
pub(crate) fn package(text: &[u8], path: &str) -> Option<Package> {
    let json: Value = serde_json::from_slice(text).ok()?;
    let field = |name: &str| json.get(name).and_then(Value::as_str).map(str::trim).filter(|v| !v.is_empty());
    let (name, version) = (field("name")?, field("version")?);
    let (scope, name) = match name.rsplit_once('/') {
        Some((scope, name)) => (scope, name),
        None => ("", name),
    };
    let mut package = Package::new(Ecosystem::Npm, name, version, path);
    scope.clone_into(&mut package.namespace);
    // Old modules have `{ "type": "MIT" }`, or a list of such.
    let license = json.get("license").or_else(|| json.get("licenses").and_then(|list| list.get(0)));
    let license = license.and_then(|l| l.as_str().or_else(|| l.get("type").and_then(Value::as_str)));
    package.license = license.unwrap_or_default().to_owned();
    let author = json.get("author").and_then(|a| a.as_str().or_else(|| a.get("name").and_then(Value::as_str)));
    package.supplier = author.map(|name| format!("Person: {}", name.trim())).unwrap_or_default();
    Some(package)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_scopes_and_licenses() {
        let text = br#"{"name":"@me/x","version":"1.2.3","licenses":[{"type":"ISC"}],"author":{"name":"N"}}"#;
        let found = package(text, "p").expect("a module");
        assert_eq!((found.purl().as_str(), found.license.as_str()), ("pkg:npm/%40me/x@1.2.3", "ISC"));
        assert_eq!(found.supplier, "Person: N");
        for none in [&br#"{"name":"x"}"#[..], b"[]", b"", br#"{"name":1,"version":"1"}"#, br#"{"type":"module"}"#] {
            assert_eq!(package(none, "p"), None);
        }
    }
}
