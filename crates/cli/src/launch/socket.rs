//! Socket paths that stay short whatever the root's length.
//!
//! A socket address holds 107 bytes of path. A longer path is reached through the descriptor of its directory,
//! `/proc/self/fd/N/engine.sock`, for binding and for connecting alike; so the socket is always in the root, guarded by the
//! root's mode, and no directory elsewhere has to be agreed on.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Longest path a socket address holds, in bytes.
const LIMIT: usize = 107;

/// A path that fits into a socket address, valid while this value lives.
#[derive(Debug)]
pub struct ShortPath {
    path: PathBuf,
    _dir: Option<OwnedFd>,
}

impl ShortPath {
    /// Returns a short name for `path`; its directory must exist when the path is long.
    pub fn of(path: &Path) -> io::Result<ShortPath> {
        if path.as_os_str().len() <= LIMIT {
            return Ok(ShortPath { path: path.to_owned(), _dir: None });
        }
        let dir = path.parent().unwrap_or(Path::new("/"));
        let name = path.file_name().unwrap_or(OsStr::new(""));
        let fd = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())).join(name);
        Ok(ShortPath { path, _dir: Some(fd) })
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn long_paths_bind_and_connect() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let deep = dir.path().join("d".repeat(200));
        std::fs::create_dir(&deep).expect("mkdir");
        let path = deep.join("engine.sock");
        assert!(UnixListener::bind(&path).is_err());
        let short = ShortPath::of(&path).expect("short path");
        let _listener = UnixListener::bind(short.path()).expect("bind");
        assert!(path.exists());
        let other = ShortPath::of(&path).expect("short path");
        UnixStream::connect(other.path()).expect("connect");
    }

    #[test]
    fn short_paths_stay() {
        let path = Path::new("/run/engine.sock");
        assert_eq!(ShortPath::of(path).expect("short path").path(), path);
    }
}
