//! What is left of a build for the caller: image id, metadata file, updated indexes.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kiln_session::client::{IndexName, LayoutStore};
use kiln_session::progress::WarningProgress;
use serde_json::{Map, Value};

use super::local_cache::{MOUNTS, Update};
use super::output::{Dest, Output};
use super::write::atomically;
use crate::error::{CliError, io_text};

/// Values an engine answers with.
pub type Response = BTreeMap<String, String>;

/// Returns the image id: the digest of the config, or of the manifest where there is only that.
pub fn image_id(response: &Response) -> Option<&str> {
    let id = response.get("containerimage.config.digest").or_else(|| response.get("containerimage.digest"));
    id.map(String::as_str).filter(|id| !id.is_empty())
}

/// Returns the JSON of the metadata file. Values that are base64 of a JSON object or a list of objects are shown as such.
pub fn metadata(response: &Response, reference: &str, warnings: Option<&[WarningProgress]>) -> Value {
    let mut out = values(response);
    out.insert("buildx.build.ref".to_owned(), format!("default/default/{reference}").into());
    if let Some(warnings) = warnings.filter(|w| !w.is_empty()) {
        out.insert("buildx.build.warnings".to_owned(), serde_json::to_value(warnings).unwrap_or_default());
    }
    Value::Object(out)
}

/// Returns the values of an answer as JSON.
pub fn values(response: &Response) -> Map<String, Value> {
    response.iter().map(|(k, v)| (k.clone(), decoded(k, v))).collect()
}

/// Returns a value of the response as it is shown.
pub fn decoded(key: &str, value: &str) -> Value {
    let data = if key == "result.json" { Some(value.as_bytes().to_vec()) } else { BASE64_STANDARD.decode(value).ok() };
    let parsed: Option<Value> = data.and_then(|d| serde_json::from_slice(&d).ok());
    match parsed {
        Some(Value::Object(object)) if !object.is_empty() => Value::Object(object),
        Some(Value::Array(list)) if !list.is_empty() && list.iter().all(Value::is_object) => Value::Array(list),
        _ => value.into(),
    }
}

/// Writes the metadata file.
pub fn write_metadata(path: &Path, metadata: &Value) -> Result<(), CliError> {
    let text = serde_json::to_vec_pretty(metadata).map_err(|e| CliError::environment(e.to_string()))?;
    atomically(path, &text)
        .map_err(|e| CliError::environment(format!("writing metadata file {}: {}", path.display(), io_text(&e))))
}

/// Writes the image id file.
pub fn write_image_id(path: &Path, response: &Response) -> Result<(), CliError> {
    let id = image_id(response).unwrap_or_default();
    atomically(path, id.as_bytes())
        .map_err(|e| CliError::environment(format!("writing image ID file {}: {}", path.display(), io_text(&e))))
}

/// Enters what was written into the indexes of local caches and of image directories, and returns warnings. The index of a
/// cache that is damaged is begun anew; that of an image directory, which holds what cannot be built again, is an error.
pub fn update_indexes(response: &Response, caches: &[Update], outputs: &[Output]) -> Result<Vec<String>, CliError> {
    let mut warnings = Vec::new();
    let failed =
        |dir: &Path, why: String| CliError::environment(format!("updating the index of {}: {why}", dir.display()));
    let put = |dir: &Path, json: &[u8], names: &[IndexName]| {
        let descriptor: Value = serde_json::from_slice(json).map_err(|e| failed(dir, e.to_string()))?;
        let store = LayoutStore::create(dir).map_err(|e| failed(dir, e.to_string()))?;
        store.put(&descriptor, names).map_err(|e| failed(dir, e.to_string()))
    };
    if let Some(json) = response.get("cache.manifest").filter(|t| !t.is_empty()) {
        for update in caches {
            let renewed = LayoutStore::create(&update.dir).and_then(|store| store.renew_index());
            if let Some(aside) = renewed.map_err(|e| failed(&update.dir, e.to_string()))? {
                let dir = update.dir.display();
                warnings.push(format!(
                    "the index of {dir} was damaged, and is begun anew; it is kept in {}",
                    aside.display()
                ));
            }
            put(&update.dir, json.as_bytes(), &[IndexName::Tag(update.tag.clone())])?;
        }
    }
    for update in caches {
        if let Some(json) = update.mounts.as_ref().and_then(|name| response.get(name)) {
            put(&update.dir, json.as_bytes(), &[IndexName::Tag(format!("{}{MOUNTS}", update.tag))])?;
        }
    }
    let Some(encoded) = response.get("containerimage.descriptor") else { return Ok(warnings) };
    for output in outputs {
        let Dest::Layout(dir) = &output.dest else { continue };
        let json = BASE64_STANDARD.decode(encoded).map_err(|e| failed(dir, e.to_string()))?;
        let names: Vec<IndexName> = match response.get("image.name").filter(|n| !n.is_empty()) {
            Some(names) => names.split(',').map(|n| IndexName::Name(n.to_owned())).collect(),
            None => vec![IndexName::Tag("latest".to_owned())],
        };
        put(dir, &json, &names)?;
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use kiln_stdx::Digest;

    use super::*;

    fn response(pairs: &[(&str, &str)]) -> Response {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn ids() {
        assert_eq!(image_id(&response(&[])), None);
        assert_eq!(image_id(&response(&[("containerimage.digest", "m")])), Some("m"));
        let both = response(&[("containerimage.digest", "m"), ("containerimage.config.digest", "c")]);
        assert_eq!(image_id(&both), Some("c"));
    }

    #[test]
    fn the_metadata_file() {
        let descriptor = BASE64_STANDARD.encode(r#"{"size":7}"#);
        let got = metadata(
            &response(&[
                ("containerimage.descriptor", &descriptor),
                ("containerimage.digest", "sha256:00"),
                ("image.name", "abcd"),
                ("result.json", r#"[{"a":1}]"#),
            ]),
            "r1",
            None,
        );
        let want = serde_json::json!({
            "buildx.build.ref": "default/default/r1",
            "containerimage.descriptor": {"size": 7},
            "containerimage.digest": "sha256:00",
            "image.name": "abcd",
            "result.json": [{"a": 1}],
        });
        assert_eq!(got, want);
        let dir = tempfile::tempdir().expect("temporary directory");
        write_metadata(&dir.path().join("m.json"), &got).expect("write");
        let text = std::fs::read_to_string(dir.path().join("m.json")).expect("read");
        assert!(text.starts_with("{\n  \"buildx.build.ref\": \"default/default/r1\",\n"), "{text}");
    }

    #[test]
    fn indexes_name_what_was_written() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let json = serde_json::json!({"mediaType": "x", "digest": Digest::of(b"m").to_string(), "size": 1}).to_string();
        let mounts = json.replace(&Digest::of(b"m").to_string(), &Digest::of(b"other").to_string());
        let output = Output { kind: "oci".into(), attrs: BTreeMap::new(), dest: Dest::Layout(dir.path().join("out")) };
        let update = Update {
            dir: dir.path().join("cache"),
            tag: "t".into(),
            reset: false,
            mounts: Some("kiln.mounts:cache".into()),
        };
        let answer = response(&[
            ("cache.manifest", &json),
            ("kiln.mounts:cache", &mounts),
            ("containerimage.descriptor", &BASE64_STANDARD.encode(&json)),
            ("image.name", "docker.io/library/a:1,docker.io/library/b:2"),
        ]);
        let update = || update_indexes(&answer, std::slice::from_ref(&update), std::slice::from_ref(&output));
        assert_eq!(update().expect("update"), [""; 0]);
        let count = |d: &str| {
            let store = LayoutStore::open(&dir.path().join(d)).expect("layout");
            store.index().expect("index")["manifests"].as_array().map(Vec::len)
        };
        assert_eq!((count("cache"), count("out")), (Some(2), Some(2)));

        // A cache's index that nobody can read is begun anew, an image directory's is left as it is.
        std::fs::write(dir.path().join("cache/index.json"), "{").expect("damage");
        assert_eq!(update().expect("update").len(), 1);
        assert_eq!(count("cache"), Some(2));
        assert_eq!(std::fs::read_to_string(dir.path().join("cache/index.json.damaged")).expect("aside"), "{");
        std::fs::write(dir.path().join("out/index.json"), "{").expect("damage");
        assert!(update().is_err());
        assert_eq!(std::fs::read_to_string(dir.path().join("out/index.json")).expect("index"), "{");
    }
}
