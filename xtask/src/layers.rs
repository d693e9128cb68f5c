//! The allowed crate graph is data (`xtask/layers.toml`); this compares it with every `Cargo.toml`.
//!
//! A dependency that is not listed is an error, and so is a listed one that is gone: the file always says how it is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

/// What one crate may use.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layer {
    /// Crates of this workspace, by role (folder name).
    kiln: BTreeSet<String>,
    /// Crates from outside, each with the reason it is there.
    external: BTreeMap<String, String>,
    /// The same for tests and build scripts, where no reason is asked for.
    #[serde(default)]
    dev: BTreeSet<String>,
}

/// Returns every difference between `layers.toml` and the manifests below `root`.
pub fn check(root: &Path) -> Vec<String> {
    let mut findings = Vec::new();
    let text = std::fs::read_to_string(root.join("xtask/layers.toml")).unwrap_or_default();
    let layers: BTreeMap<String, Layer> = match toml::from_str(&text) {
        Ok(layers) => layers,
        Err(e) => return vec![format!("xtask/layers.toml: {e}")],
    };
    let mut roles: Vec<String> = std::fs::read_dir(root.join("crates"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    roles.sort();
    for role in &roles {
        match layers.get(role) {
            None => findings.push(format!("crates/{role}: no entry in xtask/layers.toml")),
            Some(layer) => check_crate(root, role, layer, &mut findings),
        }
    }
    findings.extend(
        layers.keys().filter(|role| !roles.contains(role)).map(|r| format!("xtask/layers.toml: no crate `{r}`")),
    );
    findings
}

fn check_crate(root: &Path, role: &str, layer: &Layer, findings: &mut Vec<String>) {
    let path = format!("crates/{role}/Cargo.toml");
    let manifest: toml::Table = match std::fs::read_to_string(root.join(&path)).unwrap_or_default().parse() {
        Ok(manifest) => manifest,
        Err(e) => return findings.push(format!("{path}: {e}")),
    };
    let names = |table: &str| -> BTreeSet<String> {
        manifest.get(table).and_then(|t| t.as_table()).into_iter().flat_map(|t| t.keys().cloned()).collect()
    };
    let (inside, outside): (BTreeSet<_>, BTreeSet<_>) =
        names("dependencies").into_iter().partition(|name| name.starts_with("kiln-"));
    let inside: BTreeSet<String> = inside.iter().map(|name| name.trim_start_matches("kiln-").to_owned()).collect();
    let listed: BTreeSet<String> = layer.external.keys().cloned().collect();
    compare(&path, "kiln crate", &inside, &layer.kiln, findings);
    compare(&path, "external crate", &outside, &listed, findings);
    let dev: BTreeSet<String> = names("dev-dependencies").union(&names("build-dependencies")).cloned().collect();
    compare(&path, "dev or build dependency", &dev, &layer.dev, findings);
    for (name, reason) in &layer.external {
        if reason.trim().is_empty() {
            findings.push(format!("xtask/layers.toml: {role}: `{name}` has no reason"));
        }
    }
}

fn compare(path: &str, what: &str, used: &BTreeSet<String>, allowed: &BTreeSet<String>, findings: &mut Vec<String>) {
    for name in used.difference(allowed) {
        findings.push(format!("{path}: {what} `{name}` is not allowed by xtask/layers.toml"));
    }
    for name in allowed.difference(used) {
        findings.push(format!("{path}: {what} `{name}` is listed in xtask/layers.toml but not used"));
    }
}
