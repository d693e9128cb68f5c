//! End to end: the real program, its real engine, real files. Each test has a state root and an engine of its own.

mod api;
mod bad_input;
mod blobs;
mod buildctl;
mod cache;
mod cache_mounts;
mod cache_mounts_travel;
mod checks;
mod clients;
mod copy;
mod daemon_face;
mod daemon_tcp;
mod damaged;
mod destinations;
mod frontends;
mod hostile;
mod image;
mod images;
mod lazy_caches;
mod mounts;
mod mounts_at_once;
mod networks;
mod object_caches;
mod object_faults;
mod offline;
mod other_tools;
mod output;
mod parallel;
mod real_stores;
mod real_work;
mod registry;
mod registry_faults;
mod reproducible;
mod run;
mod sbom;
mod secrets;
mod sources;
mod steps;
mod why;

use kiln_testkit::TestEnv;

/// Returns a fresh environment for the program under test.
pub fn env() -> TestEnv {
    TestEnv::new(env!("CARGO_BIN_EXE_kiln"))
}

/// Waits until an engine that was started in the foreground answers.
#[track_caller]
pub fn wait_for_engine(env: &TestEnv) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while env.kiln(["daemon", "status"]).finish().code != Some(0) {
        assert!(std::time::Instant::now() < deadline, "no engine came up");
    }
}

/// Returns a fresh environment and the `--build-context` value of a busybox base, or skips the test.
#[macro_export]
macro_rules! env_with_base {
    () => {{
        let env = $crate::env();
        match env.base() {
            Some(base) => (env, base),
            None => kiln_testkit::skip!("no static busybox on this host"),
        }
    }};
}
