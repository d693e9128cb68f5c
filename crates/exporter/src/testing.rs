//! A store with layers in it, for this crate's tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use kiln_oci::Platform;
use kiln_snapshot::LayerBuilder;
use kiln_snapshot::layer::FileMeta;
use kiln_stdx::ManualClock;
use kiln_store::{ImmutableRef, LayerInfo, Store, StoreConfig};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{ExportContext, ExportProgress, ExportSource, Exporter, NoRemoteLayers, PlatformResult};

/// The time at which everything in the fixture happens: 2023-11-14T22:13:20Z.
pub(crate) const NOW: u64 = 1_700_000_000;
pub(crate) const AMD64: &str = r#"{"architecture":"amd64","os":"linux","config":{"Cmd":["/hello"]}}"#;

pub(crate) struct Fixture {
    dir: tempfile::TempDir,
    pub(crate) store: Store,
    pub(crate) progress: Arc<Recorder>,
}

/// Remembers what was reported.
#[derive(Default)]
pub(crate) struct Recorder(pub(crate) Mutex<Vec<String>>);

impl ExportProgress for Recorder {
    fn started(&self, id: &str, _: u64) {
        self.0.lock().push(id.to_owned());
    }
    fn advanced(&self, _: &str, _: u64, _: u64) {}
    fn completed(&self, _: &str) {}
    fn warn(&self, message: &str) {
        self.0.lock().push(format!("warning: {message}"));
    }
}

pub(crate) fn meta(mode: u32) -> FileMeta {
    FileMeta::new(mode, (NOW as i64, 0))
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = StoreConfig::new(dir.path().join("root"));
        let clock = ManualClock::at(NOW);
        clock.advance(std::time::Duration::from_millis(250));
        config.clock = Arc::new(clock);
        Self { store: Store::open(config).unwrap(), dir, progress: Arc::default() }
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.dir.path()
    }

    pub(crate) fn context(&self) -> ExportContext {
        ExportContext {
            store: self.store.clone(),
            remote: Arc::new(NoRemoteLayers),
            progress: self.progress.clone(),
            compatibility: 30,
            cancel: CancellationToken::new(),
        }
    }

    /// Puts a layer on top of `lower`.
    pub(crate) fn layer(
        &self,
        lower: &ImmutableRef,
        description: &str,
        fill: impl FnOnce(&mut LayerBuilder<'_>),
    ) -> ImmutableRef {
        let draft = self.store.draft().unwrap();
        let (tree, dirs) = (lower.tree().unwrap(), lower.dirs());
        let mut builder = LayerBuilder::new(&draft.fs(), &tree, &dirs).unwrap();
        builder.set_implicit(meta(0o755));
        fill(&mut builder);
        let manifest = builder.finish().unwrap();
        let info = LayerInfo { chain: lower.layer_ids(), description: description.into(), ..LayerInfo::default() };
        lower.with_layer(self.store.commit(draft, manifest, info).unwrap())
    }

    /// Two layers: files with a hard link and a link, and then changes to them.
    pub(crate) fn image(&self) -> ImmutableRef {
        let base = self.layer(&self.store.scratch(), "base", |b| {
            b.file_from_bytes(b"bin/hello", &meta(0o4755), b"#!hello").unwrap();
            b.hard_link(b"bin/hello", b"bin/hi").unwrap();
            b.symlink(b"hello", b"bin/hello", &meta(0o777)).unwrap();
            b.file_from_bytes(b"gone", &meta(0o644), b"bye").unwrap();
        });
        self.layer(&base, "RUN change", |b| {
            b.remove(b"gone").unwrap();
            b.file_from_bytes(b"data/big", &meta(0o600), &vec![7; 300_000]).unwrap();
        })
    }

    pub(crate) fn source(&self) -> ExportSource {
        let entry = PlatformResult {
            reference: Some(self.image()),
            config: Some(Bytes::from_static(AMD64.as_bytes())),
            ..PlatformResult::default()
        };
        ExportSource { entries: vec![entry], ..ExportSource::default() }
    }

    /// The same image for two platforms.
    pub(crate) fn two_platforms(&self) -> ExportSource {
        let mut source = self.source();
        source.keyed = true;
        let mut other = source.entries[0].clone();
        other.config = Some(AMD64.replace("amd64", "arm64").into());
        source.entries.push(other);
        for (entry, id) in source.entries.iter_mut().zip(["linux/amd64", "linux/arm64"]) {
            entry.id = id.to_owned();
            entry.platform = Some(Platform::parse(id).unwrap());
        }
        source
    }
}

pub(crate) fn exporter(kind: &str, attributes: &[(&str, &str)]) -> Exporter {
    Exporter::parse(kind, &map(attributes)).unwrap()
}

pub(crate) fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}
