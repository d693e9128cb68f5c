//! What is left of a sandbox when the engine or its helper is killed: nothing.

#[allow(dead_code, reason = "only the fixture is used here")]
mod suite;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use suite::fixture::{Fixture, PROGRAM};

/// How long the dead may take to be gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// Returns the process ids whose command line has `mark` as an argument.
fn with_argument(mark: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let processes = entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())));
    let holds = |path: &Path| {
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        line.split(|&byte| byte == 0).any(|arg| arg == mark.as_bytes())
    };
    processes.filter(|(_, path)| holds(path)).map(|(id, _)| id).collect()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "{what} did not happen");
        std::thread::yield_now();
    }
}

/// Starts an engine whose step sleeps for `mark` seconds twice, and waits until both sleep.
fn start(fixture: &Fixture, mark: &str) -> Child {
    // The engine passes its arguments on, so it has the mark on its own command line only as part of the script.
    let script = format!("sleep {mark} & sleep {mark}; :");
    let root = fixture.path("base");
    let child = Command::new(PROGRAM)
        .args(["engine".as_ref(), root.as_os_str(), "sh".as_ref(), "-c".as_ref(), script.as_ref()])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the start", || with_argument(mark).len() == 2);
    child
}

/// Returns the children of `parent`, and theirs.
fn descendants(parent: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    children
        .split_whitespace()
        .filter_map(|id| id.parse().ok())
        .flat_map(|id| [vec![id], descendants(id)].concat())
        .collect()
}

#[test]
fn nothing_outlives_a_killed_engine() {
    let Some(fixture) = Fixture::sandbox() else { return };
    let mark = "810000001";
    let mut engine = start(&fixture, mark);
    let all = descendants(engine.id());
    assert!(all.len() >= 4, "helper, its fork and the step: {all:?}");
    engine.kill().unwrap();
    engine.wait().unwrap();
    wait_until("the end of the step", || with_argument(mark).is_empty());
    wait_until("the end of the helpers", || all.iter().all(|id| !is_helper(*id)));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(fixture.dir.path().to_str().unwrap()), "no mount is left");
}

fn is_helper(id: u32) -> bool {
    std::fs::read(format!("/proc/{id}/cmdline")).is_ok_and(|line| line.starts_with(b"kiln-sandbox-init"))
}

#[test]
fn the_step_ends_with_its_helper() {
    let Some(fixture) = Fixture::sandbox() else { return };
    let mark = "810000002";
    let mut engine = start(&fixture, mark);
    for id in descendants(engine.id()).into_iter().filter(|id| is_helper(*id)) {
        let id = rustix::process::Pid::from_raw(id as i32).unwrap();
        let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
    }
    wait_until("the end of the step", || with_argument(mark).is_empty());
    // The engine noticed, and did not wait for ever.
    wait_until("the engine's answer", || engine.try_wait().unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_helper_is_started_again() {
    let Some(fixture) = Fixture::sandbox() else { return };
    assert_eq!(fixture.output("echo one").await, "one");
    let own = std::process::id();
    let helpers: Vec<u32> = descendants_of_threads(own).into_iter().filter(|id| is_helper(*id)).collect();
    // Other tests of this process have helpers too; only those of this fixture's directory are not told apart, so each is
    // asked to end only when it is idle, which a helper without children is.
    for id in helpers.into_iter().filter(|id| descendants(*id).is_empty()) {
        let id = rustix::process::Pid::from_raw(id as i32).unwrap();
        let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
    }
    assert_eq!(fixture.output("echo two").await, "two");
}

fn descendants_of_threads(parent: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).unwrap().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<u32>>()).collect()
}
