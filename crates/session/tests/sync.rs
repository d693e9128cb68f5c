//! Directories of the client as the engine gets them.

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use common::{Collect, PATIENCE, offer, rig};
use kiln_session::client::{FileSyncProvider, LocalDir};
use kiln_session::stat::{Kind, go};
use kiln_session::{SessionError, SyncRequest, TransferOptions};
use tokio_util::sync::CancellationToken;

fn provider(path: &Path) -> FileSyncProvider {
    FileSyncProvider::new([("context".to_owned(), LocalDir::new(path))])
}

fn request() -> SyncRequest {
    SyncRequest { name: "context".into(), ..SyncRequest::default() }
}

async fn sync(path: &Path, request: &SyncRequest) -> Result<Collect, SessionError> {
    let rig = rig().await;
    let (_running, session) = rig.open(offer().file_sync(provider(path))).await;
    session.sync(request, Collect::default(), &TransferOptions::default()).await
}

#[tokio::test]
async fn odd_trees_arrive_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let at = |p: &str| dir.path().join(p);
    fs::create_dir_all(at("a/deep")).unwrap();
    fs::write(at("a/deep/file"), "x".repeat(200_000)).unwrap();
    fs::write(at("a-b"), "after the children of a").unwrap();
    fs::write(at("empty"), "").unwrap();
    fs::hard_link(at("a/deep/file"), at("hard")).unwrap();
    symlink("/outside/of/it", at("link")).unwrap();
    let odd = dir.path().join(OsStr::from_bytes(b"bad\xff\xfename"));
    fs::write(&odd, "odd").unwrap();
    fs::set_permissions(at("a-b"), fs::Permissions::from_mode(0o4711)).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("sock")).unwrap();

    let got = sync(dir.path(), &request()).await.unwrap();
    assert_eq!(
        got.paths(),
        ["a", "a/deep", "a/deep/file", "a-b", "bad\u{fffd}\u{fffd}name", "empty", "hard", "link", "pipe", "sock"]
    );
    assert!(got.listed);
    assert_eq!(got.content(b"a/deep/file").len(), 200_000);
    assert_eq!(got.content(b"bad\xff\xfename"), b"odd");
    assert_eq!(got.content(b"empty"), b"");
    assert_eq!(got.get(b"hard").linkname, b"a/deep/file");
    assert_eq!(got.get(b"hard").kind(), Kind::HardLink);
    assert_eq!(got.get(b"link").linkname, b"/outside/of/it");
    assert_eq!(got.get(b"pipe").kind(), Kind::Fifo);
    assert_eq!(got.get(b"sock").mode & go::TYPE, 0, "a socket loses its kind");
    assert_eq!(got.get(b"a-b").mode, go::SETUID | 0o711);
    assert_eq!((got.get(b"a").uid, got.get(b"a").size), (0, 0));
}

#[tokio::test]
async fn patterns_narrow_the_tree() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["keep/a.txt", "keep/a.tmp", "drop/b.txt", "größe/c.txt", "z.txt"] {
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, file).unwrap();
    }
    symlink("keep/a.txt", dir.path().join("alias")).unwrap();
    let excluded = SyncRequest { exclude_patterns: vec!["drop".into(), "**/*.tmp".into()], ..request() };
    let got = sync(dir.path(), &excluded).await.unwrap();
    assert_eq!(got.paths(), ["alias", "größe", "größe/c.txt", "keep", "keep/a.txt", "z.txt"]);
    let included = SyncRequest { include_patterns: vec!["größe/*.txt".into()], ..request() };
    let got = sync(dir.path(), &included).await.unwrap();
    assert_eq!(got.paths(), ["größe", "größe/c.txt"], "parents come along");
    let followed = SyncRequest { follow_paths: vec!["alias".into()], ..request() };
    let got = sync(dir.path(), &followed).await.unwrap();
    assert_eq!(got.paths(), ["alias", "keep", "keep/a.txt"]);
}

#[tokio::test]
async fn hard_links_to_what_is_left_out_become_files() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("first"), "same").unwrap();
    for name in ["second", "third"] {
        fs::hard_link(dir.path().join("first"), dir.path().join(name)).unwrap();
    }
    let request = SyncRequest { exclude_patterns: vec!["first".into()], ..request() };
    let got = sync(dir.path(), &request).await.unwrap();
    assert_eq!(got.content(b"second"), b"same");
    assert_eq!(got.get(b"third").linkname, b"second");
}

#[tokio::test]
async fn sixty_kilobytes_of_patterns_fit() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    let patterns = (0..1500).map(|i| format!("**/some/long/pattern/number-{i:04}/*.o")).collect();
    let request = SyncRequest { exclude_patterns: patterns, ..request() };
    assert_eq!(sync(dir.path(), &request).await.unwrap().paths(), ["file"]);
}

#[tokio::test]
async fn many_files_arrive_complete() {
    let dir = tempfile::tempdir().unwrap();
    for d in 0..40 {
        let sub = dir.path().join(format!("d{d:02}"));
        fs::create_dir(&sub).unwrap();
        for f in 0..50 {
            fs::write(sub.join(format!("f{f:02}")), format!("{d}/{f}")).unwrap();
        }
    }
    let got = sync(dir.path(), &request()).await.unwrap();
    assert_eq!(got.entries.len(), 40 * 51);
    assert_eq!(got.ended, 2000);
    assert_eq!(got.content(b"d17/f33"), b"17/33");
}

#[tokio::test]
async fn unknown_directories_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = SyncRequest { name: "secret".into(), ..SyncRequest::default() };
    let Err(error) = sync(dir.path(), &wrong).await else { panic!("synced") };
    assert!(error.to_string().contains("no access allowed to dir \"secret\""), "{error}");
    assert!(error.is_not_found());
    let bad = SyncRequest { exclude_patterns: vec!["[".into()], ..request() };
    assert!(sync(dir.path(), &bad).await.is_err(), "a malformed pattern");
    let rig = rig().await;
    let (_running, session) = rig.open(offer()).await;
    let none = session.sync(&request(), Collect::default(), &TransferOptions::default()).await;
    assert!(matches!(none, Err(SessionError::Unsupported { .. })));
}

#[tokio::test]
async fn a_failing_target_ends_the_transfer_and_the_session_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..600 {
        fs::write(dir.path().join(format!("f{i:04}")), "x".repeat(5000)).unwrap();
    }
    let rig = rig().await;
    let (_running, session) = rig.open(offer().file_sync(provider(dir.path()))).await;
    let failing = Collect { fail_at: Some(300), ..Collect::default() };
    let Err(error) = session.sync(&request(), failing, &TransferOptions::default()).await else { panic!("synced") };
    assert!(error.to_string().contains("the disk is full"), "{error}");
    let list_only = Collect { list_only: true, ..Collect::default() };
    let got = session.sync(&request(), list_only, &TransferOptions::default()).await.unwrap();
    assert_eq!((got.entries.len(), got.ended), (600, 0));
}

#[tokio::test]
async fn cancelling_and_losing_the_client_end_a_transfer() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    let rig = rig().await;
    let (running, session) = rig.open(offer().file_sync(provider(dir.path()))).await;
    let cancel = CancellationToken::new();
    cancel.cancel();
    let done = session.sync(&request(), Collect::default(), &TransferOptions::cancelled_by(&cancel)).await;
    assert!(matches!(done, Err(SessionError::Canceled { .. })));
    running.close().await;
    tokio::time::timeout(PATIENCE, session.closed()).await.expect("the engine notices");
    let done = session.sync(&request(), Collect::default(), &TransferOptions::default()).await;
    assert!(matches!(done, Err(SessionError::Closed { .. })));
}

#[tokio::test]
async fn progress_counts_what_moves() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "x".repeat(100_000)).unwrap();
    let rig = rig().await;
    let (_running, session) = rig.open(offer().file_sync(provider(dir.path()))).await;
    let seen = Arc::new(AtomicU64::new(0));
    let last = seen.clone();
    let options = TransferOptions {
        progress: Some(Arc::new(move |n| last.store(n, Ordering::Relaxed))),
        ..TransferOptions::default()
    };
    session.sync(&request(), Collect::default(), &options).await.unwrap();
    let bytes = seen.load(Ordering::Relaxed);
    assert!((100_000..110_000).contains(&bytes), "{bytes}");
}
