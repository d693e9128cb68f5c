//! Alpine's table of packages: lines of a letter and a value, an empty line behind each package.

use crate::package::{Ecosystem, Package};

/// Returns the packages of a table.
pub(crate) fn packages(text: &[u8], path: &str) -> Vec<Package> {
    let text = String::from_utf8_lossy(text);
    let mut found = Vec::new();
    let mut package = Package::new(Ecosystem::Apk, "", "", path);
    let mut arch = String::new();
    for line in text.lines().chain([""]) {
        match line.split_once(':') {
            None if line.is_empty() => {
                let next = Package::new(Ecosystem::Apk, "", "", path);
                let mut done = std::mem::replace(&mut package, next);
                done.qualifiers.insert(0, ("arch", std::mem::take(&mut arch)));
                if !done.name.is_empty() {
                    found.push(done);
                }
            }
            Some(("P", value)) => value.clone_into(&mut package.name),
            Some(("V", value)) => value.clone_into(&mut package.version),
            Some(("L", value)) => value.clone_into(&mut package.license),
            Some(("A", value)) => value.clone_into(&mut arch),
            Some(("o", value)) => package.qualifiers = vec![("upstream", value.to_owned())],
            Some(("m", value)) => {
                package.supplier = format!("Person: {}", value.replace('<', "(").replace('>', ")"));
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_paragraph_is_a_package() {
        let text = "C:Q1x\nP:musl\nV:1.2.4-r2\nA:x86_64\nL:MIT\no:musl\nm:N <n@e.org>\nF:lib\nR:ld.so\n\nP:zlib\nV:1\n";
        let found = packages(text.as_bytes(), "lib/apk/db/installed");
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].license.as_str(), found[0].supplier.as_str()), ("MIT", "Person: N (n@e.org)"));
        assert_eq!(found[0].purl(), "pkg:apk/musl@1.2.4-r2?arch=x86_64&upstream=musl");
        assert_eq!(found[1].purl(), "pkg:apk/zlib@1");
        assert!(packages(b"\n\n\x00", "p").is_empty());
    }
}
