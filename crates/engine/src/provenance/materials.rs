//! What a result was made from, as a predicate lists it: by address and digest.

use kiln_exporter::{package_url, qualified};
use kiln_oci::Reference;
use serde_json::{Map, Value, json};

use super::capture::Capture;
use super::request::commit;
use super::scope::ImageSource;

/// Returns the materials: images, blobs, commits with the bundles they came in, files of the web.
pub fn materials(capture: &Capture) -> Vec<Value> {
    let mut materials: Vec<Value> = capture.images.iter().filter_map(|image| of_image(image, &[])).collect();
    materials.extend(capture.blobs.iter().filter_map(|blob| of_image(blob, &[("ref_type", "blob")])));
    for git in &capture.git {
        materials.push(json!({ "uri": git.url, "digest": commit(&git.commit) }));
        let qualifiers = [("ref_type", "bundle"), ("vcs_url", git.url.as_str())];
        materials.extend(git.bundle.as_ref().and_then(|bundle| of_image(bundle, &qualifiers)));
    }
    let web = capture.http.iter();
    materials.extend(web.map(|http| json!({ "uri": http.url, "digest": { "sha256": http.digest.hex() } })));
    materials
}

/// Returns an image by its package URL, or nothing where its name is none.
fn of_image(image: &ImageSource, qualifiers: &[(&str, &str)]) -> Option<Value> {
    let reference = Reference::parse(&image.name).ok()?;
    let mut uri = qualified(&package_url(&reference, image.platform.as_ref()), qualifiers);
    if image.local {
        uri = uri.replacen("pkg:docker/", "pkg:oci/", 1);
    }
    let mut material = Map::from_iter([("uri".to_owned(), json!(uri))]);
    if let Some(digest) = image.digest {
        material.insert("digest".into(), json!({ "sha256": digest.hex() }));
    }
    Some(Value::Object(material))
}

#[cfg(test)]
mod tests {
    use kiln_stdx::Digest;

    use super::super::capture::GitMaterial;
    use super::*;

    #[test]
    fn a_bundle_stands_beside_its_commit() {
        let digest = Digest::of("x");
        let source =
            |local| ImageSource { name: format!("r.test/a@{digest}"), platform: None, digest: Some(digest), local };
        let git = GitMaterial { url: "https://h/r#main".into(), commit: "c".repeat(40), bundle: Some(source(true)) };
        let capture = Capture { blobs: vec![source(false)], git: vec![git], ..Capture::default() };
        let uris: Vec<String> = materials(&capture).iter().map(|m| m["uri"].as_str().unwrap().to_owned()).collect();
        let want = [
            format!("pkg:docker/r.test/a?digest={digest}&ref_type=blob"),
            "https://h/r#main".to_owned(),
            format!("pkg:oci/r.test/a?digest={digest}&ref_type=bundle&vcs_url=https:%2F%2Fh%2Fr%23main"),
        ];
        assert_eq!(uris, want);
    }
}
