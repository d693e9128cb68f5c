//! Clients that are silent, endless, or change their files while they are read.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Collect, PATIENCE, offer, rig};
use futures::stream;
use kiln_session::client::{FileSyncProvider, LocalDir};
use kiln_session::proto::fs::packet::PacketType;
use kiln_session::proto::fs::{Packet, Stat};
use kiln_session::transfer::receive;
use kiln_session::{SessionError, SessionHeaders, SessionRegistry, SyncRequest, TransferOptions};
use tokio::sync::mpsc;

/// How long a silent client is waited for here.
const SHORT: Duration = Duration::from_millis(200);

fn silent(registry: &SessionRegistry) -> (tokio::io::DuplexStream, tokio::task::JoinHandle<Result<(), SessionError>>) {
    let (io, peer) = tokio::io::duplex(1 << 20);
    let method = "/moby.buildkit.secrets.v1.Secrets/GetSecret".to_owned();
    let headers = SessionHeaders { id: "mute".into(), methods: vec![method], ..SessionHeaders::default() };
    let registry = registry.clone();
    (peer, tokio::spawn(async move { registry.serve(headers, io).await }))
}

#[tokio::test]
async fn a_silent_client_fails_what_is_asked_of_it_and_is_named() {
    let registry = SessionRegistry::with_patience(SHORT);
    let (_peer, serving) = silent(&registry);
    let session = registry.get("mute", PATIENCE).await.unwrap();
    let error = session.secret("x").await.unwrap_err().to_string();
    assert!(error.contains("session mute"), "{error}");
    serving.abort();
}

#[tokio::test]
async fn silence_ends_a_session_only_while_something_is_asked_of_it() {
    let registry = SessionRegistry::with_patience(SHORT);
    let (_peer, serving) = silent(&registry);
    let session = registry.get("mute", PATIENCE).await.unwrap();
    // Several checks go unanswered before anything is asked.
    let quiet = tokio::time::timeout(SHORT * 6, session.closed()).await;
    assert!(quiet.is_err(), "dropped while nothing was asked of it");
    let asking = async {
        while !session.is_closed() {
            let _ = session.secret("x").await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("given up while it was asked");
    tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap().unwrap();
    let error = session.secret("x").await.unwrap_err().to_string();
    assert!(error.contains("session mute: health check failed"), "{error}");
}

#[tokio::test]
async fn a_listing_without_end_is_cut_off() {
    let endless = stream::iter(0u64..).map_packets();
    let options = TransferOptions { listing: 1 << 20, ..TransferOptions::default() };
    let (outgoing, mut said) = mpsc::channel(8);
    let target = Collect { list_only: true, ..Collect::default() };
    let done = tokio::time::timeout(PATIENCE, receive(endless, outgoing, target, &options)).await.unwrap();
    let Err(error) = done else { panic!("an end") };
    assert!(error.to_string().contains("a listing of more than"), "{error}");
    let last = said.recv().await.unwrap();
    assert_eq!(last.r#type(), PacketType::PacketErr, "the peer is told");
}

trait MapPackets: Sized {
    fn map_packets(self) -> impl futures::Stream<Item = Result<Packet, tonic::Status>> + Send;
}

impl<S: futures::Stream<Item = u64> + Send> MapPackets for S {
    fn map_packets(self) -> impl futures::Stream<Item = Result<Packet, tonic::Status>> + Send {
        use futures::StreamExt;
        self.map(|n| {
            let stat = Stat { path: format!("{n:020}").into(), mode: 0o644, ..Stat::default() };
            Ok(Packet { r#type: PacketType::PacketStat.into(), stat: Some(stat), ..Packet::default() })
        })
    }
}

#[test]
fn a_directory_that_becomes_a_link_while_it_is_read_leads_nowhere() {
    let top = tempfile::tempdir().unwrap();
    let (root, outside) = (top.path().join("root"), top.path().join("outside"));
    fs::create_dir_all(root.join("dir")).unwrap();
    fs::create_dir(&outside).unwrap();
    for n in 0..20 {
        fs::write(root.join(format!("dir/{n}")), "inside").unwrap();
        fs::write(outside.join(n.to_string()), "outside").unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (dir, link, kept) = (root.join("dir"), root.join("link"), root.join("kept"));
    symlink(&outside, &link).unwrap();
    let stopped = stop.clone();
    let swapping = std::thread::spawn(move || {
        // The names change places, back and forth.
        while !stopped.load(Ordering::Relaxed) {
            let _ = fs::rename(&dir, &kept).and_then(|()| fs::rename(&link, &dir));
            let _ = fs::rename(&dir, &link).and_then(|()| fs::rename(&kept, &dir));
        }
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let seen = runtime.block_on(async {
        let rig = rig().await;
        let provider = FileSyncProvider::new([("context".to_owned(), LocalDir::new(&root))]);
        let (_running, session) = rig.open(offer().file_sync(provider)).await;
        let request = SyncRequest { name: "context".into(), ..SyncRequest::default() };
        let mut seen = Vec::new();
        for _ in 0..60 {
            let options = TransferOptions::default();
            let sync = session.sync(&request, Collect::default(), &options);
            let Ok(done) = tokio::time::timeout(PATIENCE, sync).await else { return None };
            // A tree that changes under the reader may be an error.
            seen.extend(done.ok().into_iter().flat_map(|got| got.contents.into_values()));
        }
        Some(seen)
    });
    stop.store(true, Ordering::Relaxed);
    swapping.join().unwrap();
    let seen = seen.expect("a transfer that ends");
    assert!(seen.iter().any(|content| content == b"inside"), "something was read");
    assert!(!seen.iter().any(|content| content == b"outside"), "a file outside the directory was sent");
}
