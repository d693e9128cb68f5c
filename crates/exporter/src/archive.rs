//! An image as an OCI layout: in one tar archive, as `docker load` and others take it, or as a directory.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use kiln_oci::{Descriptor, Index, Reference, media, to_ordered_json};
use kiln_stdx::fault;
use serde::Serialize;

use crate::commit::BuiltImage;
use crate::content::Content;
use crate::context::ExportContext;
use crate::error::{ExportError, Result};
use crate::progress::Status;
use crate::tar_stream;

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const IMAGE_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CREATED: &str = "org.opencontainers.image.created";
/// Status while the archive is on its way.
const SENDING: &str = "sending tarball";

/// The files of an OCI layout, Docker's `manifest.json` beside them where it is wanted.
#[derive(Clone)]
pub struct Archive {
    context: ExportContext,
    /// In archive order: component order of their paths.
    files: BTreeMap<String, File>,
}

#[derive(Clone)]
enum File {
    Document(Vec<u8>),
    Content(Box<Content>),
}

/// An entry of Docker's `manifest.json`.
#[derive(Serialize)]
struct DockerEntry {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags")]
    repo_tags: Option<Vec<String>>,
    #[serde(rename = "Layers")]
    layers: Vec<String>,
}

impl Archive {
    /// Lays out `image`.
    ///
    /// # Errors
    /// Never for an image built here.
    pub(crate) fn new(context: &ExportContext, image: &BuiltImage, docker: bool) -> Result<Self> {
        let mut files = BTreeMap::new();
        for content in image.contents() {
            files.insert(blob_path(&content.descriptor), File::Content(Box::new(content.clone())));
        }
        files.insert("oci-layout".to_owned(), File::Document(LAYOUT.to_vec()));
        files.insert("index.json".to_owned(), File::Document(index(image)?));
        if docker {
            files.insert("manifest.json".to_owned(), File::Document(docker_manifest(image)?));
        }
        Ok(Self { context: context.clone(), files })
    }

    /// Writes the archive. Equal images give equal bytes.
    ///
    /// # Errors
    /// Damaged or missing blobs, an output that takes no more, a build that was called off. What was written by then is
    /// no whole archive: its end is missing.
    pub fn write_to(&self, out: &mut dyn Write) -> Result<()> {
        let total = self.files.values().map(File::size).sum();
        let mut status = Status::start(&self.context.progress, SENDING, total);
        let write = |e| ExportError::write("the image archive")(e);
        for directory in ["blobs/", "blobs/sha256/"] {
            tar_stream::write_plain(out, directory, 0).map_err(write)?;
        }
        for (path, file) in &self.files {
            self.context.check_canceled()?;
            fault::point("exporter.archive.entry").map_err(write)?;
            tar_stream::write_plain(out, path, file.size()).map_err(write)?;
            file.copy_to(&self.context, out, &mut |n| status.add(n))?;
            tar_stream::write_padding(out, file.size()).map_err(write)?;
        }
        tar_stream::write_end(out).map_err(write)?;
        out.flush().map_err(write)
    }

    /// Writes the layout below `directory`, which may exist: blobs that are there are left, others are written aside and
    /// renamed, `index.json` last.
    ///
    /// # Errors
    /// As [`Self::write_to`].
    pub fn write_directory(&self, directory: &Path) -> Result<()> {
        let total = self.files.values().map(File::size).sum();
        let mut status = Status::start(&self.context.progress, SENDING, total);
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(ExportError::write(blobs.display().to_string()))?;
        let last = |path: &&String| path.as_str() == "index.json";
        for (path, file) in
            self.files.iter().filter(|(p, _)| !last(p)).chain(self.files.iter().filter(|(p, _)| last(p)))
        {
            self.context.check_canceled()?;
            let target = directory.join(path);
            let there = fs::metadata(&target).is_ok_and(|m| m.is_file() && m.len() == file.size());
            if there && matches!(file, File::Content(_)) {
                status.add(file.size());
                continue;
            }
            self.publish(file, &target, &mut status)?;
        }
        Ok(())
    }

    /// Writes one file aside and renames it.
    fn publish(&self, file: &File, target: &Path, status: &mut Status) -> Result<()> {
        let aside = Aside(target.with_file_name(format!(".kiln-{}", kiln_stdx::rand_id())));
        let failed = |e: io::Error| ExportError::write(target.display().to_string())(e);
        let mut out = fs::File::create_new(&aside.0).map_err(failed)?;
        file.copy_to(&self.context, &mut out, &mut |n| status.add(n))?;
        drop(out);
        fs::rename(&aside.0, target).map_err(failed)
    }

    /// Returns the path and size of each file, in order.
    pub fn list(&self) -> impl Iterator<Item = (&str, u64)> {
        self.files.iter().map(|(path, file)| (path.as_str(), file.size()))
    }
}

/// A file that is removed unless it was renamed away.
struct Aside(PathBuf);

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl File {
    fn size(&self) -> u64 {
        match self {
            Self::Document(bytes) => bytes.len() as u64,
            Self::Content(content) => content.descriptor.size,
        }
    }

    fn copy_to(&self, context: &ExportContext, out: &mut dyn Write, moved: &mut dyn FnMut(u64)) -> Result<()> {
        match self {
            Self::Document(bytes) => {
                out.write_all(bytes).map_err(ExportError::write("the image archive"))?;
                moved(bytes.len() as u64);
                Ok(())
            }
            Self::Content(content) => content.copy_to(&*context.remote, out, moved),
        }
    }
}

fn blob_path(descriptor: &Descriptor) -> String {
    format!("blobs/sha256/{}", descriptor.digest.hex())
}

/// Returns `index.json`: the image once under each of its names.
fn index(image: &BuiltImage) -> Result<Vec<u8>> {
    let mut plain = image.descriptor.clone();
    plain.annotations.entry(CREATED.to_owned()).or_insert_with(|| image.created.clone());
    let named = |name: &Reference| {
        let mut descriptor = plain.clone();
        descriptor.annotations.insert(IMAGE_NAME.to_owned(), name.to_string());
        if let Some(tag) = name.tag() {
            descriptor.annotations.insert(REF_NAME.to_owned(), tag.to_owned());
        }
        descriptor
    };
    let manifests = match image.names.as_slice() {
        [] => vec![plain.clone()],
        names => names.iter().map(named).collect(),
    };
    Ok(to_ordered_json("index", &Index::new(media::OCI_INDEX, manifests))?)
}

/// Returns Docker's own list of what the archive holds.
fn docker_manifest(image: &BuiltImage) -> Result<Vec<u8>> {
    let tags: Vec<String> = image.names.iter().filter(|n| n.tag().is_some()).map(Reference::familiar).collect();
    let repo_tags = if tags.is_empty() { None } else { Some(tags) };
    let entries: Vec<DockerEntry> = image
        .image_manifests()?
        .into_iter()
        .map(|(_, manifest)| DockerEntry {
            config: blob_path(&manifest.config),
            repo_tags: repo_tags.clone(),
            layers: manifest.layers.iter().map(blob_path).collect(),
        })
        .collect();
    Ok(to_ordered_json("manifest.json", &entries)?)
}

#[cfg(test)]
mod tests;
