//! Pages of the build checks, made from the table that the checks themselves are made from.

use std::fmt::Write as _;
use std::path::Path;

use kiln_dockerfile::lint::{RULES, Rule};

/// Folder of the pages, from the root of the repository.
const FOLDER: &str = "docs/checks";

/// Returns the pages: path from the root of the repository, and text.
pub fn pages() -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> =
        RULES.iter().map(|rule| (format!("{FOLDER}/{}.md", rule.file_stem()), page(rule))).collect();
    out.push((format!("{FOLDER}/README.md"), index()));
    out
}

fn index() -> String {
    let mut out = String::from(
        "# Build checks\n\n`kiln build --check .` looks for these without building. A check is switched off for a file by \
         `# check=skip=Name`\nat its top, for one instruction by the same comment above it, and for a build by\n\
         `--build-arg BUILDKIT_DOCKERFILE_CHECK=skip=Name`. With `error=true` a finding fails the build.\n\n\
         | check | finds |\n|---|---|\n",
    );
    for rule in RULES {
        let note = if rule.experimental { " (experimental)" } else { "" };
        let _ = writeln!(out, "| [{}]({}.md){note} | {} |", rule.name, rule.file_stem(), rule.description);
    }
    out
}

fn page(rule: &Rule) -> String {
    let mut out = format!("# {}\n\n{}.\n\n", rule.name, rule.description.trim_end_matches('.'));
    if rule.experimental {
        let _ = write!(out, "Experimental: it runs only with `# check=experimental={}`.\n\n", rule.name);
    }
    let _ = write!(out, "{}\n\n", rule.why);
    for (title, text) in [("Bad", rule.bad), ("Good", rule.good)] {
        let _ = write!(out, "{title}:\n\n```dockerfile\n{text}```\n\n");
    }
    let _ = writeln!(
        out,
        "Switch it off with `# check=skip={}` at the top of the file or above the instruction.",
        rule.name
    );
    out
}

/// Writes the pages.
///
/// # Errors
/// A file that cannot be written.
pub fn write(root: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(root.join(FOLDER))?;
    pages().iter().try_for_each(|(path, text)| std::fs::write(root.join(path), text))
}

/// Returns what is wrong with the pages in the repository.
pub fn check(root: &Path) -> Vec<String> {
    let pages = pages();
    let stale =
        pages.iter().filter(|(path, text)| std::fs::read_to_string(root.join(path)).ok().as_ref() != Some(text));
    let mut out: Vec<String> =
        stale.map(|(path, _)| format!("{path}: not what `cargo run -p xtask -- rules` writes")).collect();
    for entry in std::fs::read_dir(root.join(FOLDER)).into_iter().flatten().flatten() {
        let path = format!("{FOLDER}/{}", entry.file_name().to_string_lossy());
        if !pages.iter().any(|(known, _)| *known == path) {
            out.push(format!("{path}: the page of no check"));
        }
    }
    out
}
