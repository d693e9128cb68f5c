//! A workload that uses every part of the store and can say of a store whether all in it is right.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, UNIX_EPOCH};

use kiln_oci::{ChainId, Descriptor, DiffId, Manifest, media};
use kiln_snapshot::compress::Compression;
use kiln_snapshot::layer::{FileMeta, LayerBuilder};
use kiln_stdx::{Digest, Fingerprint};
use kiln_store::{
    BlobOptions, ContentSelector, ImmutableRef, Layer, LayerId, LayerInfo, LazyLayer, MountOwner, RecordType, Result,
    Sharing, StatKey, Store, StoreConfig, StoreError,
};

/// Seeded choices.
pub struct Choices(pub u64);

impl Choices {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }
}

pub fn open(root: &Path) -> Store {
    Store::open(StoreConfig { recheck: Duration::ZERO, ..StoreConfig::new(root) }).unwrap()
}

pub fn meta(mode: u32) -> FileMeta {
    FileMeta {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        ..FileMeta::new(mode, (1_600_000_000, 5))
    }
}

/// The layers of the workload, bottom first: what each adds.
fn files(layer: usize) -> Vec<(String, Vec<u8>)> {
    let bytes = |i: usize| -> Vec<u8> { (0..700 * (i + 1)).map(|b| (b * (layer + 3) % 251) as u8).collect() };
    (0..4).map(|i| (format!("dir{layer}/file{i}"), bytes(i))).chain([("shared".into(), bytes(9))]).collect()
}

/// What the tree of the lowest `count` layers holds.
pub fn expected(count: usize) -> BTreeMap<String, Vec<u8>> {
    (0..count).flat_map(files).collect()
}

/// Tells whether the files of a ref that passed its check are those of the workload.
pub fn assert_right(r: &ImmutableRef, count: usize) {
    let tree = r.tree().unwrap();
    let dirs = r.dirs();
    let mut found = BTreeMap::new();
    for node in tree.iter().filter(|n| n.entry.is_file()) {
        let name = String::from_utf8(node.entry.path.clone()).unwrap();
        let bytes = std::fs::read(dirs[node.layer].join(&name)).unwrap();
        found.insert(name, bytes);
    }
    assert!(found == expected(count), "the tree of {count} layers differs: {:?}", found.keys().collect::<Vec<_>>());
}

fn fill(b: &mut LayerBuilder<'_>, layer: usize) -> Result<()> {
    b.set_implicit(meta(0o755));
    for (name, bytes) in files(layer) {
        b.file_from_bytes(name.as_bytes(), &meta(0o644), &bytes)?;
    }
    Ok(())
}

fn chain_of(store: &Store) -> Vec<Option<LayerId>> {
    let table = store.meta().table("work");
    (0..4u8).map(|i| table.get(&[i]).and_then(|v| Some(LayerId(u64::from_be_bytes(v.try_into().ok()?))))).collect()
}

/// Returns the chain as far as the store still has it, remembered under each prefix.
pub fn known(store: &Store) -> Vec<ImmutableRef> {
    let ids: Vec<LayerId> = chain_of(store).into_iter().map_while(|id| id).collect();
    (1..=ids.len()).map_while(|n| store.ref_of(&ids[..n])).collect()
}

fn build(below: &ImmutableRef, layer: usize) -> Result<Layer> {
    let store = below.store();
    let draft = store.draft()?;
    let (lower, dirs) = (below.tree()?, below.dirs());
    let mut builder = LayerBuilder::new(&draft.fs(), &lower, &dirs)?;
    fill(&mut builder, layer)?;
    let manifest = builder.finish()?;
    let info = LayerInfo { chain: below.layer_ids(), description: format!("layer {layer}"), ..LayerInfo::default() };
    store.commit(draft, manifest, info)
}

/// A layer that comes as a blob.
fn pull(below: &ImmutableRef, layer: usize) -> Result<Layer> {
    let store = below.store();
    // The "registry": the same files, made and archived in a store of their own.
    let elsewhere = tempfile::tempdir().unwrap();
    let origin = Store::open(StoreConfig::new(elsewhere.path().join("s")))?;
    let draft = origin.draft()?;
    let (tree, none) = (Default::default(), []);
    let mut builder = LayerBuilder::new(&draft.fs(), &tree, &none)?;
    fill(&mut builder, layer)?;
    let made = origin.commit(draft, builder.finish()?, LayerInfo::default())?;
    let options = BlobOptions { compression: Compression::GZIP, force: true, epoch: None, here: false };
    let blob = origin.layer_blob(&made, &options)?;
    let bytes = std::fs::read(blob.blob.as_ref().unwrap().path()).unwrap();
    let lazy = store.lazy_layer(LazyLayer {
        descriptor: blob.descriptor.clone(),
        diff_id: blob.diff_id,
        chain_id: ChainId(Digest::of(format!("chain {} {layer}", blob.diff_id))),
        origin: "registry".into(),
        chain: below.layer_ids(),
        created: 0,
        description: format!("layer {layer}"),
        record_type: RecordType::Regular,
    })?;
    let mut ingest = store.ingest(Some(blob.descriptor.digest), Some(blob.descriptor.size))?;
    std::io::Write::write_all(&mut ingest, &bytes).map_err(|source| StoreError::Io {
        what: "write",
        path: "blob".into(),
        source,
    })?;
    let local = ingest.commit()?;
    store.unpack(&lazy, below, local.open()?)?;
    Ok(lazy)
}

/// What the workload comes to, which must always be the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    content: Digest,
    image: Digest,
}

/// Returns what the workload comes to in a fresh store.
pub fn reference() -> Outcome {
    static REFERENCE: OnceLock<Outcome> = OnceLock::new();
    *REFERENCE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        work(&open(&dir.path().join("root"))).unwrap()
    })
}

/// Brings the store to its full state, using what is there; asserts that all of it is right.
pub fn work(store: &Store) -> Result<Outcome> {
    let table = store.meta().table("work");
    let mut r = store.scratch();
    for layer in 0..4usize {
        let id = table.get(&[layer as u8]).and_then(|v| Some(LayerId(u64::from_be_bytes(v.try_into().ok()?))));
        let reused = id.and_then(|id| {
            let mut ids = r.layer_ids();
            ids.push(id);
            let r = store.ref_of(&ids)?;
            let top = r.layers().last()?.clone();
            (top.is_unpacked() && store.check(&r).is_ok()).then_some(top)
        });
        let top = match reused {
            Some(top) => top,
            None if layer == 1 => pull(&r, layer)?,
            None => build(&r, layer)?,
        };
        table.put(&[layer as u8], &top.id().0.to_be_bytes());
        r = r.with_layer(top);
        store.check(&r)?;
        assert_right(&r, layer + 1);
    }
    // What comes at a time is one transaction; there are to be several that can be hit.
    store.meta().flush();
    let image = export(store, &r)?;
    let content = store.content_digest(&r, &ContentSelector::path("/"))?;
    cache_mount(store)?;
    let index = store.context_index(1, 7);
    let key = StatKey { ino: 1, size: 2, mtime: (5, 0), ctime: (5, 0) };
    if let Some(known) = index.get(&key) {
        assert_eq!(known.digest, Fingerprint::of("indexed"));
    }
    index.put(
        key,
        kiln_store::Known { digest: Fingerprint::of("indexed"), plain: true },
        UNIX_EPOCH + Duration::from_secs(100),
    );
    index.save()?;
    store.set_local_ref("context", "key", &r.prefix(1));
    store.meta().flush();
    store.close_epoch()?;
    Ok(Outcome { content, image })
}

fn export(store: &Store, r: &ImmutableRef) -> Result<Digest> {
    let options = BlobOptions { compression: Compression::GZIP, force: false, epoch: None, here: false };
    let mut layers = Vec::new();
    let mut blobs = Vec::new();
    for layer in r.layers() {
        let made = store.layer_blob(layer, &options)?;
        let blob = made.blob.expect("every layer of the workload has its bytes here");
        let mut bytes = Vec::new();
        if std::io::Read::read_to_end(&mut blob.open_verified()?, &mut bytes).is_err() {
            // A flip that kept size and time: reading for export found it, and the next round makes it anew.
            store.verify_blob(&blob.digest());
            return export(store, r);
        }
        layers.push(made.descriptor);
        blobs.push(blob.digest());
    }
    let diffs: Vec<DiffId> = r.diff_ids().expect("every archived layer has a diff id");
    let config = store.put_blob(serde_json::to_string(&diffs).unwrap().as_bytes())?;
    blobs.push(config.digest());
    let config = Descriptor::new(media::OCI_CONFIG, config.digest(), config.size());
    let manifest = Manifest::new(media::OCI_MANIFEST, config, layers).to_manifest_json().unwrap();
    let target = store.put_blob(&manifest)?;
    let descriptor = Descriptor::new(media::OCI_MANIFEST, target.digest(), target.size());
    store.put_image(&["example.com/app:v1".into()], &descriptor, &blobs)?;
    Ok(target.digest())
}

fn cache_mount(store: &Store) -> Result<()> {
    let taken = store.try_cache_mount(
        &kiln_store::MountKey::named("cache"),
        Sharing::Locked,
        MountOwner::default(),
        "cache",
    )?;
    let mut mount = taken.expect("nobody else uses it");
    std::fs::create_dir_all(mount.path().join("sub")).unwrap();
    std::fs::write(mount.path().join("sub/file"), b"cached").unwrap();
    if mount.is_fresh() {
        mount.mark_ready()?;
    }
    Ok(())
}

/// Asserts that whatever the store says it has is right.
pub fn inspect(store: &Store) {
    for (i, r) in known(store).iter().enumerate() {
        if r.is_unpacked() && store.check(r).is_ok() {
            assert_right(r, i + 1);
        }
    }
    for image in store.images().unwrap() {
        let manifest = store.read_blob(&image.target.digest, 1 << 20);
        if store.check_image(&image).is_ok() {
            assert_eq!(image.target.digest, reference().image);
            let manifest = Manifest::from_json(&manifest.unwrap()).unwrap();
            assert_eq!(manifest.layers.len(), 4);
        }
    }
}
