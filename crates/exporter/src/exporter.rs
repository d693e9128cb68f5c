//! The exporters: from attributes and a result to an output that can be delivered.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use kiln_registry::{Credentials, Registry};
use kiln_session::Session;

use crate::archive::Archive;
use crate::cache_export::CacheCompression;
use crate::commit::{self, BuiltImage, LayerBytes};
use crate::content::Content;
use crate::context::ExportContext;
use crate::error::{ExportError, Result};
use crate::files::FileSet;
use crate::options::{ExporterKind, LocalMode, Options};
use crate::source::ExportSource;
use crate::{image, push, send, tar_stream};

/// Name of the client's blob store that takes an OCI directory.
const EXPORT_STORE: &str = "export";

/// One output of a build, its attributes checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Exporter {
    options: Options,
}

/// What a build put out, ready to be handed over.
pub struct Built {
    /// What the client is told: `containerimage.digest` and others.
    pub response: BTreeMap<String, String>,
    /// Media type and bytes of an image's manifests and indexes.
    pub documents: Vec<(String, Vec<u8>)>,
    pub output: Output,
    context: ExportContext,
}

/// The forms of outputs.
pub enum Output {
    /// One file for the client: an image archive.
    Archive(Archive),
    /// Blobs for the client's OCI directory, children before parents.
    Layout(Vec<Content>),
    /// One file for the client: a tarball of files.
    Tarball(Arc<FileSet>),
    /// A directory for the client; `mirror` removes what it has besides.
    Directory { files: Arc<FileSet>, mirror: bool },
    /// An image for the local store, a registry, or both.
    Image { image: Box<BuiltImage>, options: Options },
}

impl Exporter {
    /// Reads the wire name and the attributes of an exporter.
    ///
    /// # Errors
    /// An unknown exporter or attribute, an invalid value.
    pub fn parse(kind: &str, attributes: &BTreeMap<String, String>) -> Result<Self> {
        let kind = ExporterKind::parse(kind)?;
        Ok(Self { options: Options::parse(kind, attributes)? })
    }

    /// Returns which exporter this is.
    pub fn kind(&self) -> ExporterKind {
        self.options.kind
    }

    /// Returns what the attributes say.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Returns how the layers of an image are going to be compressed.
    pub fn compression(&self) -> CacheCompression {
        let commit = &self.options.commit;
        CacheCompression { compression: commit.compression, force: commit.force_compression }
    }

    /// Tells whether the files of every layer are going to be read, or are asked for.
    pub fn needs_files(&self) -> bool {
        match self.options.kind {
            ExporterKind::Local | ExporterKind::Tar => true,
            ExporterKind::Image => self.options.image.unpack,
            ExporterKind::Oci | ExporterKind::Docker => false,
        }
    }

    /// Tells whether the bytes of every layer's blob are going to be read. A registry may have them, so a push alone does
    /// not say.
    pub fn needs_bytes(&self) -> bool {
        match self.options.kind {
            ExporterKind::Local | ExporterKind::Tar => false,
            ExporterKind::Oci | ExporterKind::Docker => true,
            ExporterKind::Image => self.options.image.store && !self.options.image.store_incomplete,
        }
    }

    /// Makes the output of `source`. Blocking: call it on a thread that may wait.
    ///
    /// # Errors
    /// A result that this exporter cannot put out, layers that cannot be had, damage.
    pub fn build(&self, context: &ExportContext, source: &ExportSource) -> Result<Built> {
        let options = &self.options;
        let built = |response, documents, output| Built { response, documents, output, context: context.clone() };
        match options.kind {
            ExporterKind::Local | ExporterKind::Tar => {
                let files = Arc::new(FileSet::collect(context, &options.files, source)?);
                let mirror = options.files.mode == LocalMode::Delete;
                let output = match options.kind {
                    ExporterKind::Local => Output::Directory { files, mirror },
                    _ => Output::Tarball(files),
                };
                Ok(built(BTreeMap::new(), Vec::new(), output))
            }
            ExporterKind::Oci | ExporterKind::Docker => {
                let image = commit::build(context, options.kind, &options.commit, LayerBytes::Needed, source)?;
                let response = image.response()?;
                let output = match options.tar {
                    true => Output::Archive(Archive::new(context, &image, options.kind == ExporterKind::Docker)?),
                    false => Output::Layout(image.contents().cloned().collect()),
                };
                Ok(built(response, image.documents(), output))
            }
            ExporterKind::Image => {
                let bytes = if self.needs_bytes() { LayerBytes::Needed } else { LayerBytes::MayBeElsewhere };
                let mut image = commit::build(context, options.kind, &options.commit, bytes, source)?;
                image::add_dangling_name(&mut image, &options.image)?;
                image::identify(context, options, source)?;
                if self.needs_files() {
                    let references = source.entries.iter().filter_map(|e| e.reference.as_ref());
                    references.filter(|r| !r.is_unpacked()).try_for_each(|r| context.remote.unpack(r))?;
                }
                let response = image.response()?;
                Ok(built(
                    response,
                    image.documents(),
                    Output::Image { image: Box::new(image), options: options.clone() },
                ))
            }
        }
    }
}

impl Built {
    /// Hands the output to the client's exporter `id`, or puts it into the image store. Pushing is apart, in
    /// [`Self::push`], so that it can run beside other exports' ends.
    ///
    /// # Errors
    /// A client or a disk that does not take it; damage found on the way.
    pub async fn deliver(&self, session: &Arc<Session>, id: u32) -> Result<()> {
        let context = self.context.clone();
        match &self.output {
            Output::Archive(archive) => {
                let archive = archive.clone();
                send::file(&self.context, session, id, &self.response, move |out| archive.write_to(out)).await
            }
            Output::Tarball(files) => {
                let files = files.clone();
                let write = move |out: &mut dyn Write| tar_stream::write_files(&context, &files, out);
                send::file(&self.context, session, id, &BTreeMap::new(), write).await
            }
            Output::Directory { files, mirror } => {
                send::directory(&self.context, session, id, files.clone(), *mirror).await
            }
            Output::Layout(contents) => send::contents(&self.context, session, EXPORT_STORE, contents).await,
            Output::Image { image, options } => self.store(image, options).await,
        }
    }

    /// Puts the image into the store, where this output is one that goes there. Needs no client.
    ///
    /// # Errors
    /// A full disk; a layer that cannot be had.
    pub async fn deliver_to_store(&self) -> Result<()> {
        match &self.output {
            Output::Image { image, options } => self.store(image, options).await,
            _ => Err(ExportError::Unsupported("this output needs a client".to_owned())),
        }
    }

    async fn store(&self, image: &BuiltImage, options: &Options) -> Result<()> {
        if !options.image.store {
            return Ok(());
        }
        let (context, image, options) = (self.context.clone(), image.clone(), options.image.clone());
        let work = move || image::store(&context, &image, &options);
        send::joined(tokio::task::spawn_blocking(work).await)
    }

    /// Writes an output that is one file. Blocking.
    ///
    /// # Errors
    /// As [`Self::deliver`]; an output that is no file.
    pub fn write_to(&self, out: &mut dyn Write) -> Result<()> {
        match &self.output {
            Output::Archive(archive) => archive.write_to(out),
            Output::Tarball(files) => tar_stream::write_files(&self.context, files, out),
            _ => Err(ExportError::Unsupported("this output is not one file".to_owned())),
        }
    }

    /// Uploads the image under each of its names, where `push` was asked for.
    ///
    /// # Errors
    /// The registry refuses or cannot be reached.
    pub async fn push(&self, registry: &Registry, credentials: &Credentials) -> Result<()> {
        match &self.output {
            Output::Image { image, options } if options.image.push => {
                push::push_image(&self.context, image, &options.image, registry, credentials).await
            }
            _ => Ok(()),
        }
    }
}
