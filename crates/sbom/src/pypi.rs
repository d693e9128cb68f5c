//! Distributions of Python: core metadata, fields as in a mail's head.

use crate::package::{Ecosystem, Package};

/// Returns the distribution that a `METADATA` or `PKG-INFO` describes.
pub(crate) fn package(text: &[u8], path: &str) -> Option<Package> {
    let text = String::from_utf8_lossy(text);
    let mut package = Package::new(Ecosystem::Pypi, "", "", path);
    // The description follows an empty line and may look like fields.
    for line in text.lines().take_while(|line| !line.is_empty()) {
        if line.starts_with([' ', '\t']) {
            continue;
        }
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        match key {
            "Name" => package.name = normal(value),
            "Version" => value.clone_into(&mut package.version),
            "License-Expression" => value.clone_into(&mut package.license),
            "License" if package.license.is_empty() && value != "UNKNOWN" => value.clone_into(&mut package.license),
            "Author" if !value.is_empty() && value != "UNKNOWN" => package.supplier = format!("Person: {value}"),
            _ => {}
        }
    }
    (!package.name.is_empty() && !package.version.is_empty()).then_some(package)
}

/// Names that differ in case, dots and underscores only are one.
fn normal(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        let c = if matches!(c, '.' | '_') { '-' } else { c.to_ascii_lowercase() };
        if c != '-' || !out.ends_with('-') {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_counts_and_the_description_does_not() {
        let text = "Metadata-Version: 2.1\nName: My_Pkg.x\nVersion: 3.1\nLicense: UNKNOWN\nLicense-Expression: MIT\n\nName: no\n";
        let found = package(text.as_bytes(), "p").expect("a distribution");
        assert_eq!((found.purl().as_str(), found.license.as_str()), ("pkg:pypi/my-pkg-x@3.1", "MIT"));
        assert_eq!(package(b"Name: x\n", "p"), None);
        assert_eq!(package(b"\n\xffName: x\nVersion: 1\n", "p"), None);
    }
}
