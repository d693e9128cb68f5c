//! Layers, chains and blobs through the public interface.

mod common;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use common::{meta, open};
use kiln_oci::{ChainId, DiffId};
use kiln_snapshot::compress::Compression;
use kiln_snapshot::layer::LayerBuilder;
use kiln_stdx::{Digest, ErrorClass, ManualClock};
use kiln_store::{
    BlobOptions, ImmutableRef, Layer, LayerInfo, LazyLayer, RecordType, RepairAction, Store, StoreConfig, StoreError,
};

fn layer(below: &ImmutableRef, info: LayerInfo, name: &str) -> Layer {
    let store = below.store();
    let draft = store.draft().unwrap();
    let (lower, dirs) = (below.tree().unwrap(), below.dirs());
    let mut builder = LayerBuilder::new(&draft.fs(), &lower, &dirs).unwrap();
    builder.set_implicit(meta(0o755));
    builder.file_from_bytes(name.as_bytes(), &meta(0o644), name.repeat(1000).as_bytes()).unwrap();
    let manifest = builder.finish().unwrap();
    store.commit(draft, manifest, LayerInfo { chain: below.layer_ids(), ..info }).unwrap()
}

fn options(compression: Compression, force: bool) -> BlobOptions {
    BlobOptions { compression, force, epoch: None, here: false }
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("root"));
    (dir, store)
}

#[test]
fn forms_of_a_layer() {
    let (_dir, store) = store();
    let layer = layer(&store.scratch(), LayerInfo::default(), "f");
    let gzip = store.layer_blob(&layer, &options(Compression::GZIP, false)).unwrap();
    assert_eq!(store.layer_blob(&layer, &options(Compression::ZSTD, false)).unwrap().descriptor, gzip.descriptor);
    let zstd = store.layer_blob(&layer, &options(Compression::ZSTD, true)).unwrap();
    assert_ne!(zstd.descriptor.digest, gzip.descriptor.digest);
    assert_eq!((zstd.diff_id, layer.diff_id()), (gzip.diff_id, Some(gzip.diff_id)));
    let plain = store.layer_blob(&layer, &options(Compression::NONE, true)).unwrap();
    assert_eq!(DiffId(plain.descriptor.digest), plain.diff_id);
    assert_eq!(layer.descriptors().len(), 3);
    let cut = BlobOptions { epoch: Some(1000), ..options(Compression::GZIP, false) };
    let cut = store.layer_blob(&layer, &cut).unwrap();
    assert_ne!(cut.diff_id, gzip.diff_id);
    assert_eq!(layer.diff_id(), Some(gzip.diff_id), "a form with cut times is not the layer itself");
    assert_eq!(store.layer_blob(&layer, &options(Compression::GZIP, true)).unwrap().descriptor, gzip.descriptor);
}

#[test]
fn blobs_and_files_repair_each_other() {
    let (_dir, store) = store();
    let layer = layer(&store.scratch(), LayerInfo::default(), "f");
    let r = store.scratch().with_layer(layer.clone());
    let made = store.layer_blob(&layer, &options(Compression::GZIP, false)).unwrap();
    let path = made.blob.as_ref().unwrap().path().to_owned();
    std::fs::remove_file(&path).unwrap();
    let again = store.layer_blob(&layer, &options(Compression::GZIP, false)).unwrap();
    assert_eq!(again.descriptor, made.descriptor, "made again, byte for byte");
    std::fs::write(r.dirs()[0].join("f"), b"damage").unwrap();
    store.check(&r).unwrap();
    assert_eq!(std::fs::read(r.dirs()[0].join("f")).unwrap(), "f".repeat(1000).as_bytes());
    // Both at once: nothing is left to make it from.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(r.dirs()[0].join("f"), b"damage").unwrap();
    let error = store.layer_blob(&layer, &options(Compression::GZIP, false)).err().unwrap();
    assert_eq!(error.class(), ErrorClass::Damage);
    assert!(!r.is_valid());
}

#[test]
fn dropping_a_layer_drops_what_was_made_on_it() {
    let (_dir, store) = store();
    let base = store.scratch().with_layer(layer(&store.scratch(), LayerInfo::default(), "base"));
    let top = base.with_layer(layer(&base, LayerInfo::default(), "top"));
    let other = store.scratch().with_layer(layer(&store.scratch(), LayerInfo::default(), "other"));
    std::fs::remove_file(base.dirs()[0].join("base")).unwrap();
    assert_eq!(store.check(&top).unwrap_err().class(), ErrorClass::Damage);
    assert!(!base.is_valid() && !top.is_valid() && other.is_valid());
    assert!(matches!(top.tree(), Err(StoreError::Gone(_))));
    assert!(store.ref_of(&top.layer_ids()).is_none());
    assert_eq!(store.layers().len(), 1);
    let events = store.repairs().events();
    assert!(events.iter().any(|e| e.action == RepairAction::Dropped && e.subject.starts_with("layer")), "{events:?}");
}

#[test]
fn when_a_layer_was_made_is_kept_to_the_nanosecond() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::at(1_700_000_000);
    clock.advance(Duration::from_nanos(123_456_789));
    let open = || {
        let root = dir.path().join("root");
        Store::open(StoreConfig { root, recheck: Duration::ZERO, clock: Arc::new(clock.clone()) }).unwrap()
    };
    let store = open();
    let chain = |name: &str| Some(ChainId(Digest::of(name)));
    let made = |name: &str, created| {
        let info = LayerInfo { chain_id: chain(name), created, ..LayerInfo::default() };
        layer(&store.scratch(), info, name).created()
    };
    let (now, told) = (1_700_000_000_123_456_789, 1_000_000_001);
    assert_eq!((made("now", 0), made("told", told)), (now, told));
    clock.advance(Duration::from_secs(5));
    assert_eq!(made("now", 0), now, "one that is here is as old as it was");
    drop(store);
    let store = open();
    for (name, created) in [("now", now), ("told", told)] {
        assert_eq!(store.layer_by_chain_id(chain(name).unwrap()).unwrap().created(), created);
    }
    assert_eq!(store.usage().unwrap().iter().map(|record| record.created_at).collect::<Vec<_>>(), [1, 1_700_000_000]);
}

#[test]
fn equal_image_layers_are_one() {
    let (dir, store) = store();
    let chain_id = Some(ChainId(Digest::of("chain")));
    let info = || LayerInfo { chain_id, ..LayerInfo::default() };
    let first = layer(&store.scratch(), info(), "f");
    let second = layer(&store.scratch(), info(), "f");
    assert_eq!(first.id(), second.id());
    let made = store.layer_blob(&first, &options(Compression::GZIP, false)).unwrap();
    let lazy = |chain: &str| LazyLayer {
        descriptor: made.descriptor.clone(),
        diff_id: made.diff_id,
        chain_id: ChainId(Digest::of(chain)),
        origin: "registry".into(),
        chain: Vec::new(),
        created: 0,
        description: "pulled".into(),
        record_type: RecordType::Regular,
    };
    assert_eq!(store.lazy_layer(lazy("chain")).unwrap().id(), first.id());
    let other = store.lazy_layer(lazy("another chain")).unwrap();
    assert_ne!(other.id(), first.id());
    assert_eq!(store.lazy_layer(lazy("another chain")).unwrap().id(), other.id());
    let r = store.scratch().with_layer(other.clone());
    assert!(!r.is_unpacked() && matches!(r.tree(), Err(StoreError::Lazy(_))));
    store.check(&r).unwrap();
    // What is not the announced archive is refused, and the layer stays lazy.
    let wrong = store.unpack(&other, &store.scratch(), &[0u8; 1024][..]).unwrap_err();
    assert!(matches!(wrong, StoreError::Mismatch { .. }), "{wrong}");
    assert!(!other.is_unpacked());
    let drafts = dir.path().join("root/drafts");
    assert_eq!(std::fs::read_dir(&drafts).unwrap().count(), 0, "nothing of it is left");
    store.unpack(&other, &store.scratch(), made.blob.unwrap().open().unwrap()).unwrap();
    assert_eq!(r.tree().unwrap().len(), 2);
    assert_eq!(std::fs::read_dir(&drafts).unwrap().count(), 0);
}

#[test]
fn pulled_blobs_keep_their_archive_in_other_forms() {
    let (_dir, store) = store();
    let made = {
        let layer = layer(&store.scratch(), LayerInfo::default(), "f");
        store.layer_blob(&layer, &options(Compression::NONE, true)).unwrap()
    };
    // The same members with more zeros at the end: an archive that kiln would not write.
    let mut archive = std::fs::read(made.blob.unwrap().path()).unwrap();
    archive.extend([0; 4096]);
    let blob = store.put_blob(&archive).unwrap();
    let pulled = store
        .lazy_layer(LazyLayer {
            descriptor: kiln_oci::Descriptor::new(kiln_oci::media::OCI_LAYER, blob.digest(), blob.size()),
            diff_id: DiffId(blob.digest()),
            chain_id: ChainId(blob.digest()),
            origin: "registry".into(),
            chain: Vec::new(),
            created: 0,
            description: "pulled".into(),
            record_type: RecordType::Regular,
        })
        .unwrap();
    let zstd = store.layer_blob(&pulled, &options(Compression::ZSTD, true)).unwrap();
    assert_eq!(zstd.diff_id, DiffId(blob.digest()));
    assert!(!pulled.is_unpacked(), "nothing was unpacked for that");
    let same = store.layer_blob(&pulled, &options(Compression::NONE, true)).unwrap();
    assert_eq!(same.descriptor.digest, blob.digest(), "a pulled blob of the right kind serves as it is");
}

#[test]
fn blobs_are_verified_on_their_way_in() {
    let (dir, store) = store();
    let mut ingest = store.ingest(Some(Digest::of("right")), Some(5)).unwrap();
    ingest.write_all(b"wrong").unwrap();
    assert!(matches!(ingest.commit(), Err(StoreError::Mismatch { .. })));
    let mut ingest = store.ingest(None, Some(5)).unwrap();
    assert!(ingest.write_all(b"too long").is_err());
    assert!(matches!(ingest.commit(), Err(StoreError::Size { expected: 5, got: 8 })));
    let mut ingest = store.ingest(None, Some(9)).unwrap();
    ingest.write_all(b"short").unwrap();
    assert!(ingest.commit().is_err());
    assert_eq!(std::fs::read_dir(dir.path().join("root/tmp")).unwrap().count(), 0);
    let blob = store.put_blob(b"fine").unwrap();
    assert_eq!(store.read_blob(&blob.digest(), 100).unwrap(), b"fine");
    assert!(store.read_blob(&blob.digest(), 3).is_err());
    assert!(store.blob(&Digest::of("nothing")).is_none());
}

#[test]
fn chains() {
    let (_dir, store) = store();
    let one = |name| store.scratch().with_layer(layer(&store.scratch(), LayerInfo::default(), name));
    let (a, b) = (one("a"), one("b"));
    let ab = store.concat(&[a.clone(), b.clone()]);
    assert_eq!(ab.tree().unwrap().len(), 3);
    let aba = store.concat(&[ab.clone(), a.clone()]);
    assert!(ab.is_prefix_of(&aba) && aba.layers().len() == 3);
    // What is mounted shows the same, with each directory once.
    assert_eq!(aba.mountable().unwrap().layer_ids(), store.concat(&[b, a.clone()]).layer_ids());
    assert!(a.is_prefix_of(&ab) && !ab.is_prefix_of(&a));
    assert_eq!(store.ref_of(&ab.layer_ids()).unwrap().id(), ab.id());
    assert_ne!(a.id(), ab.id());
    assert_eq!(ab.prefix(1).id(), a.id());
    assert!(store.ref_of(&[]).unwrap().is_scratch());
    store.set_local_ref("context", "key", &a);
    assert_eq!(store.local_ref("context", "key").unwrap().id(), a.id());
    assert!(store.local_ref("context", "other").is_none());
}

#[test]
fn a_dropped_draft_leaves_nothing() {
    let (dir, store) = store();
    let draft = store.draft().unwrap();
    std::fs::create_dir_all(draft.fs().join("a/b")).unwrap();
    std::fs::create_dir(draft.scratch().unwrap().join("work")).unwrap();
    drop(draft);
    store.finish_sweep();
    for name in ["drafts", "tmp", "layers"] {
        assert_eq!(std::fs::read_dir(dir.path().join("root").join(name)).unwrap().count(), 0, "{name}");
    }
}

#[test]
fn the_floor_is_there_whatever_happens_to_it() {
    let (_dir, store) = store();
    let floor = store.floor().unwrap();
    std::fs::remove_dir_all(floor.join("etc")).unwrap();
    std::fs::remove_dir(floor.join("sys")).unwrap();
    std::fs::write(floor.join("sys"), "damage").unwrap();
    assert_eq!(store.floor().unwrap(), floor);
    assert!(floor.join("sys").is_dir());
    assert_eq!(std::fs::read(floor.join("etc/hosts")).unwrap(), b"");
}

#[test]
fn equal_work_at_once_is_done_once() {
    let (_dir, store) = store();
    let layer = layer(&store.scratch(), LayerInfo::default(), "f");
    let made: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| store.layer_blob(&layer, &options(Compression::ZSTD, true)).unwrap().descriptor))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(made.windows(2).all(|w| w[0] == w[1]));
    assert_eq!(layer.descriptors().len(), 1);
}

#[test]
fn a_record_is_written_although_something_else_is_where_its_layer_was() {
    let (dir, store) = store();
    let layer = layer(&store.scratch(), LayerInfo::default(), "f");
    let place = dir.path().join("root/layers").join(layer.id().to_string());
    std::fs::remove_dir_all(&place).unwrap();
    std::fs::write(&place, "a file").unwrap();
    store.relocate(&layer, "elsewhere").unwrap();
    assert_eq!(layer.origin().as_deref(), Some("elsewhere"));
    assert!(place.join("info").is_file());
    // What else was there is missed when it is used.
    assert_eq!(store.check(&store.ref_of_layers(vec![layer])).unwrap_err().class(), ErrorClass::Damage);
}
