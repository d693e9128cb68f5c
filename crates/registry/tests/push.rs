//! Pushing blobs and manifests, and what happens when the way there or the content is broken.

mod support;

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use kiln_oci::{Descriptor, media};
use kiln_registry::{BlobSource, ErrorKind, FileBlob, Pushed, Repository};
use kiln_stdx::{Digest, ErrorClass};
use support::{Fake, Reply, anonymous, client, first};

fn blob(bytes: &'static [u8]) -> (Descriptor, Arc<dyn BlobSource>) {
    (Descriptor::of(media::OCI_LAYER, bytes), Arc::new(Bytes::from_static(bytes)))
}

#[tokio::test]
async fn a_blob_is_sent_only_where_it_is_missing() {
    let fake = Fake::new().await;
    let (descriptor, source) = blob(b"layer");
    let (registry, _) = client();
    let repository = Repository::new(&fake.host, "me/app");
    let user = anonymous();
    let push = || registry.push_blob(&repository, &descriptor, source.clone(), &[], &user);
    assert_eq!(push().await.unwrap(), Pushed::Uploaded);
    assert_eq!(push().await.unwrap(), Pushed::Existed);
    assert_eq!(fake.content(|c| c.blobs[&descriptor.digest.to_string()].clone()), b"layer");
    let methods: Vec<_> = fake.log().into_iter().map(|s| s.method).collect();
    assert_eq!(methods, ["HEAD", "POST", "PUT", "HEAD"]);
}

#[tokio::test]
async fn a_large_file_is_streamed_with_its_length() {
    let fake = Fake::new().await;
    let content: Vec<u8> = (0..3_000_000u32).map(|i| (i % 241) as u8).collect();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    io::Write::write_all(&mut file, &content).unwrap();
    let descriptor = Descriptor::of(media::OCI_LAYER, &content);
    let source = Arc::new(FileBlob(file.path().to_owned()));
    let repository = Repository::new(&fake.host, "a");
    client().0.push_blob(&repository, &descriptor, source, &[], &anonymous()).await.unwrap();
    let put = fake.log().into_iter().find(|s| s.method == "PUT").unwrap();
    assert_eq!(put.header("content-length"), "3000000");
    assert!(put.body == content);
}

#[tokio::test]
async fn siblings_are_mounted_from() {
    let fake = Fake::scripted(|seen, _| (seen.method == "HEAD").then(|| Reply::new(404))).await;
    let descriptor = fake.add_blob(b"base layer");
    let (_, source) = blob(b"base layer");
    let repository = Repository::new(&fake.host, "b");
    let pushed = client().0.push_blob(&repository, &descriptor, source, &["b".into(), "a".into()], &anonymous()).await;
    assert_eq!(pushed.unwrap(), Pushed::Mounted("a".into()));
    assert_eq!(fake.log()[1].query["from"], ["a"]);
}

#[tokio::test]
async fn a_mount_that_is_not_granted_becomes_an_upload() {
    let refuse = first(1);
    let fake =
        Fake::scripted(move |seen, _| (seen.query.contains_key("mount") && refuse()).then(|| Reply::new(403))).await;
    let (descriptor, source) = blob(b"private");
    let repository = Repository::new(&fake.host, "b");
    let froms = ["secret".to_owned(), "other".to_owned()];
    let pushed = client().0.push_blob(&repository, &descriptor, source, &froms, &anonymous()).await;
    assert_eq!(pushed.unwrap(), Pushed::Uploaded);
    let posts = fake.lines().iter().filter(|l| l.starts_with("POST")).count();
    assert_eq!(posts, 2, "the second mount's session is used");
}

#[tokio::test]
async fn a_broken_upload_starts_over() {
    for reply in [Reply::new(503), Reply::reset(), Reply::new(404), Reply::new(429)] {
        let broken = first(2);
        let fake = Fake::scripted(move |s, _| (s.method == "PUT" && broken()).then(|| reply.clone())).await;
        let (descriptor, source) = blob(b"try again");
        let repository = Repository::new(&fake.host, "b");
        let (registry, waits) = client();
        registry.push_blob(&repository, &descriptor, source, &[], &anonymous()).await.unwrap();
        assert_eq!((fake.content(|c| c.uploads), waits.lock().len()), (3, 2));
    }
}

#[tokio::test]
async fn an_answer_lost_after_the_upload_is_no_failure() {
    let lose = first(1);
    let fake = Fake::scripted(move |seen, content| {
        if seen.method != "PUT" || !lose() {
            return None;
        }
        content.blobs.insert(Digest::of(&seen.body).to_string(), seen.body.clone());
        Some(Reply::reset())
    })
    .await;
    let (descriptor, source) = blob(b"arrived");
    let repository = Repository::new(&fake.host, "b");
    client().0.push_blob(&repository, &descriptor, source, &[], &anonymous()).await.unwrap();
    assert_eq!(fake.lines().iter().filter(|l| l.starts_with("PUT")).count(), 1);
}

#[tokio::test]
async fn damaged_content_does_not_leave_the_machine() {
    let fake = Fake::new().await;
    let (descriptor, _) = blob(b"what it should be");
    for content in [&b"what it shoulD be"[..], b"short", b"longer than it should be"] {
        let source = Arc::new(Bytes::from_static(content));
        let repository = Repository::new(&fake.host, "b");
        let error = client().0.push_blob(&repository, &descriptor, source, &[], &anonymous()).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Damage, "{error}");
    }
    assert!(fake.content(|c| c.blobs.is_empty()));
}

#[tokio::test]
async fn an_unreadable_source_is_named_as_such() {
    struct Broken;
    impl BlobSource for Broken {
        fn open(&self) -> BoxFuture<'_, io::Result<BoxStream<'static, io::Result<Bytes>>>> {
            async { Ok(stream::iter([Err(io::Error::other("bad sector"))]).boxed()) }.boxed()
        }
    }
    let fake = Fake::new().await;
    let repository = Repository::new(&fake.host, "b");
    let error =
        client().0.push_blob(&repository, &blob(b"x").0, Arc::new(Broken), &[], &anonymous()).await.unwrap_err();
    assert!(matches!(&error.kind, ErrorKind::Source(e) if e.to_string() == "bad sector"), "{error}");
}

#[tokio::test]
async fn manifests_go_under_their_tag_or_their_digest() {
    let fake = Fake::new().await;
    let bytes = Bytes::from_static(b"{\"schemaVersion\":2}");
    let (registry, _) = client();
    let tagged = fake.reference("me/app:v1");
    let descriptor = registry.push_manifest(&tagged, media::OCI_MANIFEST, bytes.clone(), &anonymous()).await.unwrap();
    assert_eq!(descriptor, Descriptor::of(media::OCI_MANIFEST, &bytes));
    let pinned = fake.reference(&format!("me/app@{}", descriptor.digest));
    registry.push_manifest(&pinned, media::OCI_MANIFEST, bytes, &anonymous()).await.unwrap();
    let digest = descriptor.digest;
    assert_eq!(fake.lines(), ["PUT /v2/me/app/manifests/v1".to_owned(), format!("PUT /v2/me/app/manifests/{digest}")]);
    assert_eq!(fake.log()[0].header("content-type"), media::OCI_MANIFEST);
    assert_eq!(registry.resolve(&tagged, &anonymous()).await.unwrap(), descriptor);
}

#[tokio::test]
async fn a_registry_that_stores_something_else_is_not_believed() {
    let fake = Fake::scripted(|s, _| {
        (s.method == "PUT").then(|| Reply::new(201).with("Docker-Content-Digest", Digest::of("other")))
    })
    .await;
    let bytes = Bytes::from_static(b"{}");
    let error = client().0.push_manifest(&fake.reference("a:1"), media::OCI_MANIFEST, bytes, &anonymous()).await;
    assert!(matches!(error.unwrap_err().kind, ErrorKind::DigestMismatch { .. }));
}
