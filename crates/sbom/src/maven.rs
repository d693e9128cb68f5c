//! Java archives: the coordinates that Maven puts into them, and those of archives inside.

use crate::bytes::ReadAt;
use crate::package::{Ecosystem, Package};
use crate::zip;

/// How many archives inside each other are looked into.
const DEPTH: usize = 3;
/// Largest note in bytes.
const NOTE: u64 = 1 << 20;
/// Largest archive inside another one in bytes.
const INNER: u64 = 128 << 20;

/// Returns the artifacts of an archive.
pub(crate) fn packages(source: &dyn ReadAt, path: &str) -> Vec<Package> {
    let mut found = Vec::new();
    collect(source, path, DEPTH, &mut found);
    found
}

fn collect(source: &dyn ReadAt, path: &str, depth: usize, found: &mut Vec<Package>) {
    let Some(entries) = zip::entries(source) else { return };
    let before = found.len();
    let mut manifest = None;
    for entry in &entries {
        let name = entry.name.as_str();
        if name.starts_with("META-INF/maven/") && name.ends_with("/pom.properties") {
            found.extend(entry.read(source, NOTE).and_then(|text| from_properties(&text, path)));
        } else if name == "META-INF/MANIFEST.MF" {
            manifest = entry.read(source, NOTE);
        } else if name.ends_with(".jar")
            && depth > 0
            && let Some(inner) = entry.read(source, INNER)
        {
            collect(&inner.as_slice(), &format!("{path}!/{name}"), depth - 1, found);
        }
    }
    if found[before..].iter().all(|package| !package.found.contains(path)) {
        found.extend(manifest.and_then(|text| from_manifest(&text, path)));
    }
}

fn from_properties(text: &[u8], path: &str) -> Option<Package> {
    let text = String::from_utf8_lossy(text);
    let field = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once('='));
        lines.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
    };
    let mut package = Package::new(Ecosystem::Maven, field("artifactId")?, field("version")?, path);
    field("groupId")?.clone_into(&mut package.namespace);
    Some(package)
}

/// Reads what a manifest says of an archive that Maven did not make; none without a group, as nobody could look it up.
fn from_manifest(text: &[u8], path: &str) -> Option<Package> {
    // A line that begins with a blank continues the one before.
    let text = String::from_utf8_lossy(text).replace("\r\n", "\n").replace("\n ", "");
    let field = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| *key == name).map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
    };
    let group = field("Implementation-Vendor-Id")?;
    let file = path.rsplit('/').next().unwrap_or(path);
    let version = field("Implementation-Version").or_else(|| field("Bundle-Version"))?;
    let stem = file.trim_end_matches(".jar");
    let name = stem.strip_suffix(version).map_or(stem, |name| name.trim_end_matches('-'));
    let mut package = Package::new(Ecosystem::Maven, name, version, path);
    group.clone_into(&mut package.namespace);
    Some(package)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_inside_archives_count() {
        let notes = |name: &str| format!("#x\nversion=1.{}\ngroupId=org.e\nartifactId={name}\n", name.len());
        let inner = zip::archive(&[("META-INF/maven/org.e/in/pom.properties", notes("in").as_bytes())]);
        let plain = zip::archive(&[(
            "META-INF/MANIFEST.MF",
            b"Manifest-Version: 1.0\r\nImplementation-Version: 2.0\r\nImplementation-Vendor-Id: com.\r\n v\r\n",
        )]);
        let outer = zip::archive(&[
            ("META-INF/maven/org.e/outer/pom.properties", notes("outer").as_bytes()),
            ("BOOT-INF/lib/in.jar", &inner),
            ("BOOT-INF/lib/tool-2.0.jar", &plain),
            ("BOOT-INF/lib/broken.jar", b"PK"),
        ]);
        let found = packages(&outer.as_slice(), "app.jar");
        let urls: Vec<String> = found.iter().map(Package::purl).collect();
        assert_eq!(urls, ["pkg:maven/org.e/outer@1.5", "pkg:maven/org.e/in@1.2", "pkg:maven/com.v/tool@2.0"]);
        assert!(found[1].found.contains("app.jar!/BOOT-INF/lib/in.jar"));
    }
}
