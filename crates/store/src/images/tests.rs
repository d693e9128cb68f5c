//! Tests of the image store and its repair.

use std::time::Duration;

use super::*;
use crate::testing::{Fixture, fixture, open};

/// Puts an image with one large layer blob; returns the name, the target and the layer's digest.
fn put(store: &Store, name: &str, seed: u8) -> (Descriptor, Digest) {
    let layer = store.put_blob(&vec![seed; 400_000]).unwrap();
    let config = store.put_blob(format!("{{\"seed\":{seed}}}").as_bytes()).unwrap();
    let manifest = Manifest::new(
        media::OCI_MANIFEST,
        Descriptor::new(media::OCI_CONFIG, config.digest(), config.size()),
        vec![Descriptor::new(media::OCI_LAYER, layer.digest(), layer.size())],
    );
    let bytes = manifest.to_manifest_json().unwrap();
    let blob = store.put_blob(&bytes).unwrap();
    let target = Descriptor::new(media::OCI_MANIFEST, blob.digest(), blob.size());
    store.put_image(&[name.to_owned()], &target, &[layer.digest(), config.digest()]).unwrap();
    (target, layer.digest())
}

fn reopen(f: Fixture) -> Fixture {
    let Fixture { dir, clock, store } = f;
    drop(store);
    let store = open(&dir, &clock, Duration::ZERO);
    Fixture { dir, clock, store }
}

#[test]
fn images_survive_and_names_move() {
    let f = fixture(Duration::ZERO);
    let (first, _) = put(&f.store, "docker.io/library/app:v1", 1);
    let (second, _) = put(&f.store, "docker.io/library/app:v1", 2);
    let f = reopen(f);
    let images = f.store.images().unwrap();
    assert_eq!(f.store.image("docker.io/library/app:v1").unwrap().unwrap().target, second);
    assert!(images.iter().any(|i| i.name.is_none() && i.target == first), "the old one is dangling: {images:?}");
    let json = fs::read_to_string(f.store.images_dir().join("index.json")).unwrap();
    assert!(json.contains("\"org.opencontainers.image.ref.name\": \"v1\""), "{json}");
    assert!(f.store.remove_image(&first.digest.to_string()).unwrap());
    assert!(f.store.remove_image("docker.io/library/app:v1").unwrap());
    assert!(!f.store.remove_image("docker.io/library/app:v1").unwrap());
    assert_eq!(fs::read_dir(f.store.images_dir().join("blobs/sha256")).unwrap().count(), 0);
}

#[test]
fn an_image_needs_its_blobs() {
    let f = fixture(Duration::ZERO);
    let target = Descriptor::of(media::OCI_MANIFEST, b"{}");
    let error = f.store.put_image(&["a:b".into()], &target, &[]).unwrap_err();
    assert!(matches!(error, StoreError::MissingBlob(d) if d == target.digest));
    assert!(f.store.images().unwrap().is_empty());
}

#[test]
fn every_file_of_the_layout_can_be_damaged() {
    for name in ["index.json", ".kiln-index", "oci-layout"] {
        for damage in 0..3 {
            let f = fixture(Duration::ZERO);
            put(&f.store, "docker.io/library/app:v1", 1);
            let path = f.store.images_dir().join(name);
            let bytes = fs::read(&path).unwrap();
            let at = bytes.windows(3).position(|w| w == b"app").unwrap_or(3);
            match damage {
                0 => fs::remove_file(&path).unwrap(),
                1 => fs::write(&path, &bytes[..at]).unwrap(),
                _ => fs::write(&path, [&bytes[..at], b"X", &bytes[at + 1..]].concat()).unwrap(),
            }
            let f = reopen(f);
            let image = f.store.image("docker.io/library/app:v1").unwrap().expect(name);
            f.store.check_image(&image).unwrap();
            assert_eq!(fs::read(f.store.images_dir().join(name)).unwrap(), bytes, "{name} {damage}");
        }
    }
}

#[test]
fn blobs_of_images_are_made_good_from_their_second_copy() {
    let f = fixture(Duration::ZERO);
    let (target, layer) = put(&f.store, "docker.io/library/app:v1", 1);
    let main = f.store.blob(&target.digest).unwrap().path().to_owned();
    fs::remove_file(&main).unwrap();
    fs::write(&main, b"other").unwrap();
    assert!(f.store.blob(&target.digest).is_some(), "the manifest has two copies");
    let pinned = f.store.images_dir().join("blobs/sha256").join(layer.hex());
    fs::remove_file(&pinned).unwrap();
    let image = f.store.image("docker.io/library/app:v1").unwrap().unwrap();
    f.store.check_image(&image).unwrap();
    assert!(pinned.exists());
    fs::remove_file(f.store.blob(&layer).unwrap().path()).unwrap();
    assert!(f.store.blob(&layer).is_some(), "a lost link is made again from the layout");
    fs::write(&pinned, b"both are one file").unwrap();
    assert!(matches!(f.store.check_image(&image), Err(StoreError::MissingBlob(d)) if d == layer));
}

#[test]
fn pruning_leaves_images_whole() {
    let f = fixture(Duration::ZERO);
    put(&f.store, "docker.io/library/app:v1", 1);
    f.store.put_blob(b"loose").unwrap();
    let pruned = f.store.prune(&crate::PrunePolicy { all: true, ..Default::default() }, |_| {}).unwrap();
    assert_eq!(pruned.records, 1);
    let image = f.store.image("docker.io/library/app:v1").unwrap().unwrap();
    f.store.check_image(&image).unwrap();
}
