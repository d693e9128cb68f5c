//! What advice is told of the build context: the files that the ignore file leaves in, and the texts of some.

use std::fs;
use std::path::Path;

use kiln_dockerfile::advice::ContextView;
use kiln_stdx::pattern::PatternMatcher;

use crate::build::context::Inputs;
use crate::error::{CliError, io_text};

/// Files at the root whose text says what a project is made of.
const TEXTS: [&str; 14] = [
    "package.json",
    "pyproject.toml",
    "composer.json",
    "Gemfile",
    "pom.xml",
    "settings.gradle",
    "settings.gradle.kts",
    "go.mod",
    "Cargo.toml",
    ".npmrc",
    ".yarnrc.yml",
    "pip.conf",
    "requirements.txt",
    "requirements-dev.txt",
];
/// Largest text that is read, in bytes.
const TEXT: u64 = 1 << 20;
/// Files that are looked at before the rest is left out.
const FILES: usize = 2_000_000;

/// Looks at the context. A context that is not a directory here is not known.
pub fn view(inputs: &Inputs, patterns: &[String]) -> Result<ContextView, CliError> {
    let Some(root) = inputs.dirs.get("context") else { return Ok(ContextView::default()) };
    let matcher = PatternMatcher::new(patterns).map_err(|e| CliError::user(format!("the ignore file: {e}")))?;
    let mut out = ContextView { known: true, ..ContextView::default() };
    walk(root, "", &matcher, &mut out)?;
    for name in TEXTS.iter().filter(|n| out.files.get(**n).is_some_and(|size| *size <= TEXT)) {
        if let Ok(text) = fs::read_to_string(root.join(name)) {
            out.texts.insert((*name).to_owned(), text);
        }
    }
    out.ignore = fs::read_to_string(root.join(".dockerignore")).unwrap_or_default();
    Ok(out)
}

fn walk(dir: &Path, prefix: &str, matcher: &PatternMatcher, out: &mut ContextView) -> Result<(), CliError> {
    let failed = |e: std::io::Error| CliError::environment(format!("cannot read {}: {}", dir.display(), io_text(&e)));
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // A name that is no text is in no Dockerfile either.
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        let Ok(kind) = entry.file_type() else { continue };
        let excluded = matcher.matches(path.as_bytes());
        if kind.is_dir() {
            if !excluded || matcher.has_negations() {
                walk(&entry.path(), &path, matcher, out)?;
            }
        } else if !excluded && out.files.len() < FILES {
            out.files.insert(path, entry.metadata().map_or(0, |m| m.len()));
        }
    }
    Ok(())
}
