//! What is told of how a result was made: SLSA provenance, an attestation beside what is exported.
//!
//! A build keeps the requests of its frontends as a tree of scopes. What a result was made from is read off its graph
//! when it is exported, with the digests that this build found.

mod capture;
mod materials;
mod options;
mod predicate;
mod request;
mod scope;
mod steps;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use kiln_exporter::Attestation;
use kiln_llb::Definition;
use kiln_oci::{Descriptor, Platform};
use kiln_stdx::{ErrorClass, rand_id};
use serde_json::{Map, Value, json};

use crate::bridge::{Bridge, FrontendResult, Ref, ResultRefs};
use crate::error::EngineError;
use crate::request::SolveRequest;

use capture::Capture;
use options::Mode;
pub use options::Options;
pub use predicate::{DOCKERFILE_VERSION, seconds, time};
use request::Described;
pub use scope::{Asked, ImageSource, Scope};
use steps::Steps;

/// How many requests behind each other are told of.
const DEPTH: usize = 8;
/// Level of the exporters.
const COMPATIBILITY: u32 = 30;

/// Checks what a request wants of provenance.
///
/// # Errors
/// An unknown kind of attestation, a bad value.
pub fn check(request: &SolveRequest) -> Result<(), EngineError> {
    Options::of(&request.frontend_attrs).map(drop)
}

/// Tells of the results of one build.
pub struct Teller<'a> {
    bridge: &'a Bridge,
    options: Options,
    result: &'a FrontendResult,
    platforms: Vec<(String, Platform)>,
    id: String,
    /// Whether descriptors of layers are told.
    layers: bool,
}

impl<'a> Teller<'a> {
    /// Returns who tells of a result; none if nobody asked.
    ///
    /// # Errors
    /// A bad option.
    pub fn new(
        bridge: &'a Bridge,
        request: &SolveRequest,
        result: &'a FrontendResult,
        platforms: Vec<(String, Platform)>,
    ) -> Result<Option<Self>, EngineError> {
        let options = Options::of(&request.frontend_attrs)?;
        Ok(options.map(|options| {
            let layers = options.mode == Mode::Max;
            Self { bridge, options, result, platforms, id: rand_id(), layers }
        }))
    }

    /// Tells the history of every result, all but the layers, which nobody may have asked for.
    ///
    /// # Errors
    /// A bad option.
    pub fn keep(bridge: &'a Bridge, request: &SolveRequest, result: &'a FrontendResult) -> Result<(), EngineError> {
        let builder_id = Options::of(&request.frontend_attrs)?.map(|options| options.builder_id).unwrap_or_default();
        let options = Options { mode: Mode::Max, builder_id, ..Options::default() };
        let platforms = crate::export::named(result)?;
        let teller = Self { bridge, options, result, platforms, id: rand_id(), layers: false };
        let refs: Vec<(String, Option<Ref>)> = match &result.refs {
            ResultRefs::Single(reference) => vec![(String::new(), reference.clone())],
            ResultRefs::Map(map) => map.iter().map(|(id, reference)| (id.clone(), reference.clone())).collect(),
        };
        for (platform, reference) in refs {
            if let Some(draft) = teller.draft(&platform, reference.as_ref())? {
                let predicate_type = draft.options.predicate_type();
                bridge.build().kept.told(
                    &platform,
                    predicate_type,
                    Box::new(move || draft.write(None, BTreeMap::new())),
                );
            }
        }
        Ok(())
    }

    /// Tells whether descriptors of layers are wanted.
    pub fn wants_layers(&self) -> bool {
        self.layers
    }

    /// Makes the attestation of one platform's result; none for an empty one.
    ///
    /// # Errors
    /// Materials are incomplete and must not be.
    pub async fn attest(&self, platform: &str, reference: Option<&Ref>) -> Result<Option<Attestation>, EngineError> {
        let Some(draft) = self.draft(platform, reference)? else { return Ok(None) };
        let (mut steps, mut layers) = (None, BTreeMap::new());
        if self.layers
            && let Some(reference) = reference
        {
            let definition = reference.definition();
            let numbered = Steps::of(definition)?;
            layers = self.layers_of(reference, definition, &numbered).await?;
            steps = Some(numbered);
        }
        let options = &self.options;
        Ok(Some(Attestation {
            path: options.filename.clone().unwrap_or_else(|| "provenance.json".to_owned()),
            predicate_type: options.predicate_type().to_owned(),
            predicate: draft.write(steps, layers)?,
            subjects: Vec::new(),
            inline_only: options.inline_only,
            sbom_core: false,
        }))
    }

    /// Notes all that is told of one platform's result but its layers; none for an empty one.
    fn draft(&self, platform: &str, reference: Option<&Ref>) -> Result<Option<Draft>, EngineError> {
        let Some(reference) = reference else { return Ok(None) };
        let all = self.bridge.all_scopes();
        let scope = all.find(reference).unwrap_or_else(|| all.clone());
        let capture = self.capture(&scope, reference, platform);
        if self.options.complete && (capture.incomplete || !capture.locals.is_empty()) {
            return Err(incomplete(&capture));
        }
        let build = self.bridge.build();
        let described = |asked: &Asked| request::with_inputs(asked, &capture, all, build, DEPTH);
        let asked = scope.asked.as_ref().map(described).unwrap_or_default();
        let root = scope.root.as_ref().map(described);
        Ok(Some(Draft {
            definition: (self.options.mode == Mode::Max).then(|| reference.definition().clone()),
            capture,
            asked,
            root,
            started: build.started,
            finished: SystemTime::now(),
            id: self.id.clone(),
            environment: self.bridge.parts().provenance_env.clone(),
            options: self.options.clone(),
        }))
    }

    /// Returns what the result was made from, and whatever else its request needed, but for the other platforms' results.
    fn capture(&self, scope: &Arc<Scope>, reference: &Ref, platform: &str) -> Capture {
        let build = self.bridge.build();
        let results: Vec<String> = self.result.refs.all().iter().map(|r| r.id().to_owned()).collect();
        let mut capture = Capture::of(reference.graph(), build);
        for other in scope.all_refs().iter().filter(|other| !results.iter().any(|id| id == other.id())) {
            capture.merge(Capture::of(other.graph(), build));
        }
        let images = scope.all_images();
        let wanted = self.platforms.iter().find(|(id, _)| id == platform).map(|(_, platform)| platform);
        for image in &images {
            if self.is_of_another(image, &images, wanted) {
                continue;
            }
            capture.add_image(image.clone());
        }
        capture.tidy();
        capture
    }

    /// Tells whether an image was looked up for another platform's result only: one that all platforms have.
    fn is_of_another(&self, image: &ImageSource, all: &[ImageSource], wanted: Option<&Platform>) -> bool {
        let same = |a: &Platform, b: &Platform| a.os == b.os && a.architecture == b.architecture;
        let (Some(wanted), Some(own)) = (wanted, &image.platform) else { return false };
        let has = |platform: &Platform| {
            all.iter()
                .any(|other| other.name == image.name && other.platform.as_ref().is_some_and(|p| same(p, platform)))
        };
        !same(own, wanted) && self.platforms.iter().all(|(_, platform)| has(platform))
    }

    /// Returns the descriptors of the layers that steps led to, by `step:output`.
    async fn layers_of(
        &self,
        reference: &Ref,
        definition: &Definition,
        steps: &Steps,
    ) -> Result<BTreeMap<String, Vec<Vec<Descriptor>>>, EngineError> {
        let mut found: BTreeMap<String, Vec<Vec<Descriptor>>> = BTreeMap::new();
        if definition.is_empty() {
            return Ok(found);
        }
        let results = crate::cache::results(self.bridge, reference).await?;
        for ((vertex, output), result) in results {
            let Some(number) = steps.numbers.get(&vertex) else { continue };
            let layers: Option<Vec<Descriptor>> =
                result.layers().iter().map(|layer| layer.descriptors().into_iter().next()).collect();
            let Some(layers) = layers.filter(|layers| !layers.is_empty()) else { continue };
            let chains = found.entry(format!("step{number}:{output}")).or_default();
            if !chains.contains(&layers) {
                chains.push(layers);
            }
        }
        Ok(found)
    }
}

/// What a predicate is made of. It keeps neither the build nor its results.
struct Draft {
    /// Whose steps are told.
    definition: Option<Definition>,
    capture: Capture,
    asked: Described,
    root: Option<Described>,
    started: SystemTime,
    finished: SystemTime,
    id: String,
    environment: Map<String, Value>,
    options: Options,
}

impl Draft {
    /// Writes the predicate; `steps` are those of the definition, where they are known already.
    ///
    /// # Errors
    /// A graph that cannot be read.
    fn write(self, steps: Option<Steps>, layers: BTreeMap<String, Vec<Vec<Descriptor>>>) -> Result<Bytes, EngineError> {
        let mut config = None;
        let mut details = Map::new();
        if let Some(definition) = &self.definition {
            let mut steps = steps.map_or_else(|| Steps::of(definition), Ok)?;
            config = Some(Value::Object(steps.take_config()));
            if let Some(source) = steps::sources(definition, &steps)? {
                details.insert("source".into(), source);
            }
            if !layers.is_empty() {
                details.insert("layers".into(), json!(layers));
            }
        }
        let told = predicate::Told {
            capture: &self.capture,
            request: self.asked,
            root: self.root,
            started: self.started,
            finished: self.finished,
            id: &self.id,
            config,
            details,
            environment: &self.environment,
            compatibility: COMPATIBILITY,
        };
        let predicate = serde_json::to_vec_pretty(&told.predicate(&self.options));
        Ok(Bytes::from(predicate.map_err(|e| EngineError::from_error(ErrorClass::Bug, e))?))
    }
}

fn incomplete(capture: &Capture) -> EngineError {
    let mut text =
        "provenance materials are incomplete\n\nThe build requested complete provenance materials, but not all \
                    dependencies could be captured."
            .to_owned();
    if !capture.locals.is_empty() {
        text.push_str("\n\nUncaptured local sources:");
        for name in &capture.locals {
            text.push_str(&format!("\n  - {name}\n    reason: local_source"));
        }
    }
    EngineError::user(text)
}

/// Reads what whoever runs the engine adds to provenance: all `*.json` of a directory, objects that are put together.
///
/// # Errors
/// A file that cannot be read or is no object. A directory that is not there is no error.
pub fn read_environment(dir: &std::path::Path) -> std::io::Result<Map<String, Value>> {
    let mut all = Map::new();
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(all),
        entries => entries?,
    };
    let mut files: Vec<_> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.sort();
    for file in files.iter().filter(|file| file.extension().is_some_and(|e| e == "json") && file.is_file()) {
        let bad = |e: serde_json::Error| std::io::Error::other(format!("{}: {e}", file.display()));
        let map: Map<String, Value> = serde_json::from_slice(&std::fs::read(file)?).map_err(bad)?;
        all.extend(map);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_put_together_from_files() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_environment(&dir.path().join("gone")).unwrap().is_empty());
        std::fs::write(dir.path().join("a.json"), r#"{"site": "x", "n": 1}"#).unwrap();
        std::fs::write(dir.path().join("b.json"), r#"{"n": 2}"#).unwrap();
        std::fs::write(dir.path().join("c.txt"), "no").unwrap();
        let read = read_environment(dir.path()).unwrap();
        assert_eq!(Value::Object(read), json!({ "site": "x", "n": 2 }));
        std::fs::write(dir.path().join("d.json"), "[]").unwrap();
        assert!(read_environment(dir.path()).unwrap_err().to_string().contains("d.json"));
    }
}
