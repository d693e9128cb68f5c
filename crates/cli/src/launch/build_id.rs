//! Which build of kiln an engine is: a client and the engine it uses come from the same binary.

use std::os::unix::fs::MetadataExt;

/// Returns the identity of this binary: its version, and what tells two builds of one version apart (size and time of the
/// file; hashing it would cost more than a whole cached build).
pub fn current() -> String {
    let version = env!("CARGO_PKG_VERSION");
    // The link still leads to the file that runs when another was put in its place.
    match std::fs::metadata("/proc/self/exe") {
        Ok(meta) => format!("{version}+{:x}.{:x}{:08x}", meta.size(), meta.mtime(), meta.mtime_nsec()),
        Err(_) => version.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn is_stable_and_names_the_version() {
        let id = super::current();
        assert_eq!(id, super::current());
        assert!(id.starts_with(concat!(env!("CARGO_PKG_VERSION"), "+")), "{id}");
    }
}
