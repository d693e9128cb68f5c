//! From refs to an image: layers, configs, manifests and, where it takes one, an index.

use std::collections::{BTreeMap, HashSet};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kiln_oci::{Descriptor, DiffId, ImageConfig, Index, Manifest, Reference, media};
use kiln_stdx::Digest;
use kiln_store::{BlobOptions, LayerBlob};

use crate::annotation::{AnnotationSet, AnnotationTarget};
use crate::attest::{self, Subject};
use crate::cache_export::{layer_blob, layer_blob_here};
use crate::content::{Content, Data};
use crate::context::ExportContext;
use crate::error::{ExportError, Result};
use crate::image_config::{self, ConfigInput, LayerNote};
use crate::options::{CommitOptions, ExporterKind, names};
use crate::progress::Status;
use crate::source::{ExportSource, IMAGE_NAME_KEY, PlatformResult};
use crate::{layer_files, layer_media};

/// Compatibility level from which OCI media types are the default.
const OCI_LEVEL: u32 = 30;
/// On layers whose times were cut: to which second since 1970.
const REWRITTEN_KEY: &str = "buildkit/rewritten-timestamp";

/// A finished image: every piece of it, in the order in which a registry takes them.
#[derive(Clone)]
pub struct BuiltImage {
    /// The manifest or index that stands for the whole.
    pub descriptor: Descriptor,
    /// The config, when there is one manifest only.
    pub config_digest: Option<Digest>,
    /// Complete names, as asked for.
    pub names: Vec<Reference>,
    /// Layers, configs and statements, each once.
    pub blobs: Vec<Content>,
    /// Manifests, children before parents; the last one is [`Self::descriptor`].
    pub manifests: Vec<Content>,
    /// RFC 3339; when the image was made, in whole seconds, as annotations have it.
    pub created: String,
}

impl BuiltImage {
    /// Returns what a client gets told.
    ///
    /// # Errors
    /// Never for an image built here.
    pub fn response(&self) -> Result<BTreeMap<String, String>> {
        let mut response = BTreeMap::from([("containerimage.digest".to_owned(), self.descriptor.digest.to_string())]);
        if let Some(config) = self.config_digest {
            response.insert("containerimage.config.digest".to_owned(), config.to_string());
        }
        let descriptor = kiln_oci::to_ordered_json("descriptor", &self.descriptor)?;
        response.insert("containerimage.descriptor".to_owned(), BASE64_STANDARD.encode(descriptor));
        if !self.names.is_empty() {
            let names: Vec<String> = self.names.iter().map(Reference::to_string).collect();
            response.insert("image.name".to_owned(), names.join(","));
        }
        Ok(response)
    }

    /// Returns media type and bytes of every manifest and index.
    pub fn documents(&self) -> Vec<(String, Vec<u8>)> {
        let of = |content: &Content| Some((content.descriptor.media_type.clone(), content.document_bytes()?.to_vec()));
        self.manifests.iter().filter_map(of).collect()
    }

    /// Returns all pieces: blobs, then manifests.
    pub fn contents(&self) -> impl Iterator<Item = &Content> {
        self.blobs.iter().chain(&self.manifests)
    }

    /// Returns the image manifests with their descriptors, attestations left out.
    pub(crate) fn image_manifests(&self) -> Result<Vec<(Descriptor, Manifest)>> {
        let mut found = Vec::new();
        for content in &self.manifests {
            let Some(bytes) = content.document_bytes() else { continue };
            if media::is_manifest(&content.descriptor.media_type) {
                let manifest = Manifest::from_json(bytes)?;
                if !manifest.layers.iter().any(|l| l.media_type == media::IN_TOTO) {
                    found.push((content.descriptor.clone(), manifest));
                }
            }
        }
        Ok(found)
    }
}

/// Whether an image's bytes have to be here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LayerBytes {
    /// They are going to be read.
    Needed,
    /// Who takes the image may have them already.
    MayBeElsewhere,
}

/// Builds the image of `source`.
///
/// # Errors
/// Options that do not fit the result; bad configs; layers that cannot be had.
pub(crate) fn build(
    context: &ExportContext,
    kind: ExporterKind,
    options: &CommitOptions,
    bytes: LayerBytes,
    source: &ExportSource,
) -> Result<BuiltImage> {
    let mut commit = Commit::new(context, kind, options, bytes, source)?;
    let as_index = source.keyed || source.entries.iter().any(|e| !commit.attestations(e).is_empty());
    if as_index {
        commit.index(source)?
    } else {
        commit.single(source)?
    }
    commit.finish()
}

struct Commit<'a> {
    context: &'a ExportContext,
    options: &'a CommitOptions,
    bytes: LayerBytes,
    source: &'a ExportSource,
    annotations: AnnotationSet,
    names: Vec<Reference>,
    oci_types: bool,
    oci_artifact: bool,
    blobs: Vec<Content>,
    manifests: Vec<Content>,
    seen: HashSet<Digest>,
    root: Option<Descriptor>,
    config_digest: Option<Digest>,
    created: Option<String>,
}

impl<'a> Commit<'a> {
    fn new(
        context: &'a ExportContext,
        kind: ExporterKind,
        options: &'a CommitOptions,
        bytes: LayerBytes,
        source: &'a ExportSource,
    ) -> Result<Self> {
        if kind == ExporterKind::Docker && source.keyed {
            let why = "docker exporter does not currently support exporting manifest lists";
            return Err(ExportError::Unsupported(why.to_owned()));
        }
        if !source.keyed && source.entries.len() > 1 {
            let why = "cannot export multiple platforms without multi-platform enabled";
            return Err(ExportError::Unsupported(why.to_owned()));
        }
        if source.keyed && source.entries.iter().any(|e| e.platform.is_none()) {
            let why = "unable to export multiple refs, missing platforms mapping";
            return Err(ExportError::Unsupported(why.to_owned()));
        }
        let mut annotations = AnnotationSet::default();
        for (name, value) in source.metadata.iter().chain(&options.metadata) {
            annotations.accept(name, &String::from_utf8_lossy(value))?;
        }
        annotations.merge(options.annotations.clone());
        let attested = source.entries.iter().any(|e| !e.attestations.is_empty());
        let default = context.compatibility >= OCI_LEVEL;
        let oci_types = options.oci_types.unwrap_or(kind == ExporterKind::Oci || default || attested);
        let oci_artifact = options.oci_artifact.unwrap_or(default && oci_types);
        Ok(Self {
            context,
            options,
            bytes,
            source,
            annotations,
            names: image_names(options, source)?,
            oci_types,
            oci_artifact,
            blobs: Vec::new(),
            manifests: Vec::new(),
            seen: HashSet::new(),
            root: None,
            config_digest: None,
            created: None,
        })
    }

    fn attestations<'e>(&self, entry: &'e PlatformResult) -> Vec<&'e attest::Attestation> {
        attest::outgoing(&entry.attestations, self.options.inline_attestations)
    }

    fn check_annotations(&self, indexed: bool) -> Result<()> {
        use AnnotationTarget::{Index, IndexDescriptor, ManifestDescriptor};
        for platform in self.annotations.platforms() {
            let there = |e: &PlatformResult| e.platform.as_ref().is_some_and(|p| p.clone().normalize() == *platform);
            if !self.source.entries.iter().any(there) {
                let why = format!("invalid annotation: no platform {platform} found in source");
                return Err(ExportError::Unsupported(why));
            }
        }
        let has = |target| self.annotations.has(target);
        if !self.oci_types && (has(Index) || has(IndexDescriptor) || has(ManifestDescriptor)) {
            let (first, second) = ("annotation".to_owned(), "oci-mediatypes=false".to_owned());
            return Err(ExportError::Conflict { first, second });
        }
        if !indexed && (has(Index) || has(IndexDescriptor)) {
            let why = "index annotations not supported for single platform export";
            return Err(ExportError::Unsupported(why.to_owned()));
        }
        Ok(())
    }

    fn single(&mut self, source: &ExportSource) -> Result<()> {
        self.check_annotations(false)?;
        let scratch = PlatformResult::default();
        let entry = source.entries.first().unwrap_or(&scratch);
        let layers = self.layers(&[entry])?.pop().unwrap_or_default();
        let (mut descriptor, config) = self.manifest(entry, layers)?;
        descriptor.platform.clone_from(&entry.platform);
        self.config_digest = Some(config);
        self.root = Some(descriptor);
        Ok(())
    }

    fn index(&mut self, source: &ExportSource) -> Result<()> {
        self.check_annotations(true)?;
        let attested = source.entries.iter().any(|e| !self.attestations(e).is_empty());
        if attested && !self.oci_types {
            let (first, second) = ("attestations".to_owned(), "oci-mediatypes=false".to_owned());
            return Err(ExportError::Conflict { first, second });
        }
        let entries: Vec<&PlatformResult> = source.entries.iter().collect();
        let layers = self.layers(&entries)?;
        let (mut images, mut attestations) = (Vec::new(), Vec::new());
        for (entry, layers) in entries.into_iter().zip(layers) {
            let blobs: Vec<Digest> = layers.iter().map(|layer| layer.content.descriptor.digest).collect();
            let (mut descriptor, _) = self.manifest(entry, layers)?;
            descriptor.platform.clone_from(&entry.platform);
            attestations.extend(self.attest(entry, &descriptor, &blobs)?);
            images.push(descriptor);
        }
        images.append(&mut attestations);
        let media_type = if self.oci_types { media::OCI_INDEX } else { media::DOCKER_INDEX };
        let mut index = Index::new(media_type, images);
        index.annotations = self.annotations.of(AnnotationTarget::Index, None);
        let bytes = index.to_manifest_json()?;
        let mut descriptor = Descriptor::of(media_type, &bytes);
        let _status = self.status(format!("exporting manifest list {}", descriptor.digest));
        self.manifests.push(Content::document(descriptor.clone(), bytes));
        descriptor.annotations = self.annotations.of(AnnotationTarget::IndexDescriptor, None);
        self.root = Some(descriptor);
        Ok(())
    }

    /// Makes one image manifest and its config; returns both names.
    fn manifest(&mut self, entry: &PlatformResult, layers: Vec<FinishedLayer>) -> Result<(Descriptor, Digest)> {
        let epoch = self.source.epoch(self.options.epoch, entry)?;
        let config = image_config::patch(&ConfigInput {
            config: entry.config.as_deref(),
            base: entry.base_config.as_deref(),
            diff_ids: layers.iter().map(|l| l.diff_id).collect(),
            notes: layers.iter().map(|l| l.note.clone()).collect(),
            epoch,
            inline_cache: entry.inline_cache.as_deref(),
        })?;
        if self.created.is_none() {
            self.created = match epoch {
                Some(epoch) => Some(image_config::format_seconds(epoch)),
                None => ImageConfig::from_json(&config)?.created.map(|made| image_config::whole_seconds(&made)),
            };
        }
        let (manifest_type, config_type) = match self.oci_types {
            true => (media::OCI_MANIFEST, media::OCI_CONFIG),
            false => (media::DOCKER_MANIFEST, media::DOCKER_CONFIG),
        };
        let config_descriptor = Descriptor::of(config_type, &config);
        let mut descriptors = Vec::new();
        for layer in layers {
            descriptors.push(layer.content.descriptor.clone());
            self.add(layer.content);
        }
        let mut manifest = Manifest::new(manifest_type, config_descriptor.clone(), descriptors);
        manifest.annotations = self.annotations.of(AnnotationTarget::Manifest, entry.platform.as_ref());
        let bytes = manifest.to_manifest_json()?;
        let mut descriptor = Descriptor::of(manifest_type, &bytes);
        drop(self.status(format!("exporting manifest {}", descriptor.digest)));
        drop(self.status(format!("exporting config {}", config_descriptor.digest)));
        let config_digest = config_descriptor.digest;
        self.add(Content::document(config_descriptor, config));
        if self.seen.insert(descriptor.digest) {
            self.manifests.push(Content::document(descriptor.clone(), bytes));
        }
        descriptor.annotations = self.annotations.of(AnnotationTarget::ManifestDescriptor, entry.platform.as_ref());
        Ok((descriptor, config_digest))
    }

    /// Makes the manifest of what is attested of `image`, whose layers are `blobs`; none if nothing is.
    fn attest(&mut self, entry: &PlatformResult, image: &Descriptor, blobs: &[Digest]) -> Result<Option<Descriptor>> {
        let attestations = self.attestations(entry);
        if attestations.is_empty() {
            return Ok(None);
        }
        let platform = entry.platform.as_ref();
        let itself: Vec<Subject> =
            self.names.iter().map(|n| Subject::new(attest::package_url(n, platform), &image.digest)).collect();
        let mut statements = Vec::new();
        for attestation in attestations {
            let supplemented = self.supplemented(entry, attestation, blobs)?;
            let bytes = attest::statement(supplemented.as_ref().unwrap_or(attestation), &itself, false)?;
            statements.push((attestation.predicate_type.clone(), bytes));
        }
        let made = attest::manifest(image, statements, self.oci_types, self.oci_artifact)?;
        drop(self.status(format!("exporting attestation manifest {}", made.descriptor.digest)));
        for (descriptor, bytes) in made.blobs {
            self.add(Content::document(descriptor, bytes));
        }
        let plain = Descriptor::new(&made.descriptor.media_type, made.descriptor.digest, made.descriptor.size);
        if self.seen.insert(plain.digest) {
            self.manifests.push(Content::document(plain, made.bytes));
        }
        Ok(Some(made.descriptor))
    }

    /// Returns an SBOM with the layers of the files that it lists; none where there is nothing to add.
    fn supplemented(
        &self,
        entry: &PlatformResult,
        attestation: &attest::Attestation,
        blobs: &[Digest],
    ) -> Result<Option<attest::Attestation>> {
        let Some(reference) = entry.reference.as_ref().filter(|_| attestation.sbom_core) else { return Ok(None) };
        if !reference.is_unpacked() {
            self.context.remote.unpack(reference)?;
        }
        let made = layer_files::supplement(&attestation.predicate, reference, blobs)?;
        Ok(made.map(|predicate| attest::Attestation { predicate: predicate.into(), ..attestation.clone() }))
    }

    /// Makes the blobs of all layers, several at a time.
    fn layers(&self, entries: &[&PlatformResult]) -> Result<Vec<Vec<FinishedLayer>>> {
        let _status = self.status("exporting layers".to_owned());
        let mut jobs = Vec::new();
        for (at, entry) in entries.iter().enumerate() {
            let Some(reference) = &entry.reference else { continue };
            let epoch = match self.options.rewrite_timestamp {
                true => self.source.epoch(self.options.epoch, entry)?,
                false => None,
            };
            if self.options.rewrite_timestamp && epoch.is_none() {
                let message = "rewrite-timestamp is specified, but no source-date-epoch was found";
                self.context.progress.warn(message);
            }
            let inherited = inherited_layers(entry)?;
            // Other times can be given to files only.
            if epoch.is_some() && reference.layers().iter().skip(inherited).any(|layer| !layer.is_unpacked()) {
                self.context.remote.unpack(reference)?;
            }
            for (number, layer) in reference.layers().iter().enumerate() {
                jobs.push((at, layer, epoch.filter(|_| number >= inherited)));
            }
        }
        let made = crate::parallel::map(&jobs, |(_, layer, epoch)| self.layer(layer, *epoch))?;
        let mut finished: Vec<Vec<FinishedLayer>> = entries.iter().map(|_| Vec::new()).collect();
        for ((at, ..), layer) in jobs.iter().zip(made) {
            finished[*at].push(layer);
        }
        Ok(finished)
    }

    fn layer(&self, layer: &kiln_store::Layer, epoch: Option<i64>) -> Result<FinishedLayer> {
        self.context.check_canceled()?;
        let (compression, force) = (self.options.compression, self.options.force_compression);
        let wanted = BlobOptions { compression, force, epoch, here: false };
        let LayerBlob { mut descriptor, diff_id, blob } = match self.bytes {
            LayerBytes::Needed => layer_blob_here(self.context, layer, &wanted)?,
            LayerBytes::MayBeElsewhere => layer_blob(self.context, layer, &wanted)?,
        };
        if let Some(epoch) = epoch
            && self.oci_types
        {
            descriptor.annotations.insert(REWRITTEN_KEY.to_owned(), epoch.to_string());
        }
        layer_media::convert(&mut descriptor, self.oci_types, self.options.prefer_nondist);
        let data = blob.map_or_else(|| Data::Remote(layer.clone()), Data::Blob);
        let note = LayerNote { description: layer.description(), created: Some(layer.created()) };
        Ok(FinishedLayer { content: Content { descriptor, data, layer: Some(layer.clone()) }, diff_id, note })
    }

    fn add(&mut self, content: Content) {
        if self.seen.insert(content.descriptor.digest) {
            self.blobs.push(content);
        }
    }

    fn status(&self, id: String) -> Status {
        Status::start(&self.context.progress, id, 0)
    }

    fn finish(self) -> Result<BuiltImage> {
        let Some(descriptor) = self.root else {
            return Err(ExportError::Unsupported("the result has no image".to_owned()));
        };
        Ok(BuiltImage {
            descriptor,
            config_digest: self.config_digest,
            names: self.names,
            blobs: self.blobs,
            manifests: self.manifests,
            created: self.created.unwrap_or_else(|| image_config::format_seconds(0)),
        })
    }
}

struct FinishedLayer {
    content: Content,
    diff_id: DiffId,
    note: LayerNote,
}

/// Returns how many of the lowest layers are the base image's own.
fn inherited_layers(entry: &PlatformResult) -> Result<usize> {
    let (Some(base), Some(reference)) = (&entry.base_config, &entry.reference) else { return Ok(0) };
    let base = ImageConfig::from_json(base)?.rootfs.diff_ids;
    let same = reference.layers().iter().zip(&base).take_while(|(layer, id)| layer.diff_id() == Some(**id));
    Ok(same.count())
}

fn image_names(options: &CommitOptions, source: &ExportSource) -> Result<Vec<Reference>> {
    if options.name != "*" {
        return names(&options.name);
    }
    let given = options.metadata.get(IMAGE_NAME_KEY).or_else(|| source.metadata.get(IMAGE_NAME_KEY));
    given.map_or_else(|| Ok(Vec::new()), |list| names(&String::from_utf8_lossy(list)))
}

#[cfg(test)]
mod tests;
