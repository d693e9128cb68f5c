//! Crates of Rust: `Cargo.lock`, and the list that `cargo auditable` puts into programs.

use serde_json::Value;

use crate::package::{Ecosystem, Package};

/// Largest list of a program in bytes.
const LIST_MAX: u64 = 8 << 20;

/// Returns the crates of a lock file.
pub(crate) fn locked(text: &[u8], path: &str) -> Vec<Package> {
    let text = String::from_utf8_lossy(text);
    let Ok(table) = text.parse::<toml::Table>() else { return Vec::new() };
    let list = table.get("package").and_then(toml::Value::as_array);
    let package = |entry: &toml::Value| {
        let field = |name: &str| entry.get(name).and_then(toml::Value::as_str);
        // A crate without a source is the one that is built, which is no less in the result.
        Some(Package::new(Ecosystem::Cargo, field("name")?, field("version")?, path))
    };
    list.into_iter().flatten().filter_map(package).collect()
}

/// Returns the crates of a program's list: compressed JSON. What was needed only to build is not in the program.
pub(crate) fn audited(section: &[u8], path: &str) -> Vec<Package> {
    let json = crate::bytes::inflated(flate2::read::ZlibDecoder::new(section), LIST_MAX);
    let json: Option<Value> = json.and_then(|json| serde_json::from_slice(&json).ok());
    let list = json.as_ref().and_then(|json| json.get("packages")).and_then(Value::as_array);
    let package = |entry: &Value| {
        let field = |name: &str| entry.get(name).and_then(Value::as_str);
        if field("kind") == Some("build") {
            return None;
        }
        Some(Package::new(Ecosystem::Cargo, field("name")?, field("version")?, path))
    };
    list.into_iter().flatten().filter_map(package).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn locks_list_every_crate() {
        let text = "version = 3\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = \"registry+x\"\n\n[[package]]\nname = \"b\"\n";
        let found = locked(text.as_bytes(), "src/Cargo.lock");
        assert_eq!(found.iter().map(Package::purl).collect::<Vec<_>>(), ["pkg:cargo/a@1.0.0"]);
        assert!(locked(b"[[", "p").is_empty());
    }

    #[test]
    fn programs_list_what_they_are_made_of() {
        let json = br#"{"packages":[{"name":"a","version":"1.0.0"},{"name":"cc","version":"1.0.1","kind":"build"}]}"#;
        let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(json).expect("pack");
        let found = audited(&packed.finish().expect("pack"), "bin/a");
        assert_eq!(found.iter().map(Package::purl).collect::<Vec<_>>(), ["pkg:cargo/a@1.0.0"]);
        assert!(audited(b"\x78\x9cgarbage", "p").is_empty());
    }
}
