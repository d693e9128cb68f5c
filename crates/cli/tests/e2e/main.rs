//! End to end: the real program, its real engine, real files. Each test has a state root and an engine of its own.

mod bad_input;
mod cache;
mod clients;
mod copy;
mod daemon_face;
mod image;
mod images;
mod mounts;
mod other_tools;
mod output;
mod registry;
mod registry_faults;
mod sources;
mod parallel;
mod real_work;
mod reproducible;
mod secrets;
mod steps;

use kiln_testkit::TestEnv;

/// Returns a fresh environment for the program under test.
pub fn env() -> TestEnv {
    TestEnv::new(env!("CARGO_BIN_EXE_kiln"))
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
