//! A local directory in OCI layout, as named by `oci-layout://DIR[:TAG][@DIGEST]`.

use std::path::{Path, PathBuf};

use kiln_oci::{Descriptor, Index};
use kiln_stdx::Digest;

use crate::env::Env;
use crate::error::io_text;

/// Annotation that names an image in an index.
const NAME: &str = "org.opencontainers.image.ref.name";

/// Splits the text after the scheme, and finds the digest of the image. The error says what is missing, with the names
/// that are there.
pub fn resolve(text: &str, env: &Env) -> Result<(PathBuf, Digest), String> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|_| format!("invalid digest {digest}"))?)),
        None => (text, None),
    };
    let (dir, tag) = split_tag(rest, env);
    let path = env.cwd().join(dir);
    if !path.join("oci-layout").is_file() {
        return Err(format!("{dir} is not a directory in OCI layout"));
    }
    match digest {
        Some(digest) => Ok((path, digest)),
        None => Ok((path.clone(), find(&path, tag)?)),
    }
}

/// A path may hold a colon itself: what follows the last one is a tag only if the part before is a directory.
fn split_tag<'a>(text: &'a str, env: &Env) -> (&'a str, Option<&'a str>) {
    if env.cwd().join(text).is_dir() {
        return (text, None);
    }
    match text.rsplit_once(':') {
        Some((dir, tag)) if !tag.contains('/') => (dir, Some(tag)),
        _ => (text, None),
    }
}

/// Returns the digest of the image with a tag in the directory.
pub fn find_tag(dir: &Path, tag: &str) -> Result<Option<Digest>, String> {
    if !dir.join("oci-layout").is_file() {
        let name = dir.file_name().unwrap_or(dir.as_os_str());
        return Err(format!("{} is not a directory in OCI layout", name.to_string_lossy()));
    }
    Ok(index(dir)?.manifests.iter().find(|d| matches(d, tag)).map(|d| d.digest))
}

fn index(dir: &Path) -> Result<Index, String> {
    let file = dir.join("index.json");
    let data = std::fs::read(&file).map_err(|e| format!("cannot read {}: {}", file.display(), io_text(&e)))?;
    serde_json::from_slice(&data).map_err(|e| format!("{} is damaged: {e}", file.display()))
}

/// Finds an image by its tag (`latest` when not given); an index with a single image needs none.
fn find(path: &Path, tag: Option<&str>) -> Result<Digest, String> {
    let index = index(path)?;
    let wanted = tag.unwrap_or("latest");
    if let Some(found) = index.manifests.iter().find(|d| matches(d, wanted)) {
        return Ok(found.digest);
    }
    if let ([only], None) = (index.manifests.as_slice(), tag) {
        return Ok(only.digest);
    }
    let names: Vec<&str> = index.manifests.iter().filter_map(name_of).collect();
    if names.is_empty() {
        Err(format!("no image {wanted} in it"))
    } else {
        Err(format!("no image {wanted} in it, only {}", names.join(", ")))
    }
}

fn name_of(d: &Descriptor) -> Option<&str> {
    d.annotations.get(NAME).map(String::as_str)
}

/// An image may be named by its bare tag or by a full reference with that tag.
fn matches(d: &Descriptor, tag: &str) -> bool {
    name_of(d).is_some_and(|n| n == tag || n.rsplit_once(':').is_some_and(|(_, t)| t == tag && !t.contains('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(dir: &Path, entries: &[(&str, u8)]) {
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("write");
        let manifests: Vec<serde_json::Value> = entries
            .iter()
            .map(|(name, n)| {
                serde_json::json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 2,
                    "digest": Digest::of([*n]).to_string(), "annotations": {NAME: name}})
            })
            .collect();
        let index = serde_json::json!({"schemaVersion": 2, "manifests": manifests});
        std::fs::write(dir.join("index.json"), index.to_string()).expect("write");
    }

    #[test]
    fn tags_and_digests() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let home = dir.path().join("l:x");
        std::fs::create_dir(&home).expect("mkdir");
        layout(&home, &[("latest", 1), ("docker.io/library/app:v2", 2)]);
        let env = Env::of(&[], dir.path());
        let run = |text: &str| resolve(text, &env).map(|(_, digest)| digest);
        assert_eq!(run("l:x"), Ok(Digest::of([1])));
        assert_eq!(run("l:x:v2"), Ok(Digest::of([2])));
        assert_eq!(run(&format!("l:x@{}", Digest::of([9]))), Ok(Digest::of([9])));
        assert_eq!(run("l:x:v3"), Err("no image v3 in it, only latest, docker.io/library/app:v2".to_owned()));
        assert_eq!(run("other"), Err("other is not a directory in OCI layout".to_owned()));
        assert_eq!(run("l:x@sha256:12"), Err("invalid digest sha256:12".to_owned()));
    }

    #[test]
    fn a_single_image_needs_no_tag() {
        let dir = tempfile::tempdir().expect("temporary directory");
        layout(dir.path(), &[("base", 7)]);
        let env = Env::of(&[], dir.path());
        let text = dir.path().to_string_lossy().into_owned();
        assert_eq!(resolve(&text, &env).map(|(_, d)| d), Ok(Digest::of([7])));
        assert!(resolve(&format!("{text}:nope"), &env).is_err());
    }
}
