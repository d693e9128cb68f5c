//! Images and caches through a real registry and back, and into the image store.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures::TryStreamExt;
use kiln_oci::{Index, Manifest};
use kiln_registry::{Anonymous, RegistryConfig};
use kiln_snapshot::compress::Compression;
use kiln_stdx::Defer;

use super::*;
use crate::cacheconfig::{CacheForm, CacheLink, CacheManifest, CacheNode, CacheResult, parse, read_manifest};
use crate::testing::{Fixture, exporter};
use crate::{CacheCompression, CacheLayers, Output};

/// Starts Debian's registry on loopback; none where it is not installed.
fn registry(dir: &std::path::Path) -> Option<(String, Defer<impl FnOnce() + use<>>)> {
    let host = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let config = dir.join("registry.yml");
    let data = dir.join("registry");
    let text = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n",
        data.display()
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(kiln_testkit::program("docker-registry")?);
    command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child: Child = command.spawn().ok()?;
    let end = Defer::new(move || {
        let _ = child.kill();
        let _ = child.wait();
    });
    Some((host, end))
}

/// A client that is patient with a registry that has only just been started.
fn client() -> Registry {
    let mut config = RegistryConfig::default();
    config.retry.base = Duration::from_millis(500);
    Registry::new(config)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pushed_and_comes_back_whole() {
    let fixture = Fixture::new();
    let Some((host, _end)) = registry(fixture.path()) else {
        kiln_testkit::skip!("no docker-registry");
    };
    let (registry, user): (_, Credentials) = (client(), Arc::new(Anonymous));
    let name = format!("{host}/me/app:v1");
    let attributes = [("name", name.as_str()), ("push", "true"), ("name-canonical", "true")];
    let exporter = exporter("image", &attributes);
    let (context, source) = (fixture.context(), fixture.two_platforms());
    let built = tokio::task::spawn_blocking(move || exporter.build(&context, &source)).await.unwrap().unwrap();
    built.push(&registry, &user).await.unwrap();
    built.deliver_to_store().await.unwrap();

    let reference: Reference = name.parse().unwrap();
    let found = registry.resolve(&reference, &user).await.unwrap();
    assert_eq!(found.digest.to_string(), built.response["containerimage.digest"]);
    let repository = Repository::from(&reference);
    let index = registry.fetch_manifest(&repository, &found, &user).await.unwrap();
    for child in Index::from_json(&index.bytes).unwrap().manifests {
        let fetched = registry.fetch_manifest(&repository, &child, &user).await.unwrap();
        let manifest = Manifest::from_json(&fetched.bytes).unwrap();
        for piece in manifest.layers.iter().chain([&manifest.config]) {
            let stream = registry.fetch_blob(&repository, piece, &user).await.unwrap();
            let length: usize = stream.try_fold(0, |n, p| async move { Ok(n + p.len()) }).await.unwrap();
            assert_eq!(length as u64, piece.size);
        }
    }
    let images = fixture.store.images().unwrap();
    let names: Vec<_> = images.iter().map(|i| i.name.clone().unwrap()).collect();
    assert_eq!(names, [name.clone(), format!("{name}@{}", found.digest)]);
    let statuses = fixture.progress.0.lock().clone();
    for want in [
        "pushing layers".to_owned(),
        format!("pushing manifest for {name}@{}", found.digest),
        format!("naming to {name}"),
    ] {
        assert!(statuses.contains(&want), "{want} in {statuses:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_is_pushed_and_read_back() {
    let fixture = Fixture::new();
    let Some((host, _end)) = registry(fixture.path()) else {
        kiln_testkit::skip!("no docker-registry");
    };
    let (registry, user): (_, Credentials) = (client(), Arc::new(Anonymous));
    let compression = CacheCompression { compression: Compression::ZSTD, force: true };
    let mut layers = CacheLayers::new(&fixture.context(), compression);
    let stack = layers.add(&fixture.image()).unwrap();
    let root = CacheNode { digest: Digest::of("source"), inputs: vec![], results: vec![] };
    let step = CacheNode {
        digest: Digest::of("step"),
        inputs: vec![vec![CacheLink { selector: None, node: 0 }]],
        results: vec![CacheResult { layers: stack.clone(), created: 5 }],
    };
    let cache = layers.finish(&[root, step], CacheForm::ImageManifest).unwrap().unwrap();
    assert!(cache.response().unwrap()["cache.manifest"].contains(&cache.descriptor.digest.to_string()));
    let name: Reference = format!("{host}/me/app:cache").parse().unwrap();
    cache.push(&name, &registry, &user).await.unwrap();

    let repository = Repository::from(&name);
    let found = registry.resolve(&name, &user).await.unwrap();
    let manifest = registry.fetch_manifest(&repository, &found, &user).await.unwrap();
    let CacheManifest::Config { config, blobs } = read_manifest(&manifest.bytes).unwrap() else { panic!("no cache") };
    let stream = registry.fetch_blob(&repository, &config, &user).await.unwrap();
    let config: Vec<Bytes> = stream.try_collect().await.unwrap();
    let parsed = parse(&config.concat(), &blobs).unwrap();
    assert_eq!((parsed.nodes.len(), parsed.dropped), (2, 0));
    assert_eq!(parsed.nodes[1].results[0].layers, stack);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_push_names_the_image() {
    let fixture = Fixture::new();
    let host = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let name = format!("{host}/a:1");
    let exporter = exporter("image", &[("name", &name), ("push", "true"), ("store", "false")]);
    let (context, source) = (fixture.context(), fixture.source());
    let built = tokio::task::spawn_blocking(move || exporter.build(&context, &source)).await.unwrap().unwrap();
    let user: Credentials = Arc::new(Anonymous);
    let error = built.push(&Registry::new(RegistryConfig::default()), &user).await.unwrap_err();
    assert!(error.to_string().starts_with(&format!("failed to push {name}: ")), "{error}");
    assert_eq!(error.class(), kiln_stdx::ErrorClass::Remote);
    built.deliver_to_store().await.unwrap();
    assert!(fixture.store.images().unwrap().is_empty(), "`store=false`");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_a_name_is_kept_dangling_or_under_its_prefix() {
    let fixture = Fixture::new();
    for (attributes, want) in [
        (&[][..], None),
        (
            &[("dangling-name-prefix", "moby-dangling"), ("danging-name-empty-only", "true")][..],
            Some("docker.io/library/moby-dangling@"),
        ),
    ] {
        let exporter = exporter("image", attributes);
        let (context, source) = (fixture.context(), fixture.source());
        let built = tokio::task::spawn_blocking(move || exporter.build(&context, &source)).await.unwrap().unwrap();
        let Output::Image { image, .. } = &built.output else { panic!() };
        built.deliver_to_store().await.unwrap();
        let images = fixture.store.images().unwrap();
        let last = images.last().unwrap();
        assert_eq!(last.target.digest, image.descriptor.digest);
        assert_eq!(last.name, want.map(|prefix| format!("{prefix}{}", image.descriptor.digest)));
    }
}
