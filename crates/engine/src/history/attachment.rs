//! What is kept of a build beside its record: logs, errors, traces, statements.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_stdx::Digest;
use kiln_store::Table;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::events::EventLog;

/// Largest attachment in bytes; logs are cut there.
pub const ATTACHMENT_MAX: usize = 4 << 20;
/// Annotation of a statement: what it says something of.
pub const PREDICATE_KEY: &str = "in-toto.io/predicate-type";

/// Names bytes that are kept with a record, as an OCI descriptor does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attachment {
    pub media_type: String,
    pub digest: String,
    /// In bytes.
    pub size: u64,
    pub annotations: BTreeMap<String, String>,
}

/// An error as clients are told of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failure {
    /// The status code of the call.
    pub code: i32,
    pub message: String,
    /// All of it with its details, as one message.
    pub encoded: Vec<u8>,
}

/// Writes what is kept of a build in the form that clients read: the wire is not the engine's business.
pub trait Scribe: Send + Sync {
    /// Returns all events so far, at most `most` bytes of them.
    fn events(&self, log: &EventLog, most: usize) -> Vec<u8>;

    /// Returns an error.
    fn failure(&self, error: &EngineError) -> Failure;
}

/// Writes what is told of a result. That takes longer than a build in which nothing changed, so it is done when the record
/// is kept.
pub type Telling = Box<dyn FnOnce() -> Result<bytes::Bytes, EngineError> + Send>;

/// What a build leaves for its record while it runs.
#[derive(Default)]
pub struct Kept {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    results: BTreeMap<usize, Attachment>,
    documents: Vec<(String, Vec<u8>)>,
    statements: Vec<(String, String, Telling)>,
}

impl Kept {
    /// Notes what output number `output` delivered, by what it told its client, with media type and bytes of
    /// the manifests and indexes that it consists of.
    pub fn delivered(&self, output: usize, response: &BTreeMap<String, String>, documents: Vec<(String, Vec<u8>)>) {
        use base64::Engine as _;
        let Some(text) = response.get("containerimage.descriptor") else { return };
        let json = base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
        let Ok(descriptor) = serde_json::from_slice::<kiln_oci::Descriptor>(&json) else { return };
        let attachment = Attachment {
            media_type: descriptor.media_type,
            digest: descriptor.digest.to_string(),
            size: descriptor.size,
            annotations: descriptor.annotations.into_iter().collect(),
        };
        let mut inner = self.inner.lock();
        inner.results.insert(output, attachment);
        inner.documents.extend(documents);
    }

    /// Notes what is told of one platform's result; `platform` is empty for a result without platforms.
    pub fn told(&self, platform: &str, predicate_type: &str, predicate: Telling) {
        self.inner.lock().statements.push((platform.to_owned(), predicate_type.to_owned(), predicate));
    }

    /// Returns what the outputs delivered.
    pub fn results(&self) -> BTreeMap<usize, Attachment> {
        self.inner.lock().results.clone()
    }

    /// Returns media type and bytes of what images consist of, and forgets them.
    pub fn take_documents(&self) -> Vec<(String, Vec<u8>)> {
        std::mem::take(&mut self.inner.lock().documents)
    }

    /// Returns platform, predicate type and predicate of everything that was told, and forgets it.
    pub fn take_statements(&self) -> Vec<(String, String, Telling)> {
        std::mem::take(&mut self.inner.lock().statements)
    }
}

/// The bytes of attachments, each once.
#[derive(Clone)]
pub struct Attachments(Arc<Table>);

impl Attachments {
    /// Returns the attachments in `table`.
    pub fn new(table: Table) -> Self {
        Self(Arc::new(table))
    }

    /// Keeps bytes; none for more than a record may have.
    pub fn add(&self, media_type: &str, bytes: &[u8]) -> Option<Attachment> {
        if bytes.is_empty() || bytes.len() > ATTACHMENT_MAX {
            return None;
        }
        let digest = Digest::of(bytes);
        self.0.put(digest.to_string().as_bytes(), bytes);
        let (media_type, size) = (media_type.to_owned(), bytes.len() as u64);
        Some(Attachment { media_type, digest: digest.to_string(), size, annotations: BTreeMap::new() })
    }

    /// Returns the bytes of an attachment, verified.
    pub fn get(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.0.get(digest.to_string().as_bytes()).filter(|bytes| Digest::of(bytes) == *digest)
    }

    /// Drops the bytes of an attachment that no record names.
    pub fn remove(&self, digest: &str) {
        self.0.delete(digest.as_bytes());
    }
}
