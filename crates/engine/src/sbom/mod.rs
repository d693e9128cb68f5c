//! Bills of materials (SBOM): what software is in a result, attested beside it.
//!
//! A scanner in an image is run over the result as BuildKit's scanner protocol has it. Where none is named and the usual
//! one cannot be had, kiln's own (`kiln_sbom`) reads the records in the result. Either way the outcome is a directory of
//! statements, which passes through frontends, clients and exports alike.

mod image;
mod options;
mod own;

use std::collections::BTreeMap;

use futures::future::try_join_all;
use kiln_llb::Definition;
use kiln_oci::Platform;

use crate::attest::{AttestationKind, FrontendAttestation};
use crate::bridge::{Bridge, FrontendResult, Ref, ResultRefs};
use crate::error::EngineError;
use crate::request::SolveRequest;
use image::ScannerImage;
pub use options::Options;

/// What the scan of the result itself is called; a file of that name before its first dot is about it.
const CORE: &str = "sbom";
/// Metadata of an attestation: the name of the scan that is about the result.
pub const CORE_KEY: &str = "sbom-core";

/// What is scanned for one platform.
pub struct Target {
    /// The frontend's name of the platform.
    pub id: String,
    /// The result; empty for one without files.
    pub core: Definition,
    /// What is scanned beside it, by name: stages, `context`.
    pub extras: BTreeMap<String, Definition>,
    /// The scanner runs even if an equal scan is known.
    pub no_cache: bool,
    /// The time that the result is cut to, seconds since 1970.
    pub epoch: Option<i64>,
}

/// Who scans.
pub enum Scanner {
    Image(Box<ScannerImage>),
    Own,
}

impl Scanner {
    /// Chooses the scanner that a request wants, or that there is. `platform` is the one that it runs on.
    ///
    /// # Errors
    /// A scanner that is named cannot be had.
    pub async fn choose(
        bridge: &Bridge,
        wanted: &Options,
        platform: &Platform,
        pull: bool,
    ) -> Result<Self, EngineError> {
        Ok(match &wanted.generator {
            Some(options::Generator::Own) => Self::Own,
            Some(options::Generator::Image(name)) => {
                let image = ScannerImage::named(bridge, name, platform, pull, &wanted.parameters).await?;
                Self::Image(Box::new(image))
            }
            None => match ScannerImage::usual(bridge, platform, pull, &wanted.parameters).await {
                Some(image) => Self::Image(Box::new(image)),
                None => Self::Own,
            },
        })
    }

    /// Scans one platform's result. An image is run when the attestation is read; kiln's own scan is made now.
    ///
    /// # Errors
    /// The result cannot be built or read.
    pub async fn scan(&self, bridge: &Bridge, target: &Target) -> Result<FrontendAttestation, EngineError> {
        let definition = match self {
            Self::Image(image) => image.graph(target)?,
            Self::Own => own::graph(bridge, target).await?,
        };
        Ok(FrontendAttestation {
            kind: AttestationKind::Bundle,
            reference: bridge.define(definition).await?,
            path: String::new(),
            predicate_type: kiln_sbom::PREDICATE_TYPE.to_owned(),
            subjects: Vec::new(),
            metadata: BTreeMap::from([
                ("reason".to_owned(), CORE.as_bytes().to_vec()),
                (CORE_KEY.to_owned(), CORE.as_bytes().to_vec()),
            ]),
        })
    }

    /// Scans the results of several platforms and adds what came out to `result`.
    ///
    /// # Errors
    /// As [`Scanner::scan`].
    pub async fn attest(
        &self,
        bridge: &Bridge,
        targets: &[Target],
        result: &mut FrontendResult,
    ) -> Result<(), EngineError> {
        let scans = try_join_all(targets.iter().map(|target| self.scan(bridge, target))).await?;
        for (target, scan) in targets.iter().zip(scans) {
            result.attestations.entry(target.id.clone()).or_default().push(scan);
        }
        Ok(())
    }
}

/// Scans the result of a frontend that did not do so itself, if the request wants it.
///
/// # Errors
/// A scanner that is named cannot be had, or the result cannot be built.
pub async fn complete(
    bridge: &Bridge,
    request: &SolveRequest,
    mut result: FrontendResult,
) -> Result<FrontendResult, EngineError> {
    let attrs = &request.frontend_attrs;
    let Some(wanted) = Options::of(attrs)? else { return Ok(result) };
    let mut attested = result.attestations.values().flatten();
    if attested.any(|a| a.predicate_type == kiln_sbom::PREDICATE_TYPE) {
        return Ok(result);
    }
    let epoch = result.metadata.get(kiln_exporter::EPOCH_KEY).and_then(|text| std::str::from_utf8(text).ok());
    let epoch = epoch.and_then(|text| text.parse().ok());
    let no_cache = attrs.get("no-cache").is_some_and(String::is_empty);
    let target = |(id, reference): (String, Ref)| {
        let core = reference.definition().clone();
        Target { id, core, extras: BTreeMap::new(), no_cache, epoch }
    };
    let targets: Vec<Target> = results(&result)?.into_iter().map(target).collect();
    if !targets.is_empty() {
        let pull = attrs.get("image-resolve-mode").is_some_and(|mode| mode == "pull");
        let scanner = Scanner::choose(bridge, &wanted, &Platform::host(), pull).await?;
        scanner.attest(bridge, &targets, &mut result).await?;
    }
    Ok(result)
}

/// Returns the results that have files, each with the name of its platform.
fn results(result: &FrontendResult) -> Result<Vec<(String, Ref)>, EngineError> {
    let named = crate::export::named(result)?;
    Ok(match &result.refs {
        ResultRefs::Single(reference) => {
            let id = named.first().map_or_else(|| Platform::host().short(), |(id, _)| id.clone());
            reference.iter().map(|reference| (id.clone(), reference.clone())).collect()
        }
        ResultRefs::Map(map) => {
            let found = named.iter().filter_map(|(id, _)| Some((id.clone(), map.get(id)?.clone()?)));
            found.collect()
        }
    })
}
