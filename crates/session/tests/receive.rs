//! Results of a build as the client keeps them.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use common::{PATIENCE, Rig, offer, rig};
use kiln_session::client::{FileReceivers, ReceiveTarget};
use kiln_session::tree::DirTree;
use kiln_session::{SendOutcome, Session, SessionError, TransferOptions};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

async fn open(rig: &Rig, target: ReceiveTarget) -> (kiln_session::client::RunningSession, Arc<Session>) {
    rig.open(offer().file_send(FileReceivers::new([(3, target)]))).await
}

fn names(dir: &Path) -> Vec<String> {
    let mut list: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    list.sort();
    list
}

async fn send_dir(session: &Session, from: &Path, multi: bool) -> Result<SendOutcome, SessionError> {
    session.send_dir(3, DirTree::open(from).unwrap(), multi, &TransferOptions::default()).await
}

#[tokio::test]
async fn a_file_appears_when_it_is_complete() {
    let rig = rig().await;
    let out = rig.path().join("out");
    fs::create_dir(&out).unwrap();
    let (_running, session) = open(&rig, ReceiveTarget::File(out.join("image.tar"))).await;
    let mut file = session.send_file(3, &BTreeMap::new()).unwrap();
    let data = vec![7; 3_000_000];
    file.write(&data).await.unwrap();
    assert!(!out.join("image.tar").exists());
    assert_eq!(file.finish(&CancellationToken::new()).await.unwrap(), SendOutcome::Done);
    assert_eq!(fs::read(out.join("image.tar")).unwrap(), data);
    assert_eq!(names(&out), ["image.tar"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocking_threads_can_write_too() {
    let rig = rig().await;
    let path = rig.path().join("image.tar");
    let (_running, session) = open(&rig, ReceiveTarget::File(path.clone())).await;
    let mut file = session.send_file(3, &BTreeMap::new()).unwrap().into_blocking();
    let done = tokio::task::spawn_blocking(move || {
        for i in 0..1000u32 {
            file.write_all(&i.to_le_bytes()).unwrap();
        }
        file.finish(&CancellationToken::new())
    });
    assert_eq!(done.await.unwrap().unwrap(), SendOutcome::Done);
    assert_eq!(fs::metadata(path).unwrap().len(), 4000);
}

#[tokio::test]
async fn a_file_that_is_given_up_leaves_nothing() {
    let rig = rig().await;
    let out = rig.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("image.tar"), "the old one").unwrap();
    let (running, session) = open(&rig, ReceiveTarget::File(out.join("image.tar"))).await;
    let mut file = session.send_file(3, &BTreeMap::new()).unwrap();
    file.write(&vec![1; 2_000_000]).await.unwrap();
    drop(file);
    drop(session);
    tokio::time::timeout(PATIENCE, running.close()).await.unwrap();
    // The receiver may see the end of the call after the session's.
    let gone = async {
        while names(&out) != ["image.tar"] {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("nothing but the old file is left");
    assert_eq!(fs::read(out.join("image.tar")).unwrap(), b"the old one");
}

#[tokio::test]
async fn streams_and_choosers_get_the_bytes() {
    let rig = rig().await;
    let (mut read, write) = tokio::io::duplex(1 << 16);
    let (_running, session) = open(&rig, ReceiveTarget::stream(write)).await;
    let mut file = session.send_file(3, &BTreeMap::new()).unwrap();
    file.write(b"to standard output").await.unwrap();
    file.finish(&CancellationToken::new()).await.unwrap();
    let mut text = String::new();
    read.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "to standard output");
    let again = session.send_file(3, &BTreeMap::new()).unwrap().finish(&CancellationToken::new()).await;
    assert_eq!(again.unwrap(), SendOutcome::Skipped, "a stream is written once");

    let choose = ReceiveTarget::Chosen(Box::new(|meta: &BTreeMap<String, String>| {
        assert_eq!(meta["containerimage.digest"], "größe");
        Ok(None)
    }));
    let (_running, session) = open(&rig, choose).await;
    let meta = BTreeMap::from([("containerimage.digest".to_owned(), "größe".to_owned())]);
    let file = session.send_file(3, &meta).unwrap();
    assert_eq!(file.finish(&CancellationToken::new()).await.unwrap(), SendOutcome::Skipped);
}

#[tokio::test]
async fn unknown_exporters_and_failing_writers_are_errors() {
    let rig = rig().await;
    let failing = ReceiveTarget::Chosen(Box::new(|_: &BTreeMap<String, String>| Err(io::Error::other("no room"))));
    let (_running, session) = open(&rig, failing).await;
    let finish = async |id| session.send_file(id, &BTreeMap::new()).unwrap().finish(&CancellationToken::new()).await;
    let error = finish(3).await.unwrap_err().to_string();
    assert!(error.contains("no room"), "{error}");
    let error = finish(9).await.unwrap_err().to_string();
    assert!(error.contains("exporter 9 not found"), "{error}");
}

fn tree(dir: &Path) {
    fs::create_dir_all(dir.join("bin")).unwrap();
    fs::write(dir.join("bin/tool"), "binary").unwrap();
    fs::set_permissions(dir.join("bin/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::hard_link(dir.join("bin/tool"), dir.join("bin/alias")).unwrap();
    symlink("bin/tool", dir.join("link")).unwrap();
    fs::write(dir.join("note"), "").unwrap();
    fs::set_permissions(dir.join("bin"), fs::Permissions::from_mode(0o750)).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::open(dir.join("bin")).unwrap().set_modified(time).unwrap();
}

fn check_tree(dir: &Path) {
    assert_eq!(fs::read(dir.join("bin/tool")).unwrap(), b"binary");
    let tool = fs::metadata(dir.join("bin/tool")).unwrap();
    assert_eq!(tool.permissions().mode() & 0o7777, 0o755);
    assert_eq!(tool.ino(), fs::metadata(dir.join("bin/alias")).unwrap().ino(), "a hard link stays one");
    assert_eq!(fs::read_link(dir.join("link")).unwrap(), Path::new("bin/tool"));
    assert_eq!(fs::metadata(dir.join("note")).unwrap().len(), 0);
    let bin = fs::metadata(dir.join("bin")).unwrap();
    assert_eq!((bin.permissions().mode() & 0o7777, bin.mtime()), (0o750, 1_000_000_000));
}

#[tokio::test]
async fn a_new_directory_appears_whole() {
    let rig = rig().await;
    let (from, to) = (rig.path().join("from"), rig.path().join("made/by/export"));
    fs::create_dir(&from).unwrap();
    tree(&from);
    let (_running, session) = open(&rig, ReceiveTarget::Dir { path: to.clone(), delete: false }).await;
    assert_eq!(send_dir(&session, &from, false).await.unwrap(), SendOutcome::Done);
    check_tree(&to);
    assert_eq!(names(to.parent().unwrap()), ["export"]);
}

#[tokio::test]
async fn into_an_existing_directory_files_are_replaced_and_others_stay() {
    let rig = rig().await;
    let (from, to) = (rig.path().join("from"), rig.path().join("to"));
    fs::create_dir(&from).unwrap();
    tree(&from);
    fs::create_dir_all(to.join("note/was/a/dir")).unwrap();
    fs::create_dir_all(to.join("bin")).unwrap();
    fs::write(to.join("bin/tool"), "old").unwrap();
    fs::write(to.join("mine"), "stays").unwrap();
    let (_running, session) = open(&rig, ReceiveTarget::Dir { path: to.clone(), delete: false }).await;
    send_dir(&session, &from, false).await.unwrap();
    check_tree(&to);
    assert_eq!(names(&to), ["bin", "link", "mine", "note"]);
}

#[tokio::test]
async fn mirroring_removes_the_rest_but_needs_all_platforms_at_once() {
    let rig = rig().await;
    let (from, to) = (rig.path().join("from"), rig.path().join("to"));
    fs::create_dir(&from).unwrap();
    tree(&from);
    fs::create_dir_all(to.join("old/deep")).unwrap();
    fs::write(to.join("bin"), "was a file").unwrap();
    let (_running, session) = open(&rig, ReceiveTarget::Dir { path: to.clone(), delete: true }).await;
    let error = send_dir(&session, &from, false).await.unwrap_err().to_string();
    assert!(error.contains("mode=delete"), "{error}");
    assert!(to.join("old/deep").exists(), "nothing was touched");
    send_dir(&session, &from, true).await.unwrap();
    check_tree(&to);
    assert_eq!(names(&to), ["bin", "link", "note"]);
}

#[tokio::test]
async fn a_tree_that_cannot_be_read_leaves_nothing() {
    struct Broken;
    impl kiln_session::TreeSource for Broken {
        fn walk(&self, emit: &mut dyn FnMut(kiln_session::proto::fs::Stat) -> io::Result<()>) -> io::Result<()> {
            let stat =
                |path: &str| kiln_session::proto::fs::Stat { path: path.into(), mode: 0o644, ..Default::default() };
            emit(stat("a"))?;
            Err(io::Error::other("the layer is damaged"))
        }

        fn open(&self, _: &[u8]) -> io::Result<Box<dyn io::Read + Send>> {
            Err(io::ErrorKind::NotFound.into())
        }
    }
    let rig = rig().await;
    let to = rig.path().join("to");
    let (running, session) = open(&rig, ReceiveTarget::Dir { path: to.clone(), delete: false }).await;
    let error = session.send_dir(3, Broken, false, &TransferOptions::default()).await.unwrap_err();
    assert!(error.to_string().contains("the layer is damaged"), "{error}");
    drop(session);
    tokio::time::timeout(PATIENCE, running.close()).await.unwrap();
    let gone = async {
        while names(rig.path()) != ["engine.sock"] {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("neither the directory nor what was written aside");
}

#[tokio::test]
async fn a_listing_that_would_escape_is_refused() {
    struct Evil;
    impl kiln_session::TreeSource for Evil {
        fn walk(&self, emit: &mut dyn FnMut(kiln_session::proto::fs::Stat) -> io::Result<()>) -> io::Result<()> {
            let path = b"../escaped".to_vec();
            emit(kiln_session::proto::fs::Stat { path, mode: 0o644, ..Default::default() })
        }

        fn open(&self, _: &[u8]) -> io::Result<Box<dyn io::Read + Send>> {
            Ok(Box::new(&b"evil"[..]))
        }
    }
    let rig = rig().await;
    let to = rig.path().join("to");
    let (_running, session) = open(&rig, ReceiveTarget::Dir { path: to.clone(), delete: false }).await;
    let error = session.send_dir(3, Evil, false, &TransferOptions::default()).await.unwrap_err();
    assert!(error.to_string().contains("unclean path"), "{error}");
    assert!(!to.exists() && !rig.path().join("escaped").exists());
}
