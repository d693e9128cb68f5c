//! What is to be mounted, as data. The executor mounts it inside the sandbox's mount namespace.

use std::path::PathBuf;

/// A file system to be made visible somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mount {
    /// An overlay of layer directories. It is read-only when it has no upper directory; then `lowers` has two
    /// or more. Mount it with `index`, `metacopy`, `redirect_dir` and `xino` off, and with `userxattr` inside a
    /// user namespace.
    Overlay {
        /// The layers, topmost first.
        lowers: Vec<PathBuf>,
        /// Where changes go.
        upper: Option<PathBuf>,
        /// Overlay's work directory, on the file system of `upper`; present when `upper` is.
        work: Option<PathBuf>,
    },
    /// A directory or file of the host.
    Bind {
        /// What to show.
        source: PathBuf,
        /// Whether writing to it is refused.
        readonly: bool,
    },
    /// A file system in memory.
    Tmpfs {
        /// Its limit in bytes; `None` for the kernel's default.
        size: Option<u64>,
        /// Mode of its root directory.
        mode: u32,
    },
}
