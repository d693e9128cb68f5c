//! Attestations that a frontend hands back: files of results, brought into the form that outputs carry.

use std::collections::BTreeMap;

use bytes::Bytes;
use kiln_exporter::{Attestation, AttestedSubject};
use kiln_stdx::Digest;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::bridge::{Bridge, Ref};
use crate::error::EngineError;
use crate::inspect;

/// What a frontend attests of one platform's result.
#[derive(Clone)]
pub struct FrontendAttestation {
    pub kind: AttestationKind,
    /// Where the file or directory is; an empty file system without one.
    pub reference: Option<Ref>,
    pub path: String,
    /// For a single predicate: its type and what it is about.
    pub predicate_type: String,
    pub subjects: Vec<AttestedSubject>,
    /// `inline-only`, `reason`, …
    pub metadata: BTreeMap<String, Vec<u8>>,
}

/// What lies at the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttestationKind {
    /// A predicate.
    Predicate,
    /// A directory of whole statements.
    Bundle,
}

/// A statement in a bundle.
#[derive(Deserialize)]
struct Statement<'a> {
    #[serde(rename = "_type")]
    kind: String,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    #[serde(default)]
    subject: Option<Vec<Subject>>,
    #[serde(borrow)]
    predicate: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Subject {
    #[serde(default)]
    name: String,
    #[serde(default)]
    digest: BTreeMap<String, String>,
}

/// Reads what a frontend attests.
///
/// # Errors
/// A file that is missing, or no statement.
pub async fn read(bridge: &Bridge, attested: &FrontendAttestation) -> Result<Vec<Attestation>, EngineError> {
    let layers = match &attested.reference {
        Some(reference) => bridge.files(reference).await?,
        None => bridge.parts().store.scratch(),
    };
    let inline_only = attested.metadata.get("inline-only").is_some_and(|v| v == b"true");
    if attested.kind == AttestationKind::Predicate {
        let predicate = inspect::read_file(bridge.parts(), &layers, &attested.path, None).await?;
        return Ok(vec![Attestation {
            path: name(&attested.path),
            predicate_type: attested.predicate_type.clone(),
            predicate: Bytes::from(predicate),
            subjects: attested.subjects.clone(),
            inline_only,
            sbom_core: is_core(attested, &name(&attested.path)),
        }]);
    }
    let mut found = Vec::new();
    for entry in inspect::read_dir(&layers, &attested.path)? {
        let file = String::from_utf8_lossy(entry.name()).into_owned();
        let path = format!("{}/{file}", attested.path.trim_end_matches('/'));
        let json = inspect::read_file(bridge.parts(), &layers, &path, None).await?;
        let mut made = statement(&file, &json)?;
        if !attested.predicate_type.is_empty() && attested.predicate_type != made.predicate_type {
            return Err(EngineError::user(format!(
                "bundle entry {file} has predicate type {}, expected {}",
                made.predicate_type, attested.predicate_type
            )));
        }
        made.inline_only = inline_only;
        made.sbom_core = is_core(attested, &file);
        found.push(made);
    }
    // What is about the result itself goes first.
    found.sort_by_key(|attestation: &Attestation| !attestation.sbom_core);
    Ok(found)
}

/// Tells whether a file is a scan of the result itself.
fn is_core(attested: &FrontendAttestation, file: &str) -> bool {
    let stem = file.split('.').next().unwrap_or_default();
    attested.metadata.get(crate::sbom::CORE_KEY).is_some_and(|core| core == stem.as_bytes())
}

fn name(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

fn statement(file: &str, json: &[u8]) -> Result<Attestation, EngineError> {
    let bad = |why: String| EngineError::user(format!("attestation {file}: {why}"));
    let statement: Statement<'_> = serde_json::from_slice(json).map_err(|e| bad(e.to_string()))?;
    if !statement.kind.starts_with("https://in-toto.io/Statement/") {
        return Err(bad(format!("{:?} is no in-toto statement", statement.kind)));
    }
    let subject = |subject: &Subject| -> Result<AttestedSubject, EngineError> {
        let digest = |(kind, hex): (&String, &String)| -> Result<Digest, EngineError> {
            format!("{kind}:{hex}").parse().map_err(|e| bad(format!("{e}")))
        };
        let digests = subject.digest.iter().map(digest).collect::<Result<Vec<_>, _>>()?;
        Ok(match digests.is_empty() {
            true => AttestedSubject::Itself { name: subject.name.clone() },
            false => AttestedSubject::Other { name: subject.name.clone(), digests },
        })
    };
    Ok(Attestation {
        path: file.to_owned(),
        predicate_type: statement.predicate_type,
        predicate: Bytes::from(statement.predicate.map_or("null", RawValue::get).to_owned()),
        subjects: statement.subject.iter().flatten().map(subject).collect::<Result<_, _>>()?,
        inline_only: false,
        sbom_core: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_of_a_bundle_is_taken_apart() {
        let json = format!(
            r#"{{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"t","subject":[{{"name":"a","digest":{{"sha256":"{}"}}}},{{"name":"_"}}],"predicate":{{"x": 1}}}}"#,
            Digest::of("a").hex()
        );
        let made = statement("s.json", json.as_bytes()).unwrap();
        assert_eq!((made.predicate_type.as_str(), made.predicate.as_ref()), ("t", br#"{"x": 1}"#.as_slice()));
        assert_eq!(made.subjects[0], AttestedSubject::Other { name: "a".into(), digests: vec![Digest::of("a")] });
        assert_eq!(made.subjects[1], AttestedSubject::Itself { name: "_".into() });
    }

    #[test]
    fn what_is_no_statement_is_refused() {
        for json in ["{}", "[]", r#"{"_type":"x","predicateType":"t"}"#] {
            let error = statement("s.json", json.as_bytes()).unwrap_err();
            assert!(error.to_string().contains("s.json"), "{json}: {error}");
        }
    }
}
