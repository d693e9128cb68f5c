//! The same operations against a real registry process on loopback, where Debian's `docker-registry` is installed.

mod support;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use kiln_oci::{Descriptor, Manifest, Reference, media};
use kiln_registry::{Pushed, Registry, RegistryConfig, Repository};
use kiln_stdx::Defer;
use support::anonymous;

fn start(dir: &Path, address: &str) -> Option<Child> {
    let config = dir.join("config.yml");
    let text = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
        dir.join("data").display()
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().ok()
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[tokio::test]
async fn push_then_pull_with_a_real_registry() {
    let dir = tempfile::tempdir().unwrap();
    let host = free_address();
    let Some(mut process) = start(dir.path(), &host) else {
        support::skip("no docker-registry binary");
        return;
    };
    let _end = Defer::new(move || {
        let _ = process.kill();
        let _ = process.wait();
    });
    // Refused connections are retried, which covers the time the process needs to listen.
    let mut config = RegistryConfig::default();
    config.retry.base = Duration::from_millis(400);
    let registry = Registry::new(config);
    let user = anonymous();

    let layer: Vec<u8> = (0..2_000_000u32).map(|i| (i % 253) as u8).collect();
    let layer = (Descriptor::of(media::OCI_LAYER, &layer), Bytes::from(layer));
    let config = (Descriptor::of(media::OCI_CONFIG, b"{}"), Bytes::from_static(b"{}"));
    let repository = Repository::new(&host, "me/app");
    for (descriptor, bytes) in [&layer, &config] {
        let source = Arc::new(bytes.clone());
        assert_eq!(
            registry.push_blob(&repository, descriptor, source.clone(), &[], &user).await.unwrap(),
            Pushed::Uploaded
        );
        assert_eq!(registry.push_blob(&repository, descriptor, source, &[], &user).await.unwrap(), Pushed::Existed);
    }
    let manifest = Manifest::new(media::OCI_MANIFEST, config.0.clone(), vec![layer.0.clone()]);
    let bytes = Bytes::from(manifest.to_manifest_json().unwrap());
    let tag = Reference::parse(&format!("{host}/me/app:v1")).unwrap();
    let pushed = registry.push_manifest(&tag, media::OCI_MANIFEST, bytes.clone(), &user).await.unwrap();

    assert_eq!(registry.resolve(&tag, &user).await.unwrap(), pushed);
    assert_eq!(registry.fetch_manifest(&repository, &pushed, &user).await.unwrap().bytes, bytes);
    let got: Vec<Bytes> = registry.fetch_blob(&repository, &layer.0, &user).await.unwrap().try_collect().await.unwrap();
    assert!(got.concat() == layer.1);

    let sibling = Repository::new(&host, "me/other");
    let froms = ["me/app".to_owned()];
    let mounted = registry.push_blob(&sibling, &layer.0, Arc::new(layer.1.clone()), &froms, &user).await.unwrap();
    assert_eq!(mounted, Pushed::Mounted("me/app".into()));
    let missing = Reference::parse(&format!("{host}/me/app:v2")).unwrap();
    assert!(registry.resolve(&missing, &user).await.unwrap_err().is_not_found());
}
