//! Fixtures for tests: an environment with its own engine, base images made from what the host has, readers for
//! what kiln writes. It never ships.
//!
//! Invariant: it shares no code with the crates it tests beyond the plain data of `stdx` and `oci`; archives are
//! written and read by other people's code.

pub mod base;
pub mod debian_registry;
pub mod disk;
pub mod env;
pub mod file_server;
pub mod gate;
pub mod image;
pub mod objects;
pub mod process;
pub mod registry;
pub mod running;
pub mod tree;

pub use base::{busybox_layout, busybox_root};
pub use debian_registry::{Certificates, DebianRegistry};
pub use disk::Disk;
pub use env::TestEnv;
pub use file_server::{FileServer, git_repository};
pub use gate::Gate;
pub use image::Image;
pub use objects::ObjectServer;
pub use process::{Finished, Run};
pub use registry::FakeRegistry;
pub use running::Running;
pub use tree::write_tree;

/// Ends a test because the host lacks something, and says what.
///
/// The reason goes to standard error, where the test runner shows it; `tests/skips.txt` lists the allowed reasons.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        $crate::report_skip(&format!($($reason)*));
        return;
    }};
}

/// Prints the reason of a skipped test.
#[expect(clippy::print_stderr, reason = "a test's own words")]
pub fn report_skip(reason: &str) {
    eprintln!("skipped: {reason}");
}

/// Prints what a test found out.
#[expect(clippy::print_stderr, reason = "a test's own words")]
pub fn report(text: &str) {
    eprintln!("{text}");
}

/// Returns the path of a program on `PATH`, also looking where Debian puts system programs.
pub fn program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(Into::into))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}
