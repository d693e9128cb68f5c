//! The metadata of a state root in readable form, for when no engine uses it.

use std::fmt::Write;
use std::path::Path;

use kiln_store::{DumpedRow, Meta};

use crate::DaemonError;

/// The files that have metadata.
const FILES: [&str; 2] = ["meta.db", "history.db"];

/// Returns the rows of all tables, by file.
///
/// # Errors
/// A file cannot be read, or an engine uses it.
pub fn dump_metadata(root: &Path) -> Result<String, DaemonError> {
    let failed = |source| DaemonError::Start { what: "reading metadata", source };
    std::fs::read_dir(root).map_err(failed)?;
    let mut out = String::new();
    for path in FILES.map(|name| root.join(name)) {
        if !path.exists() {
            continue;
        }
        // Writing to a string does not fail.
        let _ = writeln!(out, "===== {} =====", path.display());
        let mut last = None;
        for DumpedRow { table, key, value } in Meta::dump(&path).map_err(failed)? {
            if last.as_ref() != Some(&table) {
                let _ = writeln!(out, "bucket {table:?}:");
            }
            let _ = writeln!(out, "  \"{}\": {}", key.escape_ascii(), shown(&value));
            last = Some(table);
        }
    }
    Ok(out)
}

/// Returns text as it is, and anything else with its bytes escaped.
fn shown(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) if !text.contains(char::is_control) => text.to_owned(),
        _ => value.escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_shown_by_table() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(dump_metadata(dir.path()).unwrap(), "");
        let store = kiln_store::Store::open(kiln_store::StoreConfig::new(dir.path())).unwrap();
        let log = store.repairs().clone();
        let meta = Meta::open(dir.path().join("history.db"), dir.path().join("damaged"), log);
        meta.table("things").put(b"a\x01", b"{\"n\":1}");
        meta.flush();
        drop((meta, store));
        let text = dump_metadata(dir.path()).unwrap();
        assert!(text.ends_with("bucket \"things\":\n  \"a\\x01\": {\"n\":1}\n"), "{text}");
        assert!(dump_metadata(&dir.path().join("none")).is_err());
    }
}
