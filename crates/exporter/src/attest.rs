//! Attestations: in-toto statements about an image, and the manifest that carries them beside it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bytes::Bytes;
use kiln_oci::{
    Annotations, Descriptor, DiffId, ImageConfig, Manifest, Platform, Reference, RootFs, media, to_ordered_json,
};
use kiln_stdx::Digest;
use kiln_stdx::percent::escape;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::error::{ExportError, Result};
use crate::image_config::compact;

/// Largest predicate in bytes, as other builders have it.
const PREDICATE_MAX: usize = 40 << 20;
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE_KEY: &str = "in-toto.io/predicate-type";
const REFERENCE_TYPE_KEY: &str = "vnd.docker.reference.type";
const REFERENCE_TYPE: &str = "attestation-manifest";
const REFERENCE_DIGEST_KEY: &str = "vnd.docker.reference.digest";

/// Something attested about one platform's result.
#[derive(Debug, Clone)]
pub struct Attestation {
    /// File name for outputs that are files: `provenance.json`.
    pub path: String,
    pub predicate_type: String,
    /// The predicate's JSON.
    pub predicate: Bytes,
    /// What it is about; empty means the result itself.
    pub subjects: Vec<AttestedSubject>,
    /// For the build history only, unless an exporter is told otherwise.
    pub inline_only: bool,
    /// It is an SBOM of the result itself: in images, the files that it lists are told with their layers.
    pub sbom_core: bool,
}

/// What an attestation is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttestedSubject {
    /// The result, perhaps under one more name.
    Itself { name: String },
    /// Something else.
    Other { name: String, digests: Vec<Digest> },
}

/// A name and digests in a statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) digest: BTreeMap<&'static str, String>,
}

impl Subject {
    pub(crate) fn new(name: impl Into<String>, digest: &Digest) -> Self {
        Self { name: name.into(), digest: BTreeMap::from([("sha256", digest.hex())]) }
    }
}

#[derive(Serialize)]
struct Statement<'a> {
    #[serde(rename = "_type")]
    kind: &'static str,
    #[serde(rename = "predicateType")]
    predicate_type: &'a str,
    subject: Vec<Subject>,
    predicate: &'a RawValue,
}

/// Returns the attestations that leave the engine.
pub(crate) fn outgoing(attestations: &[Attestation], inline_too: bool) -> Vec<&Attestation> {
    attestations.iter().filter(|a| inline_too || !a.inline_only).collect()
}

/// Returns the statement of `attestation` as JSON; `itself` is the result under each of its names.
pub(crate) fn statement(attestation: &Attestation, itself: &[Subject], pretty: bool) -> Result<Vec<u8>> {
    let bad = |why: String| ExportError::Unsupported(format!("attestation `{}`: {why}", attestation.path));
    if attestation.predicate.len() > PREDICATE_MAX {
        return Err(bad(format!("it exceeds {PREDICATE_MAX} bytes")));
    }
    let predicate: &[u8] = if attestation.predicate.is_empty() { b"null" } else { &attestation.predicate };
    let predicate: Box<RawValue> = serde_json::from_slice(predicate).map_err(|e| bad(e.to_string()))?;
    let default = [AttestedSubject::Itself { name: String::new() }];
    let wanted = if attestation.subjects.is_empty() { &default[..] } else { &attestation.subjects };
    let mut subject = Vec::new();
    for want in wanted {
        match want {
            AttestedSubject::Itself { name } => {
                for own in itself {
                    subject.push(own.clone());
                    if !name.is_empty() && name != "_" {
                        subject.push(Subject { name: name.clone(), digest: own.digest.clone() });
                    }
                }
            }
            AttestedSubject::Other { name, digests } => {
                let name = if name.is_empty() { "_" } else { name };
                let digest = digests.iter().map(|d| ("sha256", d.hex())).collect();
                subject.push(Subject { name: name.to_owned(), digest });
            }
        }
    }
    let kind = STATEMENT_TYPE;
    let predicate_type = attestation.predicate_type.as_str();
    if pretty {
        // Through `Value`, since raw JSON is not indented again.
        let predicate: serde_json::Value = serde_json::from_str(predicate.get()).map_err(|e| bad(e.to_string()))?;
        let mut text = serde_json::to_vec_pretty(&serde_json::json!({
            "_type": kind, "predicateType": predicate_type, "subject": subject, "predicate": predicate,
        }))
        .map_err(|e| bad(e.to_string()))?;
        text.shrink_to_fit();
        return Ok(text);
    }
    let predicate = compact(&predicate)?;
    Ok(to_ordered_json("attestation", &Statement { kind, predicate_type, subject, predicate: &predicate })?)
}

/// A manifest of statements with all that it refers to.
pub(crate) struct AttestationManifest {
    /// With the annotations and the platform of its place in the index.
    pub(crate) descriptor: Descriptor,
    pub(crate) bytes: Vec<u8>,
    /// Config and statements.
    pub(crate) blobs: Vec<(Descriptor, Vec<u8>)>,
}

/// Returns the manifest that attests `target`.
pub(crate) fn manifest(
    target: &Descriptor,
    statements: Vec<(String, Vec<u8>)>,
    oci_types: bool,
    artifact: bool,
) -> Result<AttestationManifest> {
    let (manifest_type, config_type) = match oci_types {
        true => (media::OCI_MANIFEST, media::OCI_CONFIG),
        false => (media::DOCKER_MANIFEST, media::DOCKER_CONFIG),
    };
    let mut blobs = Vec::new();
    let mut layers = Vec::new();
    for (predicate_type, bytes) in statements {
        let mut layer = Descriptor::of(media::IN_TOTO, &bytes);
        if oci_types {
            layer.annotations.insert(PREDICATE_TYPE_KEY.to_owned(), predicate_type);
        }
        blobs.push((layer.clone(), bytes));
        layers.push(layer);
    }
    let (config, config_bytes) = match artifact {
        true => {
            let mut config = Descriptor::of(media::OCI_EMPTY, b"{}");
            config.data = Some("e30=".to_owned());
            (config, b"{}".to_vec())
        }
        false => {
            let bytes = config_of(&layers)?;
            (Descriptor::of(config_type, &bytes), bytes)
        }
    };
    blobs.push((Descriptor { data: None, ..config.clone() }, config_bytes));
    let mut manifest = Manifest::new(manifest_type, config, layers);
    if artifact {
        manifest.artifact_type = Some(media::ATTESTATION_MANIFEST.to_owned());
        manifest.subject = Some(Descriptor::new(&target.media_type, target.digest, target.size));
    }
    let bytes = manifest.to_manifest_json()?;
    let mut descriptor = Descriptor::of(manifest_type, &bytes);
    descriptor.platform = Some(unknown_platform());
    descriptor.annotations = Annotations::from([
        (REFERENCE_TYPE_KEY.to_owned(), REFERENCE_TYPE.to_owned()),
        (REFERENCE_DIGEST_KEY.to_owned(), target.digest.to_string()),
    ]);
    Ok(AttestationManifest { descriptor, bytes, blobs })
}

/// The platform that keeps attestations from being taken for images.
fn unknown_platform() -> Platform {
    Platform { os: "unknown".to_owned(), architecture: "unknown".to_owned(), ..Platform::default() }
}

fn config_of(layers: &[Descriptor]) -> Result<Vec<u8>> {
    let Platform { os, architecture, .. } = unknown_platform();
    let diff_ids = layers.iter().map(|l| DiffId(l.digest)).collect();
    let rootfs = RootFs { diff_ids, ..RootFs::default() };
    let config = ImageConfig { os, architecture, rootfs, ..ImageConfig::default() };
    Ok(to_ordered_json("attestation config", &config)?)
}

/// Returns the package URL of an image name (purl-spec, type `docker`).
pub fn package_url(reference: &Reference, platform: Option<&Platform>) -> String {
    let familiar = reference.familiar();
    let name = familiar.split('@').next().unwrap_or_default();
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    };
    let path: Vec<String> = name.split('/').map(|part| escape(part, b"")).collect();
    let mut url = format!("pkg:docker/{}", path.join("/"));
    if let Some(tag) = tag {
        let _ = write!(url, "@{}", escape(tag, b""));
    }
    let digest = reference.digest().map(|d| format!("digest={d}"));
    let platform = platform.map(|p| format!("platform={}", escape(&p.clone().normalize().to_string(), b":")));
    let qualifiers: Vec<String> = digest.into_iter().chain(platform).collect();
    if !qualifiers.is_empty() {
        let _ = write!(url, "?{}", qualifiers.join("&"));
    }
    url
}

/// Returns a package URL with further qualifiers, which come after its own in the alphabet.
pub fn qualified(url: &str, qualifiers: &[(&str, &str)]) -> String {
    let mut out = url.to_owned();
    for (key, value) in qualifiers {
        let joint = if out.contains('?') { '&' } else { '?' };
        let _ = write!(out, "{joint}{key}={}", escape(value, b":"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attestation(subjects: Vec<AttestedSubject>) -> Attestation {
        Attestation {
            path: "provenance.json".into(),
            predicate_type: "https://example.org/p".into(),
            predicate: Bytes::from_static(b"{ \"z\": 1, \"a\": \"<b>\" }"),
            subjects,
            inline_only: false,
            sbom_core: false,
        }
    }

    #[test]
    fn a_statement_is_about_the_result_by_default() {
        let digest = Digest::of("image");
        let itself = [Subject::new("pkg:docker/a@1", &digest)];
        let text = String::from_utf8(statement(&attestation(vec![]), &itself, false).unwrap()).unwrap();
        let want = format!(
            r#"{{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://example.org/p","subject":[{{"name":"pkg:docker/a@1","digest":{{"sha256":"{}"}}}}],"predicate":{{"z":1,"a":"\u003cb\u003e"}}}}"#,
            digest.hex()
        );
        assert_eq!(text, want);
    }

    #[test]
    fn other_subjects_and_further_names_are_listed() {
        let itself = [Subject::new("one", &Digest::of("1")), Subject::new("two", &Digest::of("1"))];
        let subjects = vec![
            AttestedSubject::Itself { name: "alias".into() },
            AttestedSubject::Other { name: String::new(), digests: vec![Digest::of("x")] },
        ];
        let text = statement(&attestation(subjects), &itself, true).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let names: Vec<_> = value["subject"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["one", "alias", "two", "alias", "_"]);
    }

    #[test]
    fn the_manifest_names_its_image_in_both_forms() {
        let target = Descriptor::of(media::OCI_MANIFEST, b"image");
        let statements = || vec![("https://example.org/p".to_owned(), b"{}".to_vec())];
        let artifact = manifest(&target, statements(), true, true).unwrap();
        let parsed = Manifest::from_json(&artifact.bytes).unwrap();
        assert_eq!(parsed.subject.unwrap().digest, target.digest);
        assert_eq!(parsed.config.media_type, media::OCI_EMPTY);
        assert_eq!(parsed.layers[0].annotations[PREDICATE_TYPE_KEY], "https://example.org/p");
        assert_eq!(artifact.descriptor.annotations[REFERENCE_DIGEST_KEY], target.digest.to_string());
        assert_eq!(artifact.descriptor.platform.unwrap().to_string(), "unknown/unknown");

        let image = manifest(&target, statements(), true, false).unwrap();
        let parsed = Manifest::from_json(&image.bytes).unwrap();
        let config = ImageConfig::from_json(&image.blobs.last().unwrap().1).unwrap();
        assert_eq!((parsed.subject, config.rootfs.diff_ids), (None, vec![DiffId(Digest::of("{}"))]));
    }

    #[test]
    fn package_urls_follow_the_familiar_name() {
        let digest = Digest::of("x");
        let amd64 = Platform::new("linux", "amd64", "");
        for (name, platform, want) in [
            ("alpine", None, "pkg:docker/alpine@latest".to_owned()),
            ("me/app:v2", Some(&amd64), "pkg:docker/me/app@v2?platform=linux%2Famd64".to_owned()),
            ("ghcr.io/a/b:1", None, "pkg:docker/ghcr.io/a/b@1".to_owned()),
            ("localhost:5000/a:1", None, "pkg:docker/localhost%3A5000/a@1".to_owned()),
            (&format!("a@{digest}"), None, format!("pkg:docker/a?digest={digest}")),
        ] {
            assert_eq!(package_url(&Reference::parse(name).unwrap(), platform), want);
        }
    }

    #[test]
    fn a_predicate_that_is_no_json_is_refused() {
        let mut bad = attestation(vec![]);
        bad.predicate = Bytes::from_static(b"{");
        assert!(statement(&bad, &[], false).unwrap_err().to_string().contains("provenance.json"));
    }
}
