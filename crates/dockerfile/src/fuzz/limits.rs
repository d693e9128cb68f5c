//! Files far larger or stranger than anybody writes: each ends in a result or an error.

use super::lowering::build;
use crate::{BuildOptions, parse};

/// Compiles a file; returns the first error.
fn compile(text: &str) -> Result<(), String> {
    let options = BuildOptions::default();
    let result = parse("Dockerfile", text.as_bytes()).and_then(|file| build(&file, &options, b"{}"));
    result.map(drop).map_err(|e| e.to_string())
}

#[test]
fn large_files_end() {
    let lines = "RUN true\n".repeat(50_000);
    assert!(compile(&format!("FROM scratch AS x\n{lines}")).is_ok());
    // A graph has a limit, and a file that goes beyond it an error.
    assert!(compile(&format!("FROM scratch AS x\n{lines}{lines}RUN true\n")).is_err());
    assert!(compile("FROM a AS b\nCOPY --from=c / /\nFROM b AS c\nCOPY --from=b / /\n").is_err());
    assert!(compile(&"COPI a\n".repeat(20_000)).is_err());
}
