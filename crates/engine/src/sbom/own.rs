//! The built-in scanner over the files of results: finds records in the tree, opens only those.

use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

use kiln_llb::Definition;
use kiln_llb::builder::{Builder, FileActions, FileOptions, Meta, Output};
use kiln_oci::Platform;
use kiln_sbom::{About, ReadAt, Record, Scanner};
use kiln_stdx::ErrorClass;
use kiln_store::ImmutableRef;
use serde_json::value::RawValue;

use super::{CORE, Target};
use crate::bridge::Bridge;
use crate::error::EngineError;

/// Any execute bit.
const EXECUTABLE: u32 = 0o111;

/// Builds and scans a target, and returns the graph of a directory that holds the statements.
///
/// # Errors
/// What is scanned cannot be built or read.
pub async fn graph(bridge: &Bridge, target: &Target) -> Result<Definition, EngineError> {
    let created = match target.epoch {
        Some(seconds) => SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0)),
        None => SystemTime::now(),
    };
    let created = crate::provenance::seconds(created);
    let mut files = FileActions::new();
    let extras = target.extras.iter().map(|(name, definition)| (format!("{CORE}-{name}"), definition));
    for (name, definition) in [(CORE.to_owned(), &target.core)].into_iter().chain(extras) {
        let reference = bridge.define(definition.clone()).await?;
        let layers = match &reference {
            Some(reference) => bridge.files(reference).await?,
            None => bridge.parts().store.scratch(),
        };
        let vertex = bridge.build().start(&format!("[{}] generating {name} using the built-in scanner", target.id));
        let path = format!("/{name}.spdx.json");
        let about = About { name, created: created.clone(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let made = bridge.parts().blocking(move || scan(&layers, &about)).await;
        vertex.end(made.as_ref().err().map(ToString::to_string));
        files = files.mkfile(&path, 0o644, made?, FileOptions::default());
    }
    let mut builder = Builder::new(Platform::host());
    let name = format!("[{}] keeping what the built-in scanner found", target.id);
    let output = builder.file(Output::SCRATCH, files, Meta::named(name));
    Ok(builder.definition(output)?)
}

/// Returns the statement of what is in a file system.
fn scan(layers: &ImmutableRef, about: &About) -> Result<Vec<u8>, EngineError> {
    let (tree, dirs) = (layers.tree()?, layers.dirs());
    let mut scanner = Scanner::default();
    for node in tree.iter().filter(|node| node.entry.is_file()) {
        let path = String::from_utf8_lossy(&node.entry.path);
        let Some(record) = Record::of(&path, node.entry.mode & EXECUTABLE != 0) else { continue };
        let Some(dir) = dirs.get(node.layer) else { continue };
        let file = File::open(dir.join(std::ffi::OsStr::from_bytes(&node.entry.path)))?;
        scanner.add(record, &path, &Opened { file, size: node.entry.size });
    }
    let (os, found) = scanner.finish();
    let document = kiln_sbom::document(about, &os, &found);
    statement(&document)
}

fn statement(document: &[u8]) -> Result<Vec<u8>, EngineError> {
    let predicate: &RawValue =
        serde_json::from_slice(document).map_err(|e| EngineError::from_error(ErrorClass::Bug, e))?;
    let statement = serde_json::json!({
        "_type": "https://in-toto.io/Statement/v1",
        "predicateType": kiln_sbom::PREDICATE_TYPE,
        "predicate": predicate,
    });
    Ok(statement.to_string().into_bytes())
}

/// A file of a layer.
struct Opened {
    file: File,
    size: u64,
}

impl ReadAt for Opened {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        // A length out of a damaged record must not become memory.
        if offset.checked_add(length as u64)? > self.size {
            return None;
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gives_no_more_than_it_has() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"abcdef", 0).unwrap();
        let opened = Opened { file, size: 6 };
        assert_eq!(opened.read_at(2, 3).as_deref(), Some(&b"cde"[..]));
        assert_eq!(opened.read_at(4, usize::MAX / 2), None);
        assert_eq!(opened.read_at(u64::MAX, 1), None);
    }

    #[test]
    fn a_statement_holds_the_document() {
        let made: serde_json::Value = serde_json::from_slice(&statement(br#"{"name":"x"}"#).unwrap()).unwrap();
        assert_eq!(made["predicate"]["name"], "x");
        assert_eq!(made["predicateType"], "https://spdx.dev/Document");
    }
}
