//! An image as text: what two builders should agree on, and nothing that is each one's own.
//!
//! Times are shown where they lie in the past, which only a rule can have done: those of copied files, of downloads, and
//! those that an epoch sets.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use kiln_testkit::image::{File, Image};

use crate::Stand;
use crate::case::Case;

/// Times before this are those of a rule: 2015-01-01.
const PAST: u64 = 1_420_070_400;

/// Describes config and files of an image; files of the base that stayed as they were are left out.
pub fn summary(stand: &Stand, case: &Case, image: &Image) -> String {
    let mut out = String::new();
    config(&mut out, image, case.options().any(|(k, _)| k == "platform"));
    let _ = writeln!(out, "layers {}", image.layers.len());
    files(&mut out, &stand.images.root, &image.root(), case.options().any(|(k, _)| k == "no-base"));
    out
}

fn config(out: &mut String, image: &Image, platform: bool) {
    let raw = &image.blobs[&image.config_digest];
    let all: serde_json::Value = serde_json::from_slice(raw).expect("config");
    let field = |out: &mut String, name: &str, value: &serde_json::Value| {
        let empty = value.is_null() || value == &serde_json::json!({}) || value == &serde_json::json!([]);
        if !empty && value != "" && value != false {
            let _ = writeln!(out, "{name} {value}");
        }
    };
    let objects = serde_json::Map::new();
    for (name, value) in all["config"].as_object().unwrap_or(&objects) {
        field(out, name, value);
    }
    let known = ["config", "rootfs", "history", "os", "architecture", "created", "variant"];
    for (name, value) in all.as_object().unwrap_or(&objects) {
        let created = name == "created" && value.as_str().is_some_and(|t| t < "2015");
        let of_platform = platform && matches!(name.as_str(), "os" | "architecture" | "variant");
        if created || of_platform || !known.contains(&name.as_str()) {
            field(out, name, value);
        }
    }
    for entry in all["history"].as_array().into_iter().flatten() {
        let empty = if entry["empty_layer"] == true { "empty " } else { "" };
        let created = entry["created"].as_str().filter(|t| *t < "2015").unwrap_or("");
        let comment = entry["comment"].as_str().unwrap_or("");
        let text = entry["created_by"].as_str().unwrap_or("");
        let _ = writeln!(out, "history {empty}{text:?} {comment} {created}");
    }
}

fn files(out: &mut String, base: &BTreeMap<Vec<u8>, File>, root: &BTreeMap<Vec<u8>, File>, no_base: bool) {
    let groups = groups(root);
    for (path, file) in root {
        if base.get(path).is_some_and(|b| same(b, file)) {
            continue;
        }
        let name = String::from_utf8_lossy(path);
        let (first, file) = match groups.get(path) {
            Some(first) => (Some(first).filter(|f| *f != path), resolve(root, file)),
            None => (None, file),
        };
        let kind = match file.kind {
            b'5' => "dir",
            b'2' => "link",
            b'6' => "fifo",
            b'3' => "char",
            b'4' => "block",
            _ => "file",
        };
        let _ = write!(out, "{name:?} {kind}");
        if kind != "link" {
            let _ = write!(out, " {:04o}", file.mode);
        }
        let _ = write!(out, " {}:{}", file.uid, file.gid);
        // Directories have the time of whatever was last done in them, also on the way here.
        if file.mtime < PAST && kind != "dir" {
            let _ = write!(out, " @{}", file.mtime);
        }
        match kind {
            "link" => drop(write!(out, " -> {:?}", String::from_utf8_lossy(&file.link))),
            "file" => drop(write!(out, " {}", content(&file.content))),
            _ => {}
        }
        for (name, value) in &file.xattrs {
            let _ = write!(out, " {name}={:?}", String::from_utf8_lossy(value));
        }
        if let Some(first) = first {
            let _ = write!(out, " linked with {:?}", String::from_utf8_lossy(first));
        }
        out.push('\n');
    }
    if !no_base {
        for path in base.keys().filter(|p| !root.contains_key(*p)) {
            let _ = writeln!(out, "{:?} gone", String::from_utf8_lossy(path));
        }
    }
}

/// Tells whether a file is as in the base. Directories have the time of whatever was last done in them.
fn same(base: &File, file: &File) -> bool {
    if base.kind == b'5' {
        return *base == File { mtime: base.mtime, ..file.clone() };
    }
    base == file
}

/// Follows hard links to the entry with the content.
fn resolve<'a>(root: &'a BTreeMap<Vec<u8>, File>, file: &'a File) -> &'a File {
    let mut file = file;
    for _ in 0..40 {
        if file.kind != b'1' {
            break;
        }
        match root.get(file.link.strip_prefix(b"./").unwrap_or(&file.link)) {
            Some(next) => file = next,
            None => break,
        }
    }
    file
}

/// Returns for every name of a file with several names the first of them: which of them an archive calls the link is
/// its writer's choice.
fn groups(root: &BTreeMap<Vec<u8>, File>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut by_target: BTreeMap<*const File, Vec<&Vec<u8>>> = BTreeMap::new();
    for (path, file) in root {
        by_target.entry(std::ptr::from_ref(resolve(root, file))).or_default().push(path);
    }
    let mut out = BTreeMap::new();
    for paths in by_target.values().filter(|p| p.len() > 1) {
        for path in paths {
            out.insert((*path).clone(), paths[0].clone());
        }
    }
    out
}

fn content(data: &[u8]) -> String {
    match std::str::from_utf8(data) {
        Ok(text) if text.len() <= 400 && !text.contains('\0') => format!("{text:?}"),
        _ => format!("{} bytes {}", data.len(), &kiln_stdx::Digest::of(data).hex()[..16]),
    }
}
