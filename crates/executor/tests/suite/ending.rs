//! Every way a run can end before its process wants to.

use std::time::Duration;

use kiln_executor::{ExecError, Output, ProcessIo};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::fixture::Fixture;

/// A number of seconds to sleep that no other process uses, so that the sleepers can be found from outside.
fn mark(f: &Fixture) -> String {
    let name = f.dir.path().file_name().unwrap().to_string_lossy().into_owned();
    format!(
        "9{:09}",
        name.bytes().fold(7u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte))) % 1_000_000_000
    )
}

fn sleepers(mark: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.split(|&byte| byte == 0).any(|arg| arg == mark.as_bytes())).count()
}

/// Waits until `count` sleepers are left; a killed process may take a moment to leave the table.
async fn wait_for(mark: &str, count: usize) {
    let settled = async {
        while sleepers(mark) != count {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), settled).await.expect("the sleepers settle");
}

fn script(mark: &str) -> String {
    format!("trap '' TERM INT HUP; (sleep {mark} & ); sleep {mark} & echo ready; wait")
}

pub async fn cancel_kills_everything_promptly(f: &Fixture) {
    let mark = mark(f);
    let cancel = CancellationToken::new();
    let (out, mut read) = mpsc::channel(4);
    let io = ProcessIo { stdout: Output::Channel(out), ..ProcessIo::default() };
    let stop = async {
        assert_eq!(read.recv().await.unwrap().as_ref(), b"ready\n");
        wait_for(&mark, 2).await;
        cancel.cancel();
    };
    let (ended, ()) = tokio::join!(f.executor.run(f.shell(&script(&mark)), io, cancel.clone()), stop);
    assert!(matches!(ended, Err(ExecError::Canceled)), "{ended:?}");
    // The answer comes after the end: nothing needs to settle.
    assert_eq!(sleepers(&mark), 0);
    assert_eq!(f.output("echo the executor works on").await, "the executor works on");
}

pub async fn cancel_before_the_start(f: &Fixture) {
    let cancel = CancellationToken::new();
    cancel.cancel();
    let ended = f.run_with(f.shell("touch /ran"), ProcessIo::default(), cancel).await;
    assert!(matches!(ended, Err(ExecError::Canceled)));
    assert!(!f.path("upper/ran").exists());
}

pub async fn dropping_the_run_kills_it(f: &Fixture) {
    let mark = mark(f);
    let (out, mut read) = mpsc::channel(4);
    let io = ProcessIo { stdout: Output::Channel(out), ..ProcessIo::default() };
    let run = f.executor.run(f.shell(&script(&mark)), io, CancellationToken::new());
    tokio::select! {
        ended = run => panic!("it ended by itself: {ended:?}"),
        () = async {
            assert_eq!(read.recv().await.unwrap().as_ref(), b"ready\n");
            wait_for(&mark, 2).await;
        } => {}
    }
    wait_for(&mark, 0).await;
}
