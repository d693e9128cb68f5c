//! Sessions that come, go, collide and hand over directories.

mod common;

use std::fs;
use std::os::fd::OwnedFd;
use std::time::Duration;

use common::{PATIENCE, offer, rig};
use kiln_session::direct::{self, DirectListener};
use kiln_session::transfer::TreeSource;
use kiln_session::tree::DirTree;
use kiln_session::{SessionError, SessionHeaders};
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn a_session_can_be_awaited_before_it_comes() {
    let rig = rig().await;
    let server = offer().name("n").build();
    let id = server.id().to_owned();
    let (registry, wanted) = (rig.registry.clone(), format!("prefix:{id}"));
    let waiting = tokio::spawn(async move { registry.get(&wanted, PATIENCE).await });
    let running = server.start(rig.channel.clone());
    let session = waiting.await.unwrap().unwrap();
    assert_eq!((session.id(), session.name(), session.shared_key()), (id.as_str(), "n", "shared"));
    assert!(session.supports("/GRPC.health.v1.Health/check") && !session.supports("/x/Y"));
    assert_eq!(rig.registry.ids(), std::slice::from_ref(&id));
    running.close().await;
    tokio::time::timeout(PATIENCE, session.closed()).await.unwrap();
    assert!(rig.registry.try_get(&id).is_none());
}

#[tokio::test]
async fn a_session_that_does_not_come_is_a_typed_error() {
    let rig = rig().await;
    let error = rig.registry.get("nobody", Duration::ZERO).await.unwrap_err();
    assert_eq!(error.to_string(), "no active session for nobody: context deadline exceeded");
    assert!(error.is_gone());
}

#[tokio::test]
async fn two_sessions_of_one_id_collide() {
    let rig = rig().await;
    let (_running, first) = rig.open(offer().id("twin")).await;
    let (io, _other) = tokio::io::duplex(64);
    let headers = SessionHeaders { id: "twin".into(), ..SessionHeaders::default() };
    assert!(matches!(rig.registry.serve(headers, io).await, Err(SessionError::Duplicate { .. })));
    assert!(!first.is_closed());
}

#[tokio::test]
async fn an_abrupt_end_is_noticed_and_named() {
    let rig = rig().await;
    let (running, session) = rig.open(offer()).await;
    drop(running);
    tokio::time::timeout(PATIENCE, session.closed()).await.unwrap();
    let error = session.secret("x").await;
    // Secrets are not offered; the end of the session wins all the same.
    assert!(matches!(error, Err(SessionError::Closed { .. })), "{error:?}");
    let (_running, again) = rig.open(offer()).await;
    again.close("enough");
    assert_eq!(again.secret("x").await.unwrap_err().to_string(), "the client's session ended: enough");
}

#[tokio::test]
async fn something_that_is_no_session_is_refused() {
    let rig = rig().await;
    let (io, other) = tokio::io::duplex(64);
    drop(other);
    let headers = SessionHeaders { id: "broken".into(), ..SessionHeaders::default() };
    // A stream that ends at once may fail the handshake or end the session; either way nothing stays.
    let _ = tokio::time::timeout(PATIENCE, rig.registry.serve(headers, io)).await.unwrap();
    assert!(rig.registry.ids().is_empty());
}

#[tokio::test]
async fn a_directory_is_handed_over_by_descriptor() {
    let rig = rig().await;
    let context = rig.path().join("context");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("file"), "x").unwrap();
    let socket = direct::socket_path(&rig.path().join("engine.sock"));
    assert_eq!(socket, rig.path().join("direct.sock"));
    let cancel = CancellationToken::new();
    let serving = tokio::spawn(DirectListener::bind(&socket).unwrap().serve(rig.registry.clone(), cancel.clone()));
    let (running, session) = rig.open(offer()).await;
    let dir = || OwnedFd::from(fs::File::open(&context).unwrap());
    direct::offer(&socket, running.id(), "context", dir()).await.unwrap();
    assert!(session.direct_dir("other").is_none());
    let mut paths = Vec::new();
    let tree = DirTree::from_fd(session.direct_dir("context").unwrap());
    tree.walk(&mut |stat| {
        paths.push(stat.path);
        Ok(())
    })
    .unwrap();
    assert_eq!(paths, [b"file"]);
    // The name may go: the descriptor stays, and follows the directory.
    fs::rename(&context, rig.path().join("moved")).unwrap();
    assert!(tree.open(b"file").is_ok());
    let file = OwnedFd::from(fs::File::open(rig.path().join("moved/file")).unwrap());
    let error = direct::offer(&socket, running.id(), "context", file).await.unwrap_err();
    assert!(error.to_string().contains("no directory"), "{error}");
    running.close().await;
    tokio::time::timeout(PATIENCE, session.closed()).await.unwrap();
    let gone = async {
        while session.direct_dir("context").is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("descriptors end with the session");
    cancel.cancel();
    serving.await.unwrap();
    assert!(!socket.exists());
    assert!(direct::offer(&socket, "x", "context", OwnedFd::from(fs::File::open("/").unwrap())).await.is_err());
}

#[test]
fn a_tree_never_leaves_its_root() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(dir.path().join("outside"), "secret").unwrap();
    std::os::unix::fs::symlink("..", root.join("up")).unwrap();
    std::os::unix::fs::symlink("../outside", root.join("leak")).unwrap();
    let tree = DirTree::open(&root).unwrap();
    for path in [&b"leak"[..], b"up/outside", b"../outside", b"/etc/passwd"] {
        assert!(tree.open(path).is_err(), "{}", String::from_utf8_lossy(path));
    }
}
