//! What was asked of a frontend, as provenance tells it: without credentials, and without what belongs to the machine.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::capture::Capture;
use super::scope::{Asked, Scope};
use crate::build::BuildContext;

/// Options of a request that say nothing of what is built.
const HOST_OPTIONS: [&str; 4] = ["cgroup-parent", "image-resolve-mode", "platform", "cache-imports"];
/// Beginnings of more of these: what is attested, and how kiln's client wants the cache used.
const OWN_FAMILIES: [&str; 2] = ["attest:", "kiln:"];

/// A request in the words of a predicate.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Described {
    /// `uri`, `digest`, `path` of what the build was started from.
    pub config: Map<String, Value>,
    pub frontend: String,
    pub args: BTreeMap<String, String>,
    pub inputs: Map<String, Value>,
}

impl Described {
    /// Returns the request as JSON, `configSource` and `request`.
    pub fn to_json(&self) -> Value {
        json!({ "configSource": self.config, "request": self.request() })
    }

    /// Returns the part that names frontend and options.
    pub fn request(&self) -> Map<String, Value> {
        let mut request = Map::new();
        if !self.frontend.is_empty() {
            request.insert("frontend".into(), json!(self.frontend));
        }
        if !self.args.is_empty() {
            request.insert("args".into(), json!(self.args));
        }
        if !self.inputs.is_empty() {
            request.insert("inputs".into(), Value::Object(self.inputs.clone()));
        }
        request
    }
}

/// Describes a request; `capture` knows the digest of what it was started from.
pub fn describe(asked: &Asked, capture: &Capture) -> Described {
    let mut args = shown(&asked.attrs);
    let given = |args: &BTreeMap<String, String>, key: &str| args.get(key).is_some_and(|v| !v.is_empty());
    let key = match args.get("contextkey").filter(|v| !v.is_empty()) {
        Some(key) => key.clone(),
        None if given(&args, "input:context") => "input:context".to_owned(),
        None => "context".to_owned(),
    };
    let mut config = Map::new();
    if given(&args, &key)
        && let Some(context) = args.remove(&key)
    {
        match material(capture, &context) {
            Some((uri, digest)) => {
                config.insert("uri".into(), json!(redacted(&uri)));
                config.insert("digest".into(), digest);
            }
            None => drop(config.insert("uri".into(), json!(redacted(&context)))),
        }
    }
    if given(&args, "filename")
        && let Some(path) = args.remove("filename")
    {
        config.insert("path".into(), json!(path));
    }
    Described { config, frontend: asked.frontend.clone(), args, inputs: Map::new() }
}

/// Describes a request with the requests that made its inputs, `depth` of them behind each other at most.
pub fn with_inputs(
    asked: &Asked,
    capture: &Capture,
    all: &Arc<Scope>,
    build: &BuildContext,
    depth: usize,
) -> Described {
    let mut described = describe(asked, capture);
    if depth == 0 {
        return described;
    }
    for (name, definition) in &asked.inputs {
        let producers = all.producers(definition);
        let made = producers.iter().filter_map(|(scope, reference)| {
            // A request that solves what it was given has not made it.
            let maker = scope.asked.as_ref().filter(|maker| !std::ptr::eq(*maker, asked))?;
            let capture = Capture::of(reference.graph(), build);
            Some(with_inputs(maker, &capture, all, build, depth - 1).to_json())
        });
        let mut made: Vec<Value> = made.collect();
        made.dedup();
        // Where several requests made the same graph nobody can tell which one is meant.
        if let [one] = &made[..] {
            described.inputs.insert(name.clone(), one.clone());
        }
    }
    described
}

/// Returns the options that may be shown.
fn shown(attrs: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let key = attrs.get("contextkey").filter(|v| !v.is_empty()).map_or("context", String::as_str);
    let hidden = |k: &str| HOST_OPTIONS.contains(&k) || OWN_FAMILIES.iter().any(|family| k.starts_with(family));
    attrs
        .iter()
        .filter(|(k, _)| !hidden(k))
        .map(|(k, v)| {
            let is_context = k == key || k.starts_with("context:");
            (k.clone(), if is_context { redacted(v) } else { v.clone() })
        })
        .collect()
}

/// Finds what a context's address led to.
fn material(capture: &Capture, address: &str) -> Option<(String, Value)> {
    let (base, fragment) = address.split_once('#').unwrap_or((address, ""));
    let reference = fragment.split(':').next().unwrap_or_default();
    let url = if reference.is_empty() { base.to_owned() } else { format!("{base}#{reference}") };
    if let Some(git) = capture.git.iter().find(|git| git.url == redacted(&url)) {
        return Some((address.to_owned(), commit(&git.commit)));
    }
    let http = capture.http.iter().find(|http| http.url == redacted(address))?;
    Some((http.url.clone(), json!({ "sha256": http.digest.hex() })))
}

/// Returns the digest set of a commit.
pub fn commit(commit: &str) -> Value {
    if commit.len() == 64 { json!({ "sha256": commit }) } else { json!({ "sha1": commit }) }
}

/// Returns an address without the credentials in it.
pub fn redacted(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let Some(at) = rest[..end].rfind('@') else { return address.to_owned() };
    let hidden = if rest[..at].contains(':') { "xxxxx:xxxxx" } else { "xxxxx" };
    format!("{scheme}://{hidden}{}", &rest[at..])
}

#[cfg(test)]
mod tests {
    use super::super::capture::GitMaterial;
    use super::*;

    fn asked(attrs: &[(&str, &str)]) -> Asked {
        Asked {
            frontend: "dockerfile.v0".into(),
            attrs: attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..Asked::default()
        }
    }

    #[test]
    fn no_address_shows_a_password() {
        for (from, to) in [
            ("https://me:pw@h/x", "https://xxxxx:xxxxx@h/x"),
            ("https://token@h/x@y", "https://xxxxx@h/x@y"),
            ("https://h/x@y", "https://h/x@y"),
            ("dir@here", "dir@here"),
        ] {
            assert_eq!(redacted(from), to);
        }
    }

    #[test]
    fn what_a_build_starts_from_is_named_with_its_commit() {
        let capture = Capture {
            git: vec![GitMaterial { url: "https://h/r.git#v1".into(), commit: "ab".into(), bundle: None }],
            ..Capture::default()
        };
        let files = [("context", "https://h/r.git#v1:sub"), ("filename", "D")];
        let hidden = [("platform", "x"), ("attest:sbom", ""), ("kiln:max-age", "60")];
        let described = describe(&asked(&[&files[..], &hidden].concat()), &capture);
        assert_eq!(
            json!(described.config),
            json!({ "uri": "https://h/r.git#v1:sub", "digest": { "sha1": "ab" }, "path": "D" })
        );
        assert!(described.args.is_empty(), "{:?}", described.args);
    }
}
