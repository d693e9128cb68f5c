//! House rules that a machine can check: sizes, first lines, banned names and words, documented crates.

use std::path::{Path, PathBuf};

use crate::source::functions;

const MAX_FILE_LINES: usize = 600;
const MAX_FUNCTION_LINES: usize = 70;
/// Type names that say nothing about what the type is.
const BANNED_TYPE_WORDS: &[&str] = &["Manager", "Helper", "Util", "Utils", "Handler"];
/// Marks of unfinished work. Split, so that this file does not find itself.
const BANNED_MARKS: &[&str] = &[
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("FIX", "ME"),
    concat!("#[ig", "nore"),
    concat!("#[should", "_panic"),
];

/// Returns every breach of the rules in the checkout at `root`.
pub fn check(root: &Path) -> Vec<String> {
    let mut findings = Vec::new();
    for path in rust_files(root) {
        let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        match std::fs::read_to_string(&path) {
            Ok(text) => check_source(&name, &text, &mut findings),
            Err(e) => findings.push(format!("{name}: {e}")),
        }
    }
    check_architecture(root, &mut findings);
    findings
}

fn rust_files(root: &Path) -> Vec<PathBuf> {
    let mut pending = vec![root.join("crates"), root.join("xtask"), root.join("benches")];
    let mut files = Vec::new();
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                if path.file_name().is_some_and(|n| n != "target") {
                    pending.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn check_source(name: &str, text: &str, findings: &mut Vec<String>) {
    let lines = text.lines().count();
    if lines > MAX_FILE_LINES {
        findings.push(format!("{name}: {lines} lines, the limit is {MAX_FILE_LINES}: split it by noun"));
    }
    if !text.starts_with("//!") {
        findings.push(format!("{name}:1: a file begins with `//!` and what it is for"));
    }
    for function in functions(text).into_iter().filter(|f| f.length > MAX_FUNCTION_LINES) {
        findings.push(format!(
            "{name}:{}: function `{}` has {} lines, the limit is {MAX_FUNCTION_LINES}",
            function.line, function.name, function.length
        ));
    }
    for (index, line) in text.lines().enumerate() {
        for mark in BANNED_MARKS.iter().filter(|mark| line.contains(**mark)) {
            findings.push(format!("{name}:{}: `{mark}` is unfinished work or a test that does not run", index + 1));
        }
        if let Some(word) = banned_type(line) {
            findings.push(format!("{name}:{}: a type named `…{word}` says nothing of what it is", index + 1));
        }
    }
}

fn banned_type(line: &str) -> Option<&'static str> {
    let code = line.trim_start();
    let code = code.strip_prefix("pub ").or_else(|| code.strip_prefix("pub(crate) ")).unwrap_or(code);
    let rest = ["struct ", "enum ", "trait ", "type "].iter().find_map(|keyword| code.strip_prefix(keyword))?;
    let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    BANNED_TYPE_WORDS.iter().copied().find(|word| name.ends_with(word))
}

/// Each crate has its section in ARCHITECTURE.md, with at least one invariant.
fn check_architecture(root: &Path, findings: &mut Vec<String>) {
    let text = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap_or_default();
    let sections: Vec<&str> = text.split("\n## ").collect();
    for entry in std::fs::read_dir(root.join("crates")).into_iter().flatten().flatten() {
        let role = entry.file_name().to_string_lossy().into_owned();
        match sections.iter().find(|section| section.starts_with(&format!("`{role}`"))) {
            None => findings.push(format!("ARCHITECTURE.md: no section `## `{role}``")),
            Some(section) if !section.contains("Invariant:") => {
                findings.push(format!("ARCHITECTURE.md: section `{role}` names no `Invariant:`"));
            }
            Some(_) => {}
        }
    }
}
