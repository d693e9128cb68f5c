//! Every publishing step of the store fails, runs out of space, or is the last thing the process does; the store that is
//! found afterwards opens, holds nothing wrong, and takes the same work again.

mod common;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};

use common::{inspect, open, reference, work};

/// Names the root on which a child works.
const ROOT: &str = "KILN_TEST_STORE_ROOT";
/// Set if the work has to succeed at the second try.
const RETRY: &str = "KILN_TEST_STORE_RETRY";

const POINTS: &[(&str, u32)] = &[
    ("store.version.rename", 1),
    ("store.blob.write", 2),
    ("store.blob.rename", 3),
    ("store.blob.renamed", 2),
    ("store.layer.manifest", 2),
    ("store.layer.info", 2),
    ("store.layer.rename", 3),
    ("store.layer.renamed", 3),
    ("store.lazy.rename", 1),
    ("store.unpack.fs", 1),
    ("store.unpack.manifest", 1),
    ("store.info.rename", 3),
    ("store.sums.rename", 2),
    ("store.image.blob", 3),
    ("store.image.small", 2),
    ("store.image.layout", 2),
    ("store.image.copy", 2),
    ("store.image.index", 2),
    ("store.mount.rename", 1),
    ("store.mount.info", 2),
    ("store.context.rename", 1),
    ("store.db.commit", 3),
    ("store.epoch.rename", 1),
];

/// What a child does; nothing when the tests run as tests.
#[test]
fn child() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let store = open(Path::new(&root));
    let first = work(&store);
    if std::env::var_os(RETRY).is_some() && first.is_err() {
        work(&store).unwrap();
    }
}

fn run_child(root: &Path, fault: &str, retry: bool) -> ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["child", "--exact", "--nocapture"]).env(ROOT, root).env("KILN_FAULT", fault);
    if retry {
        command.env(RETRY, "1");
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || output.status.signal().is_some(), "{fault}: {text}");
    output.status
}

fn aftermath(root: &Path, fault: &str) {
    {
        let store = open(root);
        assert_eq!(std::fs::read_dir(root.join("drafts")).unwrap().count(), 0, "{fault}");
        inspect(&store);
        assert_eq!(work(&store).unwrap(), reference(), "{fault}");
        inspect(&store);
    }
    let store = open(root);
    let report = store.verify(true).unwrap();
    assert!(report.problems.is_empty(), "{fault}: {:?}", report.problems);
    assert!(report.layers >= 4 && report.blobs >= 6 && report.rows > 8, "{report:?}");
    assert!(store.image("example.com/app:v1").unwrap().is_some());
}

fn at_every_point(action: &str, retry: bool) {
    for &(point, most) in POINTS {
        for nth in 1..=most {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("root");
            let fault = format!("{point}:{action}:{nth}");
            let status = run_child(&root, &fault, retry);
            assert_eq!(status.signal().is_some(), action == "kill", "{fault} was not reached");
            aftermath(&root, &fault);
        }
    }
}

#[test]
fn killed_at_every_point() {
    at_every_point("kill", false);
}

#[test]
fn an_error_at_every_point_but_opening() {
    // Opening fails with the error, and has nothing to retry.
    for &(point, most) in POINTS.iter().skip(1) {
        for (action, nth) in [("error", 1), ("enospc", most)] {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("root");
            let fault = format!("{point}:{action}:{nth}");
            assert!(run_child(&root, &fault, true).success(), "{fault}");
            aftermath(&root, &fault);
        }
    }
}
