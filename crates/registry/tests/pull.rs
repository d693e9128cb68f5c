//! Resolving and fetching against a registry that misbehaves in every way that real ones do.

mod support;

use std::time::Duration;

use futures::TryStreamExt;
use kiln_oci::{Descriptor, media};
use kiln_registry::{
    ErrorKind, FetchStart, HostConfig, Registry, RegistryConfig, RegistryError, Repository, RetryPolicy, Timeouts,
};
use kiln_stdx::{Digest, ErrorClass};
use support::{Fake, Reply, anonymous, client, client_with, first};

const MANIFEST: &[u8] = br#"{"schemaVersion":2,"config":{},"layers":[]}"#;

fn data(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}

async fn read(registry: &Registry, fake: &Fake, blob: &Descriptor) -> Result<Vec<u8>, RegistryError> {
    let repository = Repository::new(&fake.host, "me/app");
    let stream = registry.fetch_blob(&repository, blob, &anonymous()).await?;
    stream
        .try_fold(Vec::new(), |mut all, piece| async move {
            all.extend_from_slice(&piece);
            Ok(all)
        })
        .await
}

#[tokio::test]
async fn a_tag_is_resolved_with_head_alone() {
    let fake = Fake::new().await;
    let want = fake.add_manifest("me/app", "1", MANIFEST);
    let (registry, _) = client();
    assert_eq!(registry.resolve(&fake.reference("me/app:1"), &anonymous()).await.unwrap(), want);
    assert_eq!(fake.lines(), ["HEAD /v2/me/app/manifests/1"]);
    let fetched = registry.fetch_manifest(&Repository::new(&fake.host, "me/app"), &want, &anonymous()).await.unwrap();
    assert_eq!((&fetched.bytes[..], fetched.descriptor), (MANIFEST, want));
}

#[tokio::test]
async fn where_head_says_too_little_the_manifest_is_read() {
    for broken in [Reply::new(405), Reply::new(200).with("Content-Type", "text/plain").with("Content-Length", "9")] {
        let fake = Fake::scripted(move |seen, _| (seen.method == "HEAD").then(|| broken.clone())).await;
        fake.content(|c| c.manifests.insert("a:1".into(), ("text/plain; charset=utf-8".into(), MANIFEST.into())));
        let found = client().0.resolve(&fake.reference("a:1"), &anonymous()).await.unwrap();
        assert_eq!(found, Descriptor::of(media::OCI_MANIFEST, MANIFEST));
    }
}

#[tokio::test]
async fn a_pinned_digest_is_not_taken_on_trust() {
    let fake = Fake::scripted(|seen, _| {
        let reply = Reply::new(200).with("Content-Type", media::OCI_MANIFEST);
        seen.path.contains("sha256:").then(|| reply.body(*b"{}").with("Docker-Content-Digest", Digest::of("{}")))
    })
    .await;
    let pinned = Digest::of("something else");
    let error = client().0.resolve(&fake.reference(&format!("a@{pinned}")), &anonymous()).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::DigestMismatch { expected, .. } if expected == pinned), "{error}");
}

#[tokio::test]
async fn what_is_missing_is_told_with_its_name() {
    let fake = Fake::new().await;
    let (registry, waits) = client();
    let error = registry.resolve(&fake.reference("me/app:nope"), &anonymous()).await.unwrap_err();
    assert!(error.is_not_found() && error.class() == ErrorClass::UserInput);
    assert_eq!(error.to_string(), format!("failed to resolve {}/me/app:nope: not found", fake.host));
    assert_eq!((&*error.host, error.status(), waits.lock().len()), (fake.host.as_str(), Some(404), 0));
}

#[tokio::test]
async fn overload_is_waited_out_as_the_server_asks() {
    let busy = first(2);
    let fake = Fake::scripted(move |_, _| busy().then(|| Reply::new(429).with("Retry-After", 7))).await;
    let want = fake.add_manifest("a", "1", MANIFEST);
    let (registry, waits) = client();
    assert_eq!(registry.resolve(&fake.reference("a:1"), &anonymous()).await.unwrap(), want);
    assert_eq!(*waits.lock(), [Duration::from_secs(7); 2]);
}

#[tokio::test]
async fn a_wait_beyond_the_budget_fails_at_once_with_a_hint() {
    let fake = Fake::scripted(|_, _| Some(Reply::new(429).with("Retry-After", 9999))).await;
    let (registry, waits) = client();
    let error = registry.resolve(&fake.reference("a:1"), &anonymous()).await.unwrap_err();
    assert!(waits.lock().is_empty() && fake.lines().len() == 1);
    assert_eq!((error.status(), error.class()), (Some(429), ErrorClass::Remote));
    assert!(error.hint().unwrap().contains("wait 9999 seconds"));
}

#[tokio::test]
async fn server_errors_and_resets_are_retried_a_bounded_number_of_times() {
    for (reply, status) in [(Reply::new(503), Some(503)), (Reply::new(500), Some(500)), (Reply::reset(), None)] {
        let (down, forever) = (first(3), reply.clone());
        let fake = Fake::scripted(move |_, _| down().then(|| reply.clone())).await;
        fake.add_manifest("a", "1", MANIFEST);
        client().0.resolve(&fake.reference("a:1"), &anonymous()).await.unwrap();

        let fake = Fake::scripted(move |_, _| Some(forever.clone())).await;
        let retry = RetryPolicy { attempts: 4, ..RetryPolicy::default() };
        let (registry, _) = client_with(RegistryConfig { retry, ..RegistryConfig::default() });
        let error = registry.resolve(&fake.reference("a:1"), &anonymous()).await.unwrap_err();
        assert_eq!((error.status(), fake.lines().len()), (status, 4), "{error}");
    }
}

#[tokio::test]
async fn a_silent_server_does_not_hold_the_client_for_ever() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let reference = format!("{}/a:1", listener.local_addr().unwrap()).parse().unwrap();
    let timeouts = Timeouts { response: Duration::from_millis(50), ..Timeouts::default() };
    let retry = RetryPolicy { attempts: 2, ..RetryPolicy::default() };
    let (registry, _) = client_with(RegistryConfig { timeouts, retry, ..RegistryConfig::default() });
    let error = registry.resolve(&reference, &anonymous()).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Timeout(_)), "{error}");
}

#[tokio::test]
async fn nobody_there_is_a_connection_error_with_a_hint() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let reference = format!("{}/a:1", listener.local_addr().unwrap()).parse().unwrap();
    drop(listener);
    let error = client().0.resolve(&reference, &anonymous()).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Connect(_)), "{error}");
    assert!(error.hint().unwrap().contains("reachable"));
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke() {
    let cuts = first(2);
    let bytes = data(1 << 20);
    let served = bytes.clone();
    let fake = Fake::scripted(move |seen, _| {
        if !cuts() {
            return None;
        }
        let start: usize = seen.header("range").trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap_or(0);
        let range = format!("bytes {start}-{}/{}", served.len() - 1, served.len());
        let status = if start == 0 { 200 } else { 206 };
        Some(Reply::new(status).with("Content-Range", range).body(&served[start..]).cut(200_000))
    })
    .await;
    let blob = fake.add_blob(&bytes);
    let (registry, waits) = client();
    assert!(read(&registry, &fake, &blob).await.unwrap() == bytes);
    let starts: Vec<_> = fake.log().iter().map(|s| s.header("range").to_owned()).collect();
    assert_eq!(starts, ["", "bytes=200000-", "bytes=400000-"]);
    assert_eq!(waits.lock().len(), 2);
}

#[tokio::test]
async fn a_server_without_ranges_sends_all_again_and_nothing_comes_twice() {
    let bytes = data(300_000);
    let (served, cuts) = (bytes.clone(), first(2));
    let fake = Fake::scripted(move |_, _| {
        let reply = Reply::new(200).body(served.clone());
        Some(if cuts() { reply.cut(123_457) } else { reply })
    })
    .await;
    let blob = fake.add_blob(&bytes);
    assert!(read(&client().0, &fake, &blob).await.unwrap() == bytes);
}

#[tokio::test]
async fn a_range_that_is_refused_is_not_asked_for_again() {
    let bytes = data(300_000);
    let (served, cut) = (bytes.clone(), first(1));
    let fake = Fake::scripted(move |seen, _| match seen.header("range") {
        "" if cut() => Some(Reply::new(200).body(served.clone()).cut(100_000)),
        "" => None,
        _ => Some(Reply::new(416)),
    })
    .await;
    let blob = fake.add_blob(&bytes);
    assert!(read(&client().0, &fake, &blob).await.unwrap() == bytes);
    assert_eq!(fake.lines().len(), 3);
}

#[tokio::test]
async fn what_is_here_already_is_not_fetched_and_still_verified() {
    let bytes = data(300_000);
    let fake = Fake::new().await;
    let blob = fake.add_blob(&bytes);
    let repository = Repository::new(&fake.host, "a");
    for (here, good) in [(bytes[..200_000].to_vec(), true), (vec![b'x'; 200_000], false)] {
        let mut start = FetchStart { offset: 200_000, ..FetchStart::default() };
        start.hasher.update(&here);
        let user = anonymous();
        let stream = client().0.fetch_blob_from(&repository, &blob, start, &user).await.unwrap();
        let rest: Result<Vec<_>, _> = stream.try_collect().await;
        assert_eq!(fake.log().last().unwrap().header("range"), "bytes=200000-");
        match rest {
            Ok(rest) => assert!(good && rest.concat() == bytes[200_000..]),
            Err(error) => assert!(!good && matches!(error.kind, ErrorKind::DigestMismatch { .. }), "{error}"),
        }
    }
    let avoided = FetchStart { avoid: vec![fake.host.clone()], ..FetchStart::default() };
    assert!(client().0.fetch_blob_from(&repository, &blob, avoided, &anonymous()).await.is_err());
}

#[tokio::test]
async fn a_download_that_never_gets_on_fails() {
    let fake =
        Fake::scripted(|_, c| Some(Reply::new(200).body(c.blobs.values().next().unwrap().clone()).cut(10))).await;
    let blob = fake.add_blob(&data(5000));
    let retry = RetryPolicy { attempts: 3, ..RetryPolicy::default() };
    let (registry, _) = client_with(RegistryConfig { retry, ..RegistryConfig::default() });
    let error = read(&registry, &fake, &blob).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Interrupted(_)), "{error}");
    assert_eq!(fake.lines().len(), 3);
}

#[tokio::test]
async fn wrong_bytes_and_wrong_lengths_never_look_complete() {
    let good = data(100_000);
    let mut flipped = good.clone();
    flipped[50_000] ^= 1;
    let longer = [&good[..], b"x"].concat();
    for (served, chunked) in [(flipped, false), (longer.clone(), false), (longer, true), (good[..99].to_vec(), false)] {
        let fake = Fake::scripted(move |_, _| {
            let reply = Reply::new(200).body(served.clone());
            // Without a length the client can only count.
            Some(if chunked {
                reply.with("Connection", "close").with("Content-Length", "").cut(served.len())
            } else {
                reply
            })
        })
        .await;
        let blob = Descriptor::of(media::OCI_LAYER, &good);
        let retry = RetryPolicy { attempts: 2, ..RetryPolicy::default() };
        let (registry, _) = client_with(RegistryConfig { retry, ..RegistryConfig::default() });
        assert!(read(&registry, &fake, &blob).await.is_err());
    }
}

#[tokio::test]
async fn the_last_piece_is_held_back_until_the_digest_is_right() {
    let fake = Fake::new().await;
    let wrong = Digest::of("wrong");
    fake.content(|c| c.blobs.insert(wrong.to_string(), data(1000)));
    let blob = Descriptor::new(media::OCI_LAYER, wrong, 1000);
    let stream = client().0.fetch_blob(&Repository::new(&fake.host, "a"), &blob, &anonymous()).await.unwrap();
    let mut got = 0;
    let result: Result<(), _> = stream
        .try_for_each(|p| {
            got += p.len();
            futures::future::ok(())
        })
        .await;
    assert!(matches!(result.unwrap_err().kind, ErrorKind::DigestMismatch { .. }));
    assert!(got < 1000);
}

#[tokio::test]
async fn empty_blobs_need_no_request() {
    let fake = Fake::new().await;
    assert_eq!(read(&client().0, &fake, &Descriptor::of(media::OCI_LAYER, b"")).await.unwrap(), b"");
    assert!(fake.lines().is_empty());
}

#[tokio::test]
async fn mirrors_are_asked_first_and_left_when_they_fail() {
    let origin = Fake::new().await;
    let bytes = data(10_000);
    let blob = origin.add_blob(&bytes);
    let want = origin.add_manifest("me/app", "1", MANIFEST);
    let empty = Fake::new().await;
    let liar = Fake::scripted(|seen, _| seen.path.contains("/blobs/").then(|| Reply::new(200).body("no"))).await;
    let mut config = RegistryConfig::default();
    let mirrors = vec![empty.host.clone(), format!("{}/cache", liar.host)];
    config.hosts.insert(origin.host.clone(), HostConfig { mirrors, ..HostConfig::default() });
    let (registry, _) = client_with(config);
    assert_eq!(registry.resolve(&origin.reference("me/app:1"), &anonymous()).await.unwrap(), want);
    assert_eq!(read(&registry, &origin, &blob).await.unwrap(), bytes);
    assert_eq!(liar.lines()[0], "HEAD /v2/cache/me/app/manifests/1");
    assert_eq!(empty.log()[0].query["ns"], std::slice::from_ref(&origin.host));
    empty.add_blob(&bytes);
    let before = origin.lines().len();
    assert_eq!(read(&registry, &origin, &blob).await.unwrap(), bytes);
    assert_eq!(origin.lines().len(), before);
}

#[tokio::test]
async fn foreign_layers_come_from_their_own_address() {
    let (fake, elsewhere) = (Fake::new().await, Fake::new().await);
    let bytes = data(3000);
    let mut blob = elsewhere.add_blob(&bytes);
    blob.urls = vec![format!("http://{}/v2/x/blobs/{}", elsewhere.host, blob.digest)];
    assert_eq!(read(&client().0, &fake, &blob).await.unwrap(), bytes);
}

#[tokio::test]
async fn an_insecure_host_falls_back_to_plain_http() {
    let fake = Fake::new().await;
    let want = fake.add_manifest("a", "1", MANIFEST);
    let secure = HostConfig { http: Some(false), ..HostConfig::default() };
    let mut config = RegistryConfig::default();
    config.hosts.insert(fake.host.clone(), secure);
    let (registry, _) = client_with(config);
    let reference = fake.reference("a:1");
    let error = registry.resolve(&reference, &anonymous()).await.unwrap_err();
    assert!(error.hint().is_some() && fake.lines().is_empty(), "{error}");
    let lenient = registry.allowing_insecure(&fake.host);
    assert_eq!(lenient.resolve(&reference, &anonymous()).await.unwrap(), want);
}

#[tokio::test]
async fn the_length_of_a_blob_is_asked_without_reading_it() {
    let fake = Fake::new().await;
    let blob = fake.add_blob(&data(700));
    let repository = Repository::new(&fake.host, "me/app");
    assert_eq!(client().0.blob_size(&repository, &blob.digest, &anonymous()).await.unwrap(), 700);
    assert_eq!(fake.lines(), [format!("HEAD /v2/me/app/blobs/{}", blob.digest)]);
    let gone = client().0.blob_size(&repository, &Digest::of("gone"), &anonymous()).await.unwrap_err();
    assert!(gone.is_not_found(), "{gone}");

    let fake = Fake::scripted(|seen, _| (seen.method == "HEAD").then(|| Reply::new(405))).await;
    let blob = fake.add_blob(&data(900));
    let repository = Repository::new(&fake.host, "me/app");
    assert_eq!(client().0.blob_size(&repository, &blob.digest, &anonymous()).await.unwrap(), 900);
}
