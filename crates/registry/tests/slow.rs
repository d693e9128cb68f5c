//! Servers that take their time: bodies that stand still, trickle, or are not taken.

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use kiln_oci::{Descriptor, media};
use kiln_registry::{ErrorKind, Registry, RegistryConfig, RegistryError, Repository, RetryPolicy, Timeouts};
use support::{anonymous, client_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How long nothing may move in these tests.
const STALL: Duration = Duration::from_millis(100);

fn patient(attempts: u32) -> Registry {
    let timeouts = Timeouts { stall: STALL, ..Timeouts::default() };
    let retry = RetryPolicy { attempts, ..RetryPolicy::default() };
    client_with(RegistryConfig { timeouts, retry, ..RegistryConfig::default() }).0
}

fn data() -> Vec<u8> {
    (0..300_000u32).map(|i| (i * 7 % 253) as u8).collect()
}

/// Reads the head of a request.
async fn head(connection: &mut TcpStream) -> String {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        match connection.read_u8().await {
            Ok(byte) => seen.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&seen).to_lowercase()
}

async fn fetch(registry: &Registry, host: &str, blob: &Descriptor) -> Result<Vec<u8>, RegistryError> {
    let stream = registry.fetch_blob(&Repository::new(host, "a"), blob, &anonymous()).await?;
    let join = |mut all: Vec<u8>, piece: Bytes| async move {
        all.extend_from_slice(&piece);
        Ok(all)
    };
    stream.try_fold(Vec::new(), join).await
}

#[tokio::test]
async fn a_body_that_stands_still_is_gone_on_with_by_another_request() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let (content, half) = (data(), 100_000);
    let served = content.clone();
    let server = tokio::spawn(async move {
        let (mut first, _) = listener.accept().await.unwrap();
        head(&mut first).await;
        let reply = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", served.len());
        first.write_all(&[reply.as_bytes(), &served[..half]].concat()).await.unwrap();
        let (mut second, _) = listener.accept().await.unwrap();
        let asked = head(&mut second).await;
        let (rest, all) = (served.len() - half, served.len());
        let range = format!("content-range: bytes {half}-{}/{all}", all - 1);
        let reply = format!("HTTP/1.1 206 Partial Content\r\ncontent-length: {rest}\r\n{range}\r\n\r\n");
        second.write_all(&[reply.as_bytes(), &served[half..]].concat()).await.unwrap();
        (asked, first)
    });
    let blob = Descriptor::of(media::OCI_LAYER, &content);
    assert!(fetch(&patient(3), &host, &blob).await.unwrap() == content);
    let (asked, _) = server.await.unwrap();
    assert!(asked.contains(&format!("range: bytes={half}-")), "{asked}");
}

#[tokio::test]
async fn a_body_that_trickles_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let blob = Descriptor::of(media::OCI_LAYER, &data());
    let size = blob.size;
    let server = tokio::spawn(async move {
        let mut requests = 0;
        while let Ok((mut connection, _)) = listener.accept().await {
            requests += 1;
            head(&mut connection).await;
            let reply = format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n");
            let mut alive = connection.write_all(reply.as_bytes()).await.is_ok();
            // A byte now and then, always well within the time in which something has to come.
            while alive {
                alive = connection.write_all(b"x").await.is_ok();
                tokio::time::sleep(STALL / 10).await;
            }
            if requests == 2 {
                break;
            }
        }
        requests
    });
    let error = fetch(&patient(2), &host, &blob).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Timeout(_)), "{error}");
    assert_eq!(server.await.unwrap(), 2);
}

#[tokio::test]
async fn an_upload_that_nobody_takes_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut connection, _)) = listener.accept().await {
            loop {
                let asked = head(&mut connection).await;
                let reply = match asked.split(' ').next() {
                    Some("head") => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
                    Some("post") => "HTTP/1.1 202 Accepted\r\nlocation: /upload\r\ncontent-length: 0\r\n\r\n",
                    _ => break,
                };
                connection.write_all(reply.as_bytes()).await.unwrap();
            }
            held.push(connection);
        }
    });
    // More than the kernel holds for one connection.
    let content = Bytes::from(vec![7; 32 << 20]);
    let blob = Descriptor::of(media::OCI_LAYER, &content);
    let repository = Repository::new(&host, "a");
    let error = patient(1).push_blob(&repository, &blob, Arc::new(content), &[], &anonymous()).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Timeout(_)), "{error}");
    server.abort();
}
