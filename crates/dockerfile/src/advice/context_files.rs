//! What is in the build context and has no place in it: folders that tools make, caches, secrets. Only looked for where
//! a stage copies the whole context.

use std::collections::{BTreeMap, BTreeSet};

use super::reader::Reader;
use super::{Advice, Edit, Topic};
use crate::source::Lines;

/// Large folders.
pub(super) const FOLDERS: Topic =
    Topic { name: "ignored-worthy", title: "large folders in the context that an ignore file should name" };
/// Secrets and caches.
pub(super) const SECRETS: Topic =
    Topic { name: "secret-in-context", title: "a secret file or a cache export folder is inside the context" };

/// Folders that hold what tools made.
const MADE: [&str; 22] = [
    ".git",
    ".hg",
    ".svn",
    "node_modules",
    "target",
    ".venv",
    "venv",
    "__pycache__",
    ".gradle",
    ".next",
    ".nuxt",
    ".terraform",
    ".tox",
    ".mypy_cache",
    ".pytest_cache",
    ".cache",
    "coverage",
    ".idea",
    "bower_components",
    ".yarn",
    "DerivedData",
    ".parcel-cache",
];
/// Bytes from which a folder is worth a line.
const LARGE: u64 = 1 << 20;

pub(super) fn check(reader: &Reader<'_>, out: &mut Vec<Advice>) {
    let copies = reader.file.stages.iter().flat_map(|s| &s.instructions).find(|i| Reader::copies_all(i).is_some());
    let (Some(copy), true) = (copies, reader.context.known) else { return };
    folders(reader, copy.lines, out);
    caches(reader, copy.lines, out);
    secrets(reader, copy.lines, out);
}

fn folders(reader: &Reader<'_>, lines: Lines, out: &mut Vec<Advice>) {
    let mut sizes: BTreeMap<&str, u64> = BTreeMap::new();
    for (path, size) in &reader.context.files {
        let mut end = 0;
        for part in path.split('/') {
            end += part.len();
            if MADE.contains(&part) && end < path.len() {
                *sizes.entry(&path[..end]).or_default() += size;
                break;
            }
            end += 1;
        }
    }
    let uses_git = reader.file.stages.iter().any(|s| {
        reader.steps(s).iter().any(|step| step.commands.iter().any(|c| c.first().is_some_and(|w| w == "git")))
    });
    for (path, size) in sizes.into_iter().filter(|(_, size)| *size >= LARGE) {
        let note = if path.ends_with(".git") { ", and every commit changes it" } else { "" };
        out.push(Advice {
            topic: &FOLDERS,
            lines,
            reason: format!("{path} ({}) is sent with the context and copied into the image{note}", bytes(size)),
            edits: vec![Edit::ignore(reader.context, path)],
            ready: !(path == ".git" && uses_git),
        });
    }
}

/// An image layout with a cache in it, as `--cache-to type=local` writes.
fn caches(reader: &Reader<'_>, lines: Lines, out: &mut Vec<Advice>) {
    let files = &reader.context.files;
    let mut seen = BTreeSet::new();
    for path in files.keys() {
        let Some((dir, _)) = path.split_once("/blobs/sha256/") else { continue };
        if seen.insert(dir) && files.contains_key(&format!("{dir}/index.json")) {
            out.push(Advice {
                topic: &SECRETS,
                lines,
                reason: format!(
                    "{dir} is an exported cache or image; each export changes the context, and with it every step after \
                     this one"
                ),
                edits: vec![Edit::ignore(reader.context, dir)],
                ready: true,
            });
        }
    }
}

fn secrets(reader: &Reader<'_>, lines: Lines, out: &mut Vec<Advice>) {
    for path in reader.context.files.keys() {
        let token = reader.context.texts.get(path).is_some_and(|t| t.contains("_authToken") || t.contains("_password"));
        if is_secret_file(path) || token {
            out.push(Advice {
                topic: &SECRETS,
                lines,
                reason: format!("{path} is copied into the image, where anyone who has the image can read it"),
                edits: vec![Edit::ignore(reader.context, path)],
                ready: !token,
            });
        }
    }
}

fn is_secret_file(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let example = ["example", "sample", "template", "dist", "test"].iter().any(|w| name.contains(w));
    let environment = name == ".env" || name.starts_with(".env.");
    let key =
        matches!(name, "id_rsa" | "id_dsa" | "id_ecdsa" | "id_ed25519" | ".netrc" | ".git-credentials" | ".pgpass")
            || [".key", ".p12", ".pfx", ".jks", ".keystore"].iter().any(|e| name.ends_with(e))
            || path.ends_with(".aws/credentials")
            || path.ends_with(".docker/config.json");
    (environment || key) && !example
}

fn bytes(size: u64) -> String {
    match size {
        s if s >= 1 << 30 => format!("{:.1} GiB", s as f64 / f64::from(1 << 30)),
        s => format!("{:.1} MiB", s as f64 / f64::from(1 << 20)),
    }
}
