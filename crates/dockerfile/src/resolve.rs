//! What a plan needs from outside, and the answers.
//!
//! The compiler does no I/O: [`crate::plan`] lists what is missing, the caller fetches it, and plans again.

use std::collections::BTreeMap;

use kiln_llb::Definition;
use kiln_llb::builder::ResolveMode;
use kiln_oci::Platform;
use kiln_stdx::Digest;

use crate::source::Lines;

/// Something the caller has to fetch before the plan is complete.
#[derive(Debug, Clone, PartialEq)]
pub enum Wanted {
    /// Answer with [`Resolved::add_image`].
    Image(WantedImage),
    /// The `.dockerignore` of a named local directory. Answer with [`Resolved::add_ignore_file`].
    IgnoreFile(WantedIgnoreFile),
    /// The modification time of a source (`SOURCE_DATE_EPOCH=context` and the like). Answer with
    /// [`Resolved::add_time`].
    Time(WantedTime),
}

/// An image whose digest and config are needed.
#[derive(Debug, Clone, PartialEq)]
pub struct WantedImage {
    /// Complete, `docker.io/library/x:latest`.
    pub reference: String,
    pub platform: Platform,
    pub resolve_mode: ResolveMode,
    /// Name of the vertex that shows the look-up.
    pub name: String,
    /// Session and store when the image is in an OCI layout of the client.
    pub layout: Option<(String, String)>,
    /// The name as the user wrote it, to say what was not found.
    pub written: String,
    /// Where it is asked for.
    pub lines: Lines,
    /// Names that a misspelled stage could have been: stages of the file.
    pub alternatives: Vec<String>,
}

/// The ignore file of a named local directory.
#[derive(Debug, Clone, PartialEq)]
pub struct WantedIgnoreFile {
    /// Session-local name of the directory.
    pub local: String,
    /// Reads the directory with nothing but `.dockerignore`.
    pub definition: Definition,
}

/// The time of a source: a git commit, an HTTP `Last-Modified`, the newest entry of an archive.
#[derive(Debug, Clone, PartialEq)]
pub struct WantedTime {
    /// The value of `SOURCE_DATE_EPOCH`.
    pub value: String,
    /// A graph with the source.
    pub definition: Definition,
    /// Name of the vertex that shows the look-up.
    pub name: String,
}

/// A fetched image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedImage {
    /// The reference to use, which a source policy may have changed.
    pub reference: String,
    /// Digest of the manifest or index to pin; none keeps the tag.
    pub digest: Option<Digest>,
    /// The image config as it was received.
    pub config: Vec<u8>,
}

/// Everything fetched so far for one plan.
#[derive(Debug, Clone, Default)]
pub struct Resolved {
    images: BTreeMap<ImageKey, ResolvedImage>,
    ignore_files: BTreeMap<String, Vec<u8>>,
    times: BTreeMap<String, Option<i64>>,
}

impl Resolved {
    /// Stores an image.
    pub fn add_image(&mut self, wanted: &WantedImage, image: ResolvedImage) {
        self.images.insert(image_key(wanted), image);
    }

    /// Stores the text of an ignore file; empty when there is none.
    pub fn add_ignore_file(&mut self, wanted: &WantedIgnoreFile, text: Vec<u8>) {
        self.ignore_files.insert(wanted.local.clone(), text);
    }

    /// Stores the time of a source in Unix seconds; none when it has none, which leaves the epoch unset.
    pub fn add_time(&mut self, wanted: &WantedTime, seconds: Option<i64>) {
        self.times.insert(wanted.value.clone(), seconds);
    }

    pub(crate) fn image(&self, wanted: &WantedImage) -> Option<&ResolvedImage> {
        self.images.get(&image_key(wanted))
    }

    pub(crate) fn ignore_file(&self, local: &str) -> Option<&[u8]> {
        self.ignore_files.get(local).map(Vec::as_slice)
    }

    pub(crate) fn time(&self, value: &str) -> Option<Option<i64>> {
        self.times.get(value).copied()
    }
}

/// Reference, platform with resolve mode, layout.
type ImageKey = (String, String, Option<(String, String)>);

fn image_key(wanted: &WantedImage) -> ImageKey {
    let platform = format!("{}|{}", crate::names::format_platform(&wanted.platform), wanted.resolve_mode.as_str());
    (wanted.reference.clone(), platform, wanted.layout.clone())
}
