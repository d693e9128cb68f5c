//! SBOMs of images say which layer each file came with: scanners see one file system and cannot know.

use kiln_snapshot::Kind;
use kiln_stdx::Digest;
use kiln_store::ImmutableRef;
use serde_json::{Value, json};

use crate::error::Result;

/// Adds to an SPDX document, for each file that says nothing yet, the layer that it is in, and who added it. `layers` are
/// the digests of the blobs, bottom first. What is no such document stays as it is.
pub(crate) fn supplement(document: &[u8], reference: &ImmutableRef, layers: &[Digest]) -> Result<Option<Vec<u8>>> {
    let Ok(mut document) = serde_json::from_slice::<Value>(document) else { return Ok(None) };
    if !document.get("spdxVersion").is_some_and(Value::is_string) {
        return Ok(None);
    }
    let manifests = reference.manifests()?;
    let of_layer = |path: &str| {
        let path = path.trim_start_matches("./").trim_start_matches('/').as_bytes();
        // A file that is not there any more is told of all the same, with the layer that had it last.
        let holds = |at: &usize| manifests[*at].get(path).is_some_and(|entry| entry.kind != Kind::Whiteout);
        (0..manifests.len().min(layers.len())).rev().find(holds).map(|at| layers[at])
    };
    annotate(&mut document, of_layer);
    Ok(Some(document.to_string().into_bytes()))
}

fn annotate(document: &mut Value, of_layer: impl Fn(&str) -> Option<Digest>) {
    for file in document.get_mut("files").and_then(Value::as_array_mut).into_iter().flatten() {
        let said = file.get("comment").and_then(Value::as_str).is_some_and(|comment| !comment.is_empty());
        let layer = file.get("fileName").and_then(Value::as_str).filter(|_| !said).and_then(&of_layer);
        if let (Some(layer), Some(file)) = (layer, file.as_object_mut()) {
            file.insert("comment".to_owned(), json!(format!("layerID: {layer}")));
        }
    }
    let Some(document) = document.as_object_mut() else { return };
    let info = document.entry("creationInfo").or_insert_with(|| json!({}));
    let Some(info) = info.as_object_mut() else { return };
    let creators = info.entry("creators").or_insert_with(|| json!([]));
    let own = json!(format!("Tool: kiln-{}", env!("CARGO_PKG_VERSION")));
    if let Some(creators) = creators.as_array_mut().filter(|creators| !creators.contains(&own)) {
        creators.push(own);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_with_their_layers() {
        let mut document = json!({
            "spdxVersion": "SPDX-2.3",
            "files": [
                { "fileName": "/a" },
                { "fileName": "/b", "comment": "mine" },
                { "fileName": "/gone" },
                { "SPDXID": "SPDXRef-x" },
            ],
            "creationInfo": { "creators": ["Tool: scan-1"] },
        });
        let layer = Digest::of("layer");
        let of_layer = |path: &str| (path != "/gone").then_some(layer);
        annotate(&mut document, of_layer);
        annotate(&mut document, of_layer);
        assert_eq!(document["files"][0]["comment"], json!(format!("layerID: {layer}")));
        assert_eq!(document["files"][1]["comment"], json!("mine"));
        assert_eq!(document["files"][2].get("comment"), None);
        assert_eq!(document["creationInfo"]["creators"].as_array().map(Vec::len), Some(2));
    }
}
