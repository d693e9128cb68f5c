//! What the unit tests share.

use std::sync::Arc;
use std::time::Duration;

use kiln_snapshot::layer::{FileMeta, LayerBuilder};
use kiln_stdx::ManualClock;
use tempfile::TempDir;

use crate::{ImmutableRef, Layer, LayerInfo, Store, StoreConfig};

/// A store in a directory of its own, with a clock that the test moves.
pub(crate) struct Fixture {
    pub dir: TempDir,
    pub clock: ManualClock,
    pub store: Store,
}

pub(crate) fn fixture(recheck: Duration) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::at(1_700_000_000);
    let store = open(&dir, &clock, recheck);
    Fixture { dir, clock, store }
}

pub(crate) fn open(dir: &TempDir, clock: &ManualClock, recheck: Duration) -> Store {
    let root = dir.path().join("root");
    Store::open(StoreConfig { root, recheck, clock: Arc::new(clock.clone()) }).unwrap()
}

/// Metadata that any user may give: the files of the one who runs the tests.
pub(crate) fn meta(mode: u32) -> FileMeta {
    FileMeta {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        ..FileMeta::new(mode, (1_600_000_000, 5))
    }
}

/// Commits a layer on `below` that `build` fills.
pub(crate) fn commit(
    below: &ImmutableRef,
    info: LayerInfo,
    build: impl FnOnce(&mut LayerBuilder<'_>),
) -> (Layer, ImmutableRef) {
    let store = below.store();
    let draft = store.draft().unwrap();
    let (lower, dirs) = (below.tree().unwrap(), below.dirs());
    let mut builder = LayerBuilder::new(&draft.fs(), &lower, &dirs).unwrap();
    builder.set_implicit(meta(0o755));
    build(&mut builder);
    let manifest = builder.finish().unwrap();
    let layer = store.commit(draft, manifest, LayerInfo { chain: below.layer_ids(), ..info }).unwrap();
    (layer.clone(), below.with_layer(layer))
}

/// Commits a layer with one file.
pub(crate) fn one_file(below: &ImmutableRef, name: &str, bytes: &[u8]) -> (Layer, ImmutableRef) {
    commit(below, LayerInfo { description: name.to_owned(), ..LayerInfo::default() }, |b| {
        b.file_from_bytes(name.as_bytes(), &meta(0o644), bytes).unwrap();
    })
}

/// Tells whether tests may change owners.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
