//! What output attributes mean: each name known here, each value checked before work starts.

use std::collections::BTreeMap;

use kiln_oci::Reference;
use kiln_snapshot::compress::{Compression, Kind};
use kiln_stdx::suggest::nearest;

use crate::annotation::AnnotationSet;
use crate::error::{ExportError, Result};
use crate::source::parse_epoch;

/// The exporters by their names on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExporterKind {
    Image,
    Oci,
    Docker,
    Local,
    Tar,
}

const KINDS: &[(&str, ExporterKind)] = &[
    ("image", ExporterKind::Image),
    ("oci", ExporterKind::Oci),
    ("docker", ExporterKind::Docker),
    ("local", ExporterKind::Local),
    ("tar", ExporterKind::Tar),
];

/// Attributes of every exporter that makes an image.
const COMMIT_NAMES: &[&str] = &[
    "name",
    "compression",
    "compression-level",
    "force-compression",
    "oci-mediatypes",
    "oci-artifact",
    "attestation-inline",
    "prefer-nondist-layers",
    "rewrite-timestamp",
    "source-date-epoch",
];
const IMAGE_NAMES: &[&str] = &[
    "push",
    "push-by-digest",
    "registry.insecure",
    "unpack",
    "dangling-name-prefix",
    // The spelling is the protocol's.
    "danging-name-empty-only",
    "name-canonical",
    "store",
    "unsafe-internal-store-allow-incomplete",
];
const FILE_NAMES: &[&str] = &["attestation-prefix", "platform-split", "source-date-epoch", "mode"];
/// What clients leave in the attributes although it is theirs to act on.
const CLIENT_NAMES: &[&str] = &["dest", "context", "load", "prefer-image-digest"];
/// Attributes that are passed on as if the frontend had set them.
const METADATA_PREFIXES: &[&str] = &["containerimage.", "refs.platforms", "source.date.epoch", "image.name"];

impl ExporterKind {
    /// Reads an exporter's name.
    ///
    /// # Errors
    /// A name that no exporter has.
    pub fn parse(name: &str) -> Result<Self> {
        KINDS.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind).ok_or_else(|| ExportError::UnknownType {
            kind: name.to_owned(),
            suggestion: nearest(name, KINDS.iter().map(|(known, _)| *known)).map(str::to_owned),
        })
    }

    /// Returns the name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Oci => "oci",
            Self::Docker => "docker",
            Self::Local => "local",
            Self::Tar => "tar",
        }
    }

    /// Returns the name of the export's vertex.
    pub fn vertex_name(self) -> &'static str {
        match self {
            Self::Image => "exporting to image",
            Self::Oci => "exporting to oci image format",
            Self::Docker => "exporting to docker image format",
            Self::Local => "exporting to client directory",
            Self::Tar => "exporting to client tarball",
        }
    }

    fn names(self) -> impl Iterator<Item = &'static str> {
        let own: [&[&str]; 2] = match self {
            Self::Image => [COMMIT_NAMES, IMAGE_NAMES],
            Self::Oci | Self::Docker => [COMMIT_NAMES, &["tar"]],
            Self::Local | Self::Tar => [FILE_NAMES, &[]],
        };
        own.into_iter().flatten().copied().chain(CLIENT_NAMES.iter().copied())
    }
}

/// How images are made.
#[derive(Debug, Clone, PartialEq)]
pub struct CommitOptions {
    /// Names as given: references separated by commas, `*` for the frontend's own, empty for none.
    pub name: String,
    pub compression: Compression,
    /// Recompress layers that are in another form.
    pub force_compression: bool,
    /// OCI media types; unset takes the default of the compatibility level.
    pub oci_types: Option<bool>,
    /// Attestations as OCI artifacts; unset takes the default.
    pub oci_artifact: Option<bool>,
    /// Also put out attestations that are meant for the build history only.
    pub inline_attestations: bool,
    /// Keep media types and addresses of non-distributable layers.
    pub prefer_nondist: bool,
    /// Cut file times in new layers to the epoch.
    pub rewrite_timestamp: bool,
    /// `source-date-epoch`: `Some(None)` switches off what the frontend says.
    pub epoch: Option<Option<i64>>,
    pub annotations: AnnotationSet,
    /// Metadata from attributes, added to the frontend's.
    pub metadata: BTreeMap<String, Vec<u8>>,
}

/// What the `image` exporter does with an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageOptions {
    pub push: bool,
    pub push_by_digest: bool,
    pub insecure: bool,
    pub unpack: bool,
    pub store: bool,
    pub store_incomplete: bool,
    pub name_canonical: bool,
    pub dangling_prefix: String,
    pub dangling_empty_only: bool,
}

/// How files are put out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileOptions {
    pub epoch: Option<Option<i64>>,
    pub attestation_prefix: String,
    /// Directories per platform; unset means: where there are several.
    pub platform_split: Option<bool>,
    pub mode: LocalMode,
}

/// What the `local` exporter does with files of the destination that the result lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LocalMode {
    #[default]
    Copy,
    Delete,
}

impl Default for CommitOptions {
    fn default() -> Self {
        Self {
            name: String::new(),
            compression: Compression { kind: Kind::Gzip, level: None },
            force_compression: false,
            oci_types: None,
            oci_artifact: None,
            inline_attestations: false,
            prefer_nondist: false,
            rewrite_timestamp: false,
            epoch: None,
            annotations: AnnotationSet::default(),
            metadata: BTreeMap::new(),
        }
    }
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self {
            push: false,
            push_by_digest: false,
            insecure: false,
            unpack: false,
            store: true,
            store_incomplete: false,
            name_canonical: false,
            dangling_prefix: String::new(),
            dangling_empty_only: false,
        }
    }
}

/// All that attributes say.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    pub kind: ExporterKind,
    pub commit: CommitOptions,
    pub image: ImageOptions,
    pub files: FileOptions,
    /// `oci` and `docker`: one archive; false is a directory.
    pub tar: bool,
}

impl Options {
    /// Reads the attributes of the exporter `kind`.
    ///
    /// # Errors
    /// An attribute that is unknown, has an invalid value, or excludes another.
    pub fn parse(kind: ExporterKind, attributes: &BTreeMap<String, String>) -> Result<Self> {
        let mut options = Self {
            kind,
            commit: CommitOptions::default(),
            image: ImageOptions::default(),
            files: FileOptions::default(),
            tar: true,
        };
        // What is attested by default goes with images, and is too much for archives of them.
        options.commit.inline_attestations = kind == ExporterKind::Image;
        for (name, value) in attributes {
            let images = !matches!(kind, ExporterKind::Local | ExporterKind::Tar);
            if images && options.commit.annotations.accept(name, value)? {
                continue;
            }
            if name.starts_with("attest:") {
                // What is attested is up to the request; clients of BuildKit say it here too, where it changes nothing.
                continue;
            }
            if kind.names().any(|known| known == name) {
                options.set(name, value)?;
            } else if images && METADATA_PREFIXES.iter().any(|p| name.starts_with(p)) {
                options.commit.metadata.insert(name.clone(), value.clone().into_bytes());
            } else {
                let suggestion = nearest(name, kind.names()).map(str::to_owned);
                return Err(ExportError::UnknownAttribute { kind: kind.as_str(), name: name.clone(), suggestion });
            }
        }
        options.commit.compression.level = level(attributes, options.commit.compression.kind)?;
        options.check()?;
        // An image that is pushed and not even unpacked here is for elsewhere; keeping it would fetch layers that nothing reads.
        let elsewhere = options.image.push && attributes.contains_key("unpack") && !options.image.unpack;
        if elsewhere && !attributes.contains_key("store") {
            options.image.store = false;
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let (commit, image, files) = (&mut self.commit, &mut self.image, &mut self.files);
        match name {
            "name" => commit.name = value.to_owned(),
            "compression" => commit.compression.kind = compression(name, value)?,
            "force-compression" => commit.force_compression = boolean(name, value)?,
            "oci-mediatypes" => commit.oci_types = Some(boolean(name, value)?),
            "oci-artifact" => commit.oci_artifact = Some(boolean(name, value)?),
            "attestation-inline" => commit.inline_attestations = boolean(name, value)?,
            "prefer-nondist-layers" => commit.prefer_nondist = boolean(name, value)?,
            "rewrite-timestamp" => commit.rewrite_timestamp = boolean(name, value)?,
            "source-date-epoch" => {
                let epoch = Some(parse_epoch(name, value)?);
                (commit.epoch, files.epoch) = (epoch, epoch);
            }
            "push" => image.push = boolean(name, value)?,
            "push-by-digest" => image.push_by_digest = boolean(name, value)?,
            "registry.insecure" => image.insecure = boolean(name, value)?,
            "unpack" => image.unpack = boolean(name, value)?,
            "store" => image.store = boolean(name, value)?,
            "unsafe-internal-store-allow-incomplete" => image.store_incomplete = boolean(name, value)?,
            "name-canonical" => image.name_canonical = boolean(name, value)?,
            "dangling-name-prefix" => image.dangling_prefix = value.to_owned(),
            "danging-name-empty-only" => image.dangling_empty_only = boolean(name, value)?,
            "tar" => self.tar = boolean(name, value)?,
            "attestation-prefix" => files.attestation_prefix = file_name(name, value)?,
            "platform-split" => files.platform_split = Some(boolean(name, value)?),
            "mode" => files.mode = mode(name, value)?,
            // The level is read when the compression is known; the client's names mean nothing here.
            _ => {}
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let conflict = |first: &str, second: &str| {
            Err(ExportError::Conflict { first: first.to_owned(), second: second.to_owned() })
        };
        let commit = &self.commit;
        if commit.oci_types == Some(false) && commit.oci_artifact == Some(true) {
            return conflict("oci-artifact=true", "oci-mediatypes=false");
        }
        if commit.rewrite_timestamp && self.image.unpack {
            return conflict("rewrite-timestamp", "unpack");
        }
        if commit.name != "*" {
            names(&commit.name)?;
        }
        if self.image.push && commit.name.is_empty() && self.image.dangling_prefix.is_empty() {
            return Err(ExportError::invalid("push", "true", "tag is needed when pushing to registry"));
        }
        Ok(())
    }
}

/// Splits a list of names and completes each: `a,b:1` is `docker.io/library/a:latest` and `docker.io/library/b:1`.
///
/// # Errors
/// A name that is no reference.
pub fn names(list: &str) -> Result<Vec<Reference>> {
    let parse = |name: &str| Reference::parse(name).map_err(|e| ExportError::invalid("name", name, e.to_string()));
    list.split(',').filter(|_| !list.is_empty()).map(|name| parse(name.trim())).collect()
}

/// Reads a boolean as Go does; the bare name of an attribute means yes.
fn boolean(name: &str, value: &str) -> Result<bool> {
    match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(ExportError::invalid(name, value, "expected true or false")),
    }
}

fn compression(name: &str, value: &str) -> Result<Kind> {
    match value {
        "uncompressed" => Ok(Kind::None),
        "gzip" => Ok(Kind::Gzip),
        "zstd" => Ok(Kind::Zstd),
        "estargz" | "nydus" => Err(ExportError::invalid(name, value, "not supported, use gzip or zstd")),
        _ => Err(ExportError::invalid(name, value, "expected uncompressed, gzip or zstd")),
    }
}

fn level(attributes: &BTreeMap<String, String>, kind: Kind) -> Result<Option<i32>> {
    let name = "compression-level";
    let Some(value) = attributes.get(name) else { return Ok(None) };
    let most = if kind == Kind::Zstd { 22 } else { 9 };
    let why = || ExportError::invalid(name, value, format!("expected a whole number from 0 to {most}"));
    let level: i32 = value.parse().map_err(|_| why())?;
    if (0..=most).contains(&level) { Ok(Some(level)) } else { Err(why()) }
}

fn mode(name: &str, value: &str) -> Result<LocalMode> {
    match value {
        "" | "copy" => Ok(LocalMode::Copy),
        "delete" => Ok(LocalMode::Delete),
        _ => Err(ExportError::invalid(name, value, "expected copy or delete")),
    }
}

fn file_name(name: &str, value: &str) -> Result<String> {
    if value.contains(['/', '\0']) {
        return Err(ExportError::invalid(name, value, "it begins a file name and cannot hold a slash"));
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests;
