//! From a frontend's result to the outputs that were asked for, each shown as a vertex of the build.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use kiln_exporter::{
    CacheCompression, CacheLayers, ExportContext, ExportError, ExportProgress, ExportSource, Exporter, PlatformResult,
};
use kiln_oci::Platform;
use kiln_stdx::{Digest, ErrorClass, fault, limits};
use kiln_store::{Blob, Layer};
use parking_lot::Mutex;
use serde::Deserialize;

use crate::attest::FrontendAttestation;
use crate::bridge::{Bridge, FrontendResult, Ref, ResultRefs};
use crate::build::{BuildContext, Progress};
use crate::error::EngineError;
use crate::parts::Parts;
use crate::provenance::Teller;
use crate::remote::Origins;
use crate::request::{ExporterSpec, SolveRequest, SolveResponse};
use crate::session::SessionCredentials;
use crate::source::lazy;

impl From<ExportError> for EngineError {
    fn from(error: ExportError) -> Self {
        let mut result = Self::new(error.class(), crate::error::chain(&error));
        result.hint = error.hint();
        result
    }
}

/// Checks what can be checked of outputs before anything is built.
///
/// # Errors
/// An unknown output or attribute, a bad value.
pub fn check(exporters: &[ExporterSpec]) -> Result<(), EngineError> {
    for spec in exporters {
        Exporter::parse(&spec.kind, &spec.attrs)?;
    }
    Ok(())
}

/// Checks what a frontend gave before it is built: its platforms, which the client is warned about.
///
/// # Errors
/// A list of platforms that cannot be understood.
pub fn check_result(bridge: &Bridge, request: &SolveRequest, result: &FrontendResult) -> Result<(), EngineError> {
    let wanted = request.frontend_attrs.get("platform").map_or("", String::as_str);
    let given: Vec<Platform> = platforms(result)?.into_iter().map(|p| p.platform).collect();
    if let Some(warning) = crate::verify::platforms(wanted, result, &given) {
        let vertex = bridge.build().start("verifying platforms of the result");
        bridge.build().warn(vertex.digest(), &warning);
        vertex.end(None);
    }
    Ok(())
}

/// Returns the request with the outputs that the client chooses now that the result is known; none where it chooses no
/// outputs.
///
/// # Errors
/// The client fails, or chooses what does not exist.
pub async fn session_exporters(
    bridge: &Bridge,
    request: &SolveRequest,
    result: &FrontendResult,
) -> Result<Option<SolveRequest>, EngineError> {
    if !request.session_exporters || request.session.is_empty() {
        return Ok(None);
    }
    let session = bridge.parts().sessions.get(&request.session, limits::SESSION_WAIT).await?;
    if !session.supports("/moby.exporter.v1.Exporter/FindExporters") {
        return Ok(None);
    }
    let refs = result.refs.all().iter().map(|r| r.id().to_owned()).collect();
    let found = match session.find_exporters(result.metadata.clone(), refs).await {
        // A client may want to know of the end only.
        Err(error) if error.is_unavailable() => Vec::new(),
        found => found?,
    };
    let mut request = request.clone();
    for chosen in found {
        let id = request.exporters.len().to_string();
        request.exporters.push(ExporterSpec { kind: chosen.r#type, attrs: chosen.attrs, id });
    }
    check(&request.exporters)?;
    Ok(Some(request))
}

/// Tells the client what the outputs that it chose have to say.
///
/// # Errors
/// The client takes it for a failure. One that does not want to know is no error.
pub async fn tell_session(bridge: &Bridge, response: &SolveResponse) -> Result<(), EngineError> {
    let id = &bridge.build().settings.session;
    let session = bridge.parts().sessions.get(id, limits::SESSION_WAIT).await?;
    if !session.supports("/moby.exporter.v1.Exporter/FinalizeExport") {
        return Ok(());
    }
    match session.finalize_export(response.exporter.clone()).await {
        Err(error) if error.is_not_found() || error.is_unavailable() => Ok(()),
        other => Ok(other?),
    }
}

/// Makes and delivers every output.
///
/// # Errors
/// Whatever an output fails with; outputs before it have been delivered.
pub async fn run(
    bridge: &Bridge,
    request: &SolveRequest,
    result: &FrontendResult,
) -> Result<SolveResponse, EngineError> {
    let mut response = SolveResponse::default();
    if request.exporters.is_empty() {
        return Ok(response);
    }
    let teller = Teller::new(bridge, request, result, named(result)?)?;
    let source = source(bridge, request, result, teller.as_ref()).await?;
    for (number, spec) in request.exporters.iter().enumerate() {
        let exporter = Exporter::parse(&spec.kind, &spec.attrs)?;
        let vertex = bridge.build().start(exporter.kind().vertex_name());
        let progress = Arc::new(VertexProgress::new(bridge.build().clone(), vertex.digest()));
        let outcome = one(bridge, request, spec, number, &exporter, &source, progress).await;
        if let Err(error) = &outcome
            && error.class() == ErrorClass::Damage
        {
            examine(bridge.parts(), &source).await;
        }
        vertex.end(outcome.as_ref().err().map(ToString::to_string));
        let (told, documents) = outcome?;
        bridge.build().kept.delivered(number, &told, documents);
        response.exporter.extend(told);
    }
    Ok(response)
}

/// Reads every byte of a result that an export found damaged, so that what is not good is repaired or dropped and the
/// next attempt makes it anew.
async fn examine(parts: &Parts, source: &ExportSource) {
    let references: Vec<_> = source.entries.iter().filter_map(|entry| entry.reference.clone()).collect();
    let store = parts.store.clone();
    let looked = parts.blocking(move || {
        for reference in references {
            let blobs = reference.layers().iter().flat_map(Layer::descriptors).map(|d| d.digest);
            blobs.for_each(|digest| drop(store.verify_blob(&digest)));
            // The answer is in what is left of the reference.
            let _ = store.check_digests(&reference);
        }
        Ok(())
    });
    if let Err(error) = looked.await {
        tracing::warn!(%error, "cannot examine a damaged result");
    }
}

async fn one(
    bridge: &Bridge,
    request: &SolveRequest,
    spec: &ExporterSpec,
    number: usize,
    exporter: &Exporter,
    source: &ExportSource,
    progress: Arc<VertexProgress>,
) -> Result<(BTreeMap<String, String>, Vec<(String, Vec<u8>)>), EngineError> {
    let parts = bridge.parts();
    let cancel = tokio_util::sync::CancellationToken::new();
    let fetching = Progress::of_build(bridge.build(), progress.vertex);
    let context = ExportContext {
        store: parts.store.clone(),
        remote: Origins::new(parts, fetching.clone(), &cancel),
        progress,
        compatibility: 30,
        cancel,
    };
    // Dropping this future, as a cancelled build does, calls off the blocking part too.
    let _cancel = context.cancel.clone().drop_guard();
    fault::point("engine.export.start")?;
    let _layers = bring(bridge, exporter, source, &fetching).await?;
    let (exporter_copy, source_copy) = (exporter.clone(), source.clone());
    let built = parts.blocking(move || Ok(exporter_copy.build(&context, &source_copy)?)).await?;
    fault::point("engine.export.built")?;
    if request.session.is_empty() {
        built.deliver_to_store().await?;
        let nobody: kiln_registry::Credentials = Arc::new(kiln_registry::Anonymous);
        built.push(&parts.registry, &nobody).await?;
    } else {
        let session = parts.sessions.get(&request.session, limits::SESSION_WAIT).await?;
        let id = spec.id.parse().unwrap_or_else(|_| u32::try_from(number).unwrap_or_default());
        built.deliver(&session, id).await?;
        let credentials: kiln_registry::Credentials = SessionCredentials::new(Some(session));
        built.push(&parts.registry, &credentials).await?;
    }
    fault::point("engine.export.done")?;
    Ok((built.response, built.documents))
}

/// Brings layers that nobody read so far and that this output reads. What is returned keeps them.
async fn bring(
    bridge: &Bridge,
    exporter: &Exporter,
    source: &ExportSource,
    progress: &Progress,
) -> Result<Vec<Blob>, EngineError> {
    let mut kept = Vec::new();
    for reference in source.entries.iter().filter_map(|entry| entry.reference.as_ref()) {
        if exporter.needs_files() {
            lazy::unpack(bridge.parts(), progress, [reference]).await?;
        } else if exporter.needs_bytes() {
            kept.extend(lazy::fetch_missing(bridge.parts(), progress, reference).await?);
        }
    }
    Ok(kept)
}

#[derive(Deserialize)]
struct Platforms {
    #[serde(rename = "Platforms", default)]
    platforms: Option<Vec<NamedPlatform>>,
}

#[derive(Deserialize)]
struct NamedPlatform {
    #[serde(rename = "ID", default)]
    id: String,
    #[serde(rename = "Platform", default)]
    platform: Platform,
}

/// Returns the platforms of a result with their names; the host's under no name where a single result has none.
///
/// # Errors
/// A list of platforms that cannot be understood.
pub(crate) fn named(result: &FrontendResult) -> Result<Vec<(String, Platform)>, EngineError> {
    Ok(platforms(result)?.into_iter().map(|named| (named.id, named.platform)).collect())
}

/// Returns how the first image among the outputs is compressed; none without images.
fn image_form(request: &SolveRequest) -> Option<CacheCompression> {
    let mut images = request.exporters.iter().filter(|e| matches!(e.kind.as_str(), "image" | "oci" | "docker"));
    images.find_map(|spec| Exporter::parse(&spec.kind, &spec.attrs).ok()).map(|exporter| exporter.compression())
}

/// Makes what is told of one platform's result, with the blobs of its layers where those are told of.
async fn provenance(
    bridge: &Bridge,
    request: &SolveRequest,
    teller: Option<&Teller<'_>>,
    id: &str,
    reference: Option<&Ref>,
) -> Result<Option<kiln_exporter::Attestation>, EngineError> {
    let Some(teller) = teller else { return Ok(None) };
    if let (Some(reference), Some(form)) = (reference, image_form(request).filter(|_| teller.wants_layers())) {
        let layers = bridge.evaluate(reference).await?;
        let vertex = bridge.build().start("describing layers");
        let cancel = tokio_util::sync::CancellationToken::new();
        // Dropping this future calls off the blocking part too.
        let _cancel = cancel.clone().drop_guard();
        let context = ExportContext {
            store: bridge.parts().store.clone(),
            remote: Origins::new(bridge.parts(), Progress::of_build(bridge.build(), vertex.digest()), &cancel),
            progress: Arc::new(VertexProgress::new(bridge.build().clone(), vertex.digest())),
            compatibility: 30,
            cancel,
        };
        let made = bridge.parts().blocking(move || Ok(CacheLayers::new(&context, form).add(&layers).map(drop)?)).await;
        vertex.end(made.as_ref().err().map(ToString::to_string));
        made?;
    }
    teller.attest(id, reference).await
}

async fn source(
    bridge: &Bridge,
    request: &SolveRequest,
    result: &FrontendResult,
    teller: Option<&Teller<'_>>,
) -> Result<ExportSource, EngineError> {
    let platforms = platforms(result)?;
    let mut source = ExportSource { metadata: result.metadata.clone(), ..ExportSource::default() };
    match &result.refs {
        ResultRefs::Single(reference) => {
            // A single result is attested under its platform's name, or under none.
            let id = platforms.first().map_or_else(|| Platform::host().short(), |p| p.id.clone());
            let attested = result.attestations.get(&id).or_else(|| result.attestations.get(""));
            let mut entry = platform_result(bridge, request, result, "", reference.as_ref()).await?;
            entry.platform = platforms.first().map(|p| p.platform.clone());
            entry.attestations = attestations(bridge, attested).await?;
            entry.attestations.extend(provenance(bridge, request, teller, &id, reference.as_ref()).await?);
            source.entries.push(entry);
        }
        ResultRefs::Map(map) => {
            source.keyed = true;
            for named in platforms {
                let reference = map.get(&named.id);
                let reference =
                    reference.ok_or_else(|| EngineError::user(format!("no result for platform {}", named.id)))?;
                let mut entry = platform_result(bridge, request, result, &named.id, reference.as_ref()).await?;
                entry.attestations = attestations(bridge, result.attestations.get(&named.id)).await?;
                entry.attestations.extend(provenance(bridge, request, teller, &named.id, reference.as_ref()).await?);
                entry.platform = Some(named.platform);
                entry.id = named.id;
                source.entries.push(entry);
            }
        }
    }
    Ok(source)
}

/// Returns one platform's result but for what is attested of it.
async fn platform_result(
    bridge: &Bridge,
    request: &SolveRequest,
    result: &FrontendResult,
    id: &str,
    reference: Option<&Ref>,
) -> Result<PlatformResult, EngineError> {
    let metadata = |key: &str| {
        let keyed = if id.is_empty() { None } else { result.metadata.get(&format!("{key}/{id}")) };
        keyed.or_else(|| result.metadata.get(key)).map(|bytes| Bytes::from(bytes.clone()))
    };
    let mut entry = PlatformResult {
        config: metadata("containerimage.config"),
        base_config: metadata("containerimage.base.config"),
        ..PlatformResult::default()
    };
    if let Some(reference) = reference {
        // Only images carry the inline cache.
        if let Some(form) = image_form(request) {
            entry.inline_cache = crate::cache::inline_records(bridge, &request.cache_exports, reference, form).await?;
        }
        entry.reference = Some(bridge.evaluate(reference).await?);
    }
    Ok(entry)
}

async fn attestations(
    bridge: &Bridge,
    list: Option<&Vec<FrontendAttestation>>,
) -> Result<Vec<kiln_exporter::Attestation>, EngineError> {
    let mut all = Vec::new();
    for attested in list.into_iter().flatten() {
        all.extend(crate::attest::read(bridge, attested).await?);
    }
    Ok(all)
}

fn platforms(result: &FrontendResult) -> Result<Vec<NamedPlatform>, EngineError> {
    let Some(json) = result.metadata.get("refs.platforms") else {
        let ResultRefs::Map(map) = &result.refs else { return Ok(Vec::new()) };
        let named = |id: &String| {
            let platform = Platform::parse(id).map_err(|e| EngineError::user(e.to_string()))?;
            Ok(NamedPlatform { id: id.clone(), platform })
        };
        return map.keys().map(named).collect();
    };
    let list: Option<Platforms> =
        serde_json::from_slice(json).map_err(|e| EngineError::user(format!("refs.platforms: {e}")))?;
    let list = list.and_then(|list| list.platforms).unwrap_or_default();
    if list.is_empty() {
        return Err(EngineError::user("invalid empty platforms index for exporter"));
    }
    for named in &list {
        if named.id.is_empty() {
            return Err(EngineError::user("invalid empty platform key for exporter"));
        }
        if named.platform.os.is_empty() || named.platform.architecture.is_empty() {
            return Err(EngineError::user(format!("invalid platform value {:?}", named.platform.to_string())));
        }
    }
    Ok(list)
}

/// Shows an export's statuses below its vertex.
struct VertexProgress {
    build: Arc<BuildContext>,
    vertex: Digest,
    /// When each status began, and its total in bytes.
    started: Mutex<BTreeMap<String, (SystemTime, u64)>>,
}

impl VertexProgress {
    fn new(build: Arc<BuildContext>, vertex: Digest) -> Self {
        Self { build, vertex, started: Mutex::default() }
    }

    fn show(&self, id: &str, current: u64, total: u64, done: bool) {
        let (started, known) = {
            let mut all = self.started.lock();
            let entry = all.entry(id.to_owned()).or_insert_with(|| (SystemTime::now(), total));
            entry.1 = entry.1.max(total);
            *entry
        };
        let current = if done { known } else { current };
        self.build.status(self.vertex, id, current, known, started, done);
    }
}

impl ExportProgress for VertexProgress {
    fn started(&self, id: &str, total: u64) {
        self.show(id, 0, total, false);
    }

    fn advanced(&self, id: &str, current: u64, total: u64) {
        self.show(id, current, total, false);
    }

    fn completed(&self, id: &str) {
        self.show(id, 0, 0, true);
    }

    fn warn(&self, message: &str) {
        self.build.warn(self.vertex, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_outputs_are_refused_before_work_starts() {
        let spec = ExporterSpec { kind: "floppy".into(), ..ExporterSpec::default() };
        let error = check(&[spec]).unwrap_err();
        assert_eq!(error.class(), ErrorClass::UserInput);
        assert!(error.to_string().contains("floppy"), "{error}");
    }
}
