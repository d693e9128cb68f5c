//! The table of the Dockerfile language: each feature with the case file that proves it, collected from the case files.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

/// The page, from the root of the repository.
const PAGE: &str = "docs/reference/dockerfile.md";
/// Where the cases are.
const CASES: &str = "crates/dockerfile/tests/cases";

const TITLES: [(&str, &str); 10] = [
    ("1.1", "Instructions and flags"),
    ("1.2", "Mounts of RUN"),
    ("1.3", "Directives and form of the file"),
    ("1.4", "Heredocs"),
    ("1.5", "Variables"),
    ("1.6", "Arguments with a meaning"),
    ("1.7", "Stages, image config and names"),
    ("1.8", "COPY and ADD"),
    ("1.9", "Contexts"),
    ("1.10", "Build checks"),
];

/// Returns the page's text.
///
/// # Errors
/// Case files that cannot be read.
pub fn page(root: &Path) -> std::io::Result<String> {
    let mut table: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    for folder in ["parse", "lower", "errors", "lint"] {
        let mut paths: Vec<_> =
            std::fs::read_dir(root.join(CASES).join(folder))?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
        paths.sort();
        for path in paths {
            let text = std::fs::read_to_string(&path)?;
            let name = format!("{folder}/{}", path.file_name().unwrap_or_default().to_string_lossy());
            for line in features(&text) {
                let Some((section, feature)) = line.split_once(' ') else { continue };
                table.entry(section.to_owned()).or_default().entry(feature.to_owned()).or_default().push(name.clone());
            }
        }
    }
    let mut out = String::from(
        "# The Dockerfile language: what is there, and which case proves it\n\n\
         A case is a file with a Dockerfile and what is expected of it: its tree, the graph in printed form with the image\n\
         config, or the errors. They lie in `crates/dockerfile/tests/cases` and run with\n\
         `cargo test -p kiln-dockerfile --test cases`. This page is written by `cargo run -p xtask -- features`.\n",
    );
    for (section, title) in TITLES {
        let Some(features) = table.get(section) else { continue };
        let _ = write!(out, "\n## {title}\n\n| feature | case |\n|---|---|\n");
        for (feature, cases) in features {
            let cases: Vec<String> = cases.iter().map(|c| format!("[{c}](../../{CASES}/{c})")).collect();
            let _ = writeln!(out, "| {} | {} |", feature.replace('|', "\\|"), cases.join(", "));
        }
    }
    Ok(out)
}

/// Returns the lines of the section `features`.
fn features(text: &str) -> impl Iterator<Item = &str> {
    let body = text.split("==== features\n").nth(1).unwrap_or_default();
    body.lines().take_while(|l| !l.starts_with("==== "))
}

/// Writes the page.
///
/// # Errors
/// A file that cannot be read or written.
pub fn write(root: &Path) -> std::io::Result<()> {
    let text = page(root)?;
    let path = root.join(PAGE);
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(path, text)
}

/// Returns what is wrong with the page in the repository.
pub fn check(root: &Path) -> Vec<String> {
    match page(root) {
        Err(error) => vec![format!("{CASES}: {error}")],
        Ok(text) if std::fs::read_to_string(root.join(PAGE)).ok().as_deref() == Some(&text) => Vec::new(),
        Ok(_) => vec![format!("{PAGE}: not what `cargo run -p xtask -- features` writes")],
    }
}
