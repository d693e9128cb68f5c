//! Attestations of frontends between the wire and the engine.

use kiln_engine::attest::{AttestationKind, FrontendAttestation};
use kiln_engine::source::attested;
use kiln_engine::source::lookup::ImageQuery;
use kiln_engine::{Bridge, Ref};
use kiln_exporter::AttestedSubject;
use kiln_session::proto::gateway as pb;
use kiln_stdx::Digest;
use tonic::Status;

use crate::convert;

/// Returns an attestation as the engine knows it.
///
/// # Errors
/// A malformed digest or an unknown kind.
pub fn from_wire(message: pb::Attestation, reference: Option<Ref>) -> Result<FrontendAttestation, Status> {
    let kind = match pb::AttestationKind::try_from(message.kind) {
        Ok(pb::AttestationKind::InToto) => AttestationKind::Predicate,
        Ok(pb::AttestationKind::Bundle) => AttestationKind::Bundle,
        Err(_) => return Err(Status::invalid_argument("unknown kind of attestation")),
    };
    let subject = |s: pb::InTotoSubject| match pb::InTotoSubjectKind::try_from(s.kind) {
        Ok(pb::InTotoSubjectKind::Self_) => Ok(AttestedSubject::Itself { name: s.name }),
        Ok(pb::InTotoSubjectKind::Raw) => {
            let digests = s.digest.iter().map(|d| d.parse()).collect::<Result<_, _>>();
            let digests = digests.map_err(|_| Status::invalid_argument("bad digest of an attestation's subject"))?;
            Ok(AttestedSubject::Other { name: s.name, digests })
        }
        Err(_) => Err(Status::invalid_argument("unknown kind of attestation subject")),
    };
    Ok(FrontendAttestation {
        kind,
        reference,
        path: message.path,
        predicate_type: message.in_toto_predicate_type,
        subjects: message.in_toto_subjects.into_iter().map(subject).collect::<Result<_, _>>()?,
        metadata: message.metadata.into_iter().map(|(k, v)| (k, v.to_vec())).collect(),
    })
}

/// Returns what is attested of an image, where the request asks for it.
///
/// # Errors
/// The image cannot be had.
pub async fn chain(
    bridge: &Bridge,
    query: ImageQuery<'_>,
    asked: &pb::ResolveSourceImageRequest,
) -> Result<Option<pb::AttestationChain>, Status> {
    if !asked.attestation_chain && asked.resolve_attestations.is_empty() {
        return Ok(None);
    }
    let found = attested::chain(bridge, query, &asked.resolve_attestations).await;
    let Some(found) = found.map_err(|e| convert::status(&e))? else { return Ok(None) };
    let text = |digest: Option<Digest>| digest.map(|d| d.to_string()).unwrap_or_default();
    let blob = |(descriptor, data): &(kiln_oci::Descriptor, Vec<u8>)| pb::Blob {
        descriptor: Some(pb::Descriptor {
            media_type: descriptor.media_type.clone(),
            digest: descriptor.digest.to_string(),
            size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
            annotations: descriptor.annotations.clone().into_iter().collect(),
        }),
        data: data.clone(),
    };
    Ok(Some(pb::AttestationChain {
        root: text(found.root),
        image_manifest: text(found.image),
        attestation_manifest: text(found.attestation),
        signature_manifests: Vec::new(),
        blobs: found.blobs.iter().map(|(digest, held)| (digest.to_string(), blob(held))).collect(),
    }))
}

/// Returns an attestation as a message.
pub fn to_wire(attested: &FrontendAttestation) -> pb::Attestation {
    let subject = |s: &AttestedSubject| match s {
        AttestedSubject::Itself { name } => {
            pb::InTotoSubject { kind: pb::InTotoSubjectKind::Self_ as i32, digest: Vec::new(), name: name.clone() }
        }
        AttestedSubject::Other { name, digests } => pb::InTotoSubject {
            kind: pb::InTotoSubjectKind::Raw as i32,
            digest: digests.iter().map(ToString::to_string).collect(),
            name: name.clone(),
        },
    };
    pb::Attestation {
        kind: match attested.kind {
            AttestationKind::Predicate => pb::AttestationKind::InToto as i32,
            AttestationKind::Bundle => pb::AttestationKind::Bundle as i32,
        },
        metadata: attested.metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        r#ref: attested.reference.as_ref().map(|r| crate::bridge::wire_ref(Some(r))),
        path: attested.path.clone(),
        in_toto_predicate_type: attested.predicate_type.clone(),
        in_toto_subjects: attested.subjects.iter().map(subject).collect(),
    }
}
