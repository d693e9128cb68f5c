//! Every store against a server that checks signatures: what is written is read, once, whole, or not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use kiln_objects::{Attrs, Kind, Limits, ObjectError, ObjectStore, Stored, fetch, open};
use kiln_registry::{ErrorKind, RetryPolicy, Timeouts};
use kiln_stdx::Digest;
use kiln_testkit::ObjectServer;
use kiln_testkit::objects::{Protocol, gha_token};
use kiln_testkit::registry::{Answer, Asked, End};

const KINDS: [Kind; 4] = [Kind::Http, Kind::S3, Kind::Gha, Kind::Azblob];
const AZURE_KEY: &str = "aHVudGVyMmh1bnRlcjI=";

/// Short waits, none of them slept, and parts of a kilobyte.
fn limits() -> Limits {
    let (wait, base) = (Duration::from_millis(200), Duration::from_millis(1));
    Limits {
        timeouts: Timeouts { connect: Duration::from_secs(5), response: wait, stall: wait },
        retry: RetryPolicy { attempts: 3, base, cap: base, total: Duration::from_secs(60) },
        pause: Arc::new(|_| async {}.boxed()),
        manifests: Duration::from_secs(60),
        whole: 4096,
        part: 1024,
    }
}

fn protocol(kind: Kind) -> (Protocol, Vec<(&'static str, String)>) {
    let text = str::to_owned;
    match kind {
        Kind::Http => (Protocol::Http { token: Some("hunter2".into()) }, vec![("token", text("hunter2"))]),
        Kind::S3 => {
            let [bucket, region, id, secret] = ["my-bucket", "eu-1", "ID", "hunter2"].map(text);
            let attrs = vec![
                ("bucket", bucket.clone()),
                ("region", region.clone()),
                ("access_key_id", id.clone()),
                ("secret_access_key", secret.clone()),
                ("use_path_style", text("true")),
                ("prefix", text("a b/")),
            ];
            (Protocol::S3 { bucket, region, id, secret }, attrs)
        }
        Kind::Gha => {
            let token = gha_token(&[("refs/heads/main", 3)]);
            (Protocol::Gha { token: token.clone() }, vec![("token", token)])
        }
        Kind::Azblob => {
            let protocol = Protocol::Azure { account: "acc".into(), key: AZURE_KEY.into() };
            (protocol, vec![("secret_access_key", text(AZURE_KEY)), ("account_name", text("acc"))])
        }
    }
}

fn attrs(server: &ObjectServer, kind: Kind) -> Attrs {
    let (name, url) = match kind {
        Kind::Http => ("url", format!("{}/base", server.address)),
        Kind::S3 => ("endpoint_url", server.address.clone()),
        Kind::Gha => ("url_v2", server.address.clone()),
        Kind::Azblob => ("account_url", format!("{}/acc", server.address)),
    };
    let all = protocol(kind).1.into_iter().chain([(name, url)]);
    all.map(|(name, value)| (name.to_owned(), value)).collect()
}

fn store(server: &ObjectServer, kind: Kind) -> Arc<dyn ObjectStore> {
    open(kind, &attrs(server, kind), &|_| None, limits()).expect("attributes")
}

fn noise(length: usize) -> Bytes {
    (0..length).map(|at| u8::try_from(at * at % 251).unwrap_or(0)).collect()
}

async fn put(store: &Arc<dyn ObjectStore>, data: &Bytes) -> Result<Stored, ErrorKind> {
    store.put(&Digest::of(data), data.len() as u64, Arc::new(data.clone())).await
}

async fn get(store: &Arc<dyn ObjectStore>, data: &Bytes) -> Result<Vec<u8>, ObjectError> {
    let mut stream = fetch(store.clone(), Digest::of(data), data.len() as u64);
    let mut found = Vec::new();
    while let Some(piece) = stream.next().await {
        found.extend_from_slice(&piece?);
    }
    Ok(found)
}

#[tokio::test]
async fn what_is_written_is_there() {
    for kind in KINDS {
        let server = ObjectServer::start(protocol(kind).0);
        let store = store(&server, kind);
        assert!(matches!(store.manifests().await, Err(ErrorKind::NotFound)), "{kind:?}");
        // The last ones go in parts.
        for length in [0, 1, 4096, 4097, 10_000] {
            let data = noise(length);
            assert!(!store.has(&Digest::of(&data)).await.unwrap(), "{kind:?} {length}");
            put(&store, &data).await.unwrap_or_else(|e| panic!("{kind:?} {length}: {e}"));
            assert!(store.has(&Digest::of(&data)).await.unwrap(), "{kind:?} {length}");
            assert_eq!(get(&store, &data).await.unwrap(), data, "{kind:?} {length}");
            put(&store, &data).await.unwrap_or_else(|e| panic!("again, {kind:?} {length}: {e}"));
        }
        for text in ["first", "second"] {
            store.put_manifest(Bytes::from(text)).await.unwrap();
            assert_eq!(store.manifests().await.unwrap(), [Bytes::from(text)], "{kind:?}");
        }
    }
}

#[tokio::test]
async fn objects_have_the_names_that_others_know() {
    for (kind, blob, manifest) in [
        (Kind::Http, "base/blobs/sha256/HEX", "base/manifests/kiln"),
        (Kind::S3, "a b/blobs/sha256:HEX", "a b/manifests/buildkit"),
        (Kind::Gha, "buildkit-blob-1-sha256:HEX", "index-buildkit-1-BRANCH#1"),
        (Kind::Azblob, "buildkit-cache/blobs/sha256:HEX", "buildkit-cache/manifests/buildkit"),
    ] {
        let server = ObjectServer::start(protocol(kind).0);
        let store = store(&server, kind);
        let data = noise(5);
        put(&store, &data).await.unwrap();
        store.put_manifest(Bytes::from("m")).await.unwrap();
        let branch = &Digest::of("refs/heads/main").hex()[..8];
        let names: Vec<String> = server.objects().kept.keys().cloned().collect();
        let want = [blob.replace("HEX", &Digest::of(&data).hex()), manifest.replace("BRANCH", branch)];
        assert_eq!(names, want, "{kind:?}");
    }
}

#[tokio::test]
async fn the_wrong_key_is_told_apart_and_shown_nowhere() {
    for kind in KINDS {
        let server = ObjectServer::start(protocol(kind).0);
        let mut attrs = attrs(&server, kind);
        let (name, wrong) = match kind {
            Kind::Http => ("token", "swordfish".to_owned()),
            Kind::Gha => ("token", gha_token(&[("other", 3)])),
            Kind::S3 => ("secret_access_key", "swordfish".to_owned()),
            Kind::Azblob => ("secret_access_key", "c3dvcmRmaXNo".to_owned()),
        };
        attrs.insert(name.to_owned(), wrong.clone());
        let store = open(kind, &attrs, &|_| None, limits()).unwrap();
        let error = store.manifests().await.unwrap_err();
        assert!(matches!(error, ErrorKind::Unauthorized(_) | ErrorKind::Denied(_)), "{kind:?}: {error}");
        assert!(!format!("{error:?}").contains(&wrong) && !store.name().contains(&wrong), "{kind:?}");
        assert!(put(&store, &noise(3)).await.is_err(), "{kind:?}");
        assert!(server.objects().kept.is_empty(), "{kind:?}");
        assert!(server.take_log().len() <= 4, "a refusal is not asked for again");
    }
}

/// A server whose first answers to some requests are broken ones.
fn stumble(
    server: &ObjectServer,
    times: u32,
    on: fn(&Asked) -> bool,
    answer: impl Fn() -> Answer + Send + Sync + 'static,
) {
    let left = AtomicU32::new(times);
    server.misbehave(move |asked, _| {
        let take = |n: u32| n.checked_sub(1);
        let hit = on(asked) && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok();
        hit.then(&answer)
    });
}

#[tokio::test]
async fn passing_trouble_is_borne_with() {
    for kind in KINDS {
        let server = ObjectServer::start(protocol(kind).0);
        let store = store(&server, kind);
        let data = noise(3000);
        for fault in [
            Answer::new(503),
            Answer::new(500),
            Answer::new(429).with("Retry-After", 1),
            Answer::default().ending(End::Silent),
        ] {
            server.objects().kept.retain(|name, _| name.contains('#'));
            let broken = fault.clone();
            stumble(&server, 2, |asked| asked.method == "PUT", move || broken.clone());
            put(&store, &data).await.unwrap_or_else(|e| panic!("{kind:?} {fault:?}: {e}"));
            stumble(&server, 2, |asked| asked.method == "GET", move || fault.clone());
            assert_eq!(get(&store, &data).await.unwrap(), data, "{kind:?}");
        }
        // Broken off after some bytes: the rest is asked for.
        server.misbehave(|_, _| None);
        server.take_log();
        let (body, length) = (data.clone(), data.len());
        for end in [End::Cut(1000), End::Stall(1000)] {
            let body = body.clone();
            stumble(
                &server,
                1,
                |asked| asked.method == "GET",
                move || Answer::new(200).body(body.to_vec()).ending(end),
            );
            assert_eq!(get(&store, &data).await.unwrap().len(), length, "{kind:?} {end:?}");
            let ranges: Vec<String> = server.take_log().iter().map(|a| a.header("range").to_owned()).collect();
            assert!(ranges.contains(&"bytes=1000-".to_owned()), "{kind:?} {ranges:?}");
        }
    }
}

#[tokio::test]
async fn lasting_trouble_ends_and_says_which_it_is() {
    type Fault = fn(&[u8]) -> Answer;
    let faults: [(Fault, &str); 5] = [
        (|_| Answer::new(500), "unexpected status 500"),
        (|_| Answer::default().ending(End::Silent), "timed out"),
        (|body| Answer::new(200).body(body.to_vec()).ending(End::Stall(10)), "timed out"),
        (|body| Answer::new(200).body(body.iter().map(|b| b ^ 1).collect::<Vec<_>>()), "digest mismatch"),
        (|body| Answer::new(200).body(body[1..].to_vec()), "length mismatch"),
    ];
    for kind in KINDS {
        let server = ObjectServer::start(protocol(kind).0);
        let store = store(&server, kind);
        let data = noise(3000);
        put(&store, &data).await.unwrap();
        for (fault, want) in faults {
            let body = data.clone();
            server.misbehave(move |asked, _| (asked.method == "GET").then(|| fault(&body)));
            let error = get(&store, &data).await.unwrap_err().to_string();
            assert!(error.contains(want) && error.starts_with(store.name()), "{kind:?}: {error}");
        }
        server.misbehave(|_, _| None);
        server.objects().kept.clear();
        let error = get(&store, &data).await.unwrap_err().to_string();
        assert!(error.ends_with("not found"), "{kind:?}: {error}");
    }
}

#[tokio::test]
async fn a_damaged_source_leaves_nothing() {
    for kind in KINDS {
        let server = ObjectServer::start(protocol(kind).0);
        let store = store(&server, kind);
        for length in [100, 10_000] {
            let data = noise(length);
            let other = Digest::of(format!("not {length}"));
            let failed = store.put(&other, data.len() as u64, Arc::new(data)).await;
            assert!(matches!(failed, Err(ErrorKind::SourceDamaged)), "{kind:?} {length}: {failed:?}");
            assert!(server.objects().kept.is_empty(), "{kind:?} {length}");
        }
    }
}

#[tokio::test]
async fn s3_objects_that_are_used_are_made_young() {
    let server = ObjectServer::start(protocol(Kind::S3).0);
    let store = store(&server, Kind::S3);
    let data = noise(10);
    put(&store, &data).await.unwrap();
    let name = server.objects().kept.keys().next().cloned().unwrap();
    let copies = |server: &ObjectServer| server.take_log().iter().filter(|a| a.method == "PUT").count();
    copies(&server);
    assert!(store.has(&Digest::of(&data)).await.unwrap());
    assert_eq!(copies(&server), 0, "it is young");
    server.objects().old.insert(name);
    assert!(store.has(&Digest::of(&data)).await.unwrap());
    assert_eq!(copies(&server), 1);
    assert!(server.objects().old.is_empty());
    assert_eq!(get(&store, &data).await.unwrap(), data);
}

#[tokio::test]
async fn a_redirect_of_a_plain_server_does_not_get_the_token() {
    let elsewhere = ObjectServer::start(Protocol::Http { token: None });
    let server = ObjectServer::start(protocol(Kind::Http).0);
    let data = noise(100);
    elsewhere.objects().kept.insert("there".to_owned(), data.to_vec());
    let to = format!("{}/there", elsewhere.address.replace("127.0.0.1", "localhost"));
    server.misbehave(move |asked, _| (asked.method == "GET").then(|| Answer::new(307).with("Location", &to)));
    assert_eq!(get(&store(&server, Kind::Http), &data).await.unwrap(), data);
    assert!(elsewhere.take_log().iter().all(|asked| asked.header("authorization").is_empty()));
}

/// Tells whether a request of the cache service says that an entry is written.
fn is_last(asked: &Asked) -> bool {
    asked.path.ends_with("/FinalizeCacheEntryUpload")
}

#[tokio::test]
async fn a_writer_that_was_cut_off_holds_its_key_and_nothing_else() {
    let server = ObjectServer::start(protocol(Kind::Gha).0);
    let store = store(&server, Kind::Gha);
    let data = noise(3000);
    server.misbehave(|asked, _| is_last(asked).then(|| Answer::new(503)));
    assert!(matches!(put(&store, &data).await, Err(ErrorKind::Status { status: 503, .. })));
    assert!(store.put_manifest(Bytes::from("cut off")).await.is_err());
    server.misbehave(|_, _| None);
    assert!(matches!(store.manifests().await, Err(ErrorKind::NotFound)), "what is not finished is not read");
    assert!(!store.has(&Digest::of(&data)).await.unwrap());
    assert_eq!(put(&store, &data).await.unwrap(), Stored::Awaited);
    store.put_manifest(Bytes::from("next")).await.unwrap();
    assert_eq!(store.manifests().await.unwrap(), [Bytes::from("next")]);
}

#[tokio::test]
async fn an_answer_that_is_lost_does_not_undo_what_it_tells_of() {
    let server = ObjectServer::start(protocol(Kind::Gha).0);
    let store = store(&server, Kind::Gha);
    let data = noise(3000);
    server.lose(is_last);
    assert_eq!(put(&store, &data).await.unwrap(), Stored::There);
    store.put_manifest(Bytes::from("m")).await.unwrap();
    server.lose(|_| false);
    assert_eq!(store.manifests().await.unwrap(), [Bytes::from("m")]);
    assert_eq!(get(&store, &data).await.unwrap(), data);
}

#[tokio::test]
async fn a_server_that_only_drips_is_given_up() {
    for kind in KINDS {
        let server = ObjectServer::start(protocol(kind).0);
        let store = store(&server, kind);
        let data = noise(3000);
        put(&store, &data).await.unwrap();
        server.take_log();
        let body = data.to_vec();
        let drip = move || Answer::new(200).body(body.clone()).ending(End::Drip(9));
        server.misbehave(move |asked, _| (asked.method == "GET").then(&drip));
        let error = get(&store, &data).await.unwrap_err().to_string();
        assert!(error.contains("timed out"), "{kind:?}: {error}");
        let asked = server.take_log().iter().filter(|asked| asked.method == "GET").count();
        assert_eq!(asked, 3, "{kind:?}: each connection is given up");
    }
}
