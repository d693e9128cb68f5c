//! The state root: one directory that holds everything an engine keeps.

use std::path::{Path, PathBuf};

use crate::env::Env;
use crate::error::{CliError, io_text};

/// Where root keeps its state.
const SYSTEM: &str = "/var/lib/kiln";

/// An absolute path of a state root; it may not exist yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// Chooses the root: the flag (or `KILN_ROOT`, which the parser has put into it), else the system's directory for root,
    /// else `kiln` in the XDG data directory.
    pub fn choose(flag: Option<&Path>, env: &Env) -> Result<Root, CliError> {
        if let Some(path) = flag.filter(|p| !p.as_os_str().is_empty()) {
            return Ok(Root(absolute(&env.cwd().join(path))));
        }
        if env.uid() == 0 {
            return Ok(Root(PathBuf::from(SYSTEM)));
        }
        let data = env.path("XDG_DATA_HOME").filter(|p| p.is_absolute());
        match data.or_else(|| Some(env.path("HOME")?.join(".local/share"))) {
            Some(data) => Ok(Root(data.join("kiln"))),
            None => Err(CliError::environment("no state root: HOME is not set").hint("name one with --root DIR")),
        }
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the engine's socket.
    pub fn socket(&self) -> PathBuf {
        self.0.join("engine.sock")
    }

    /// Returns the file that the engine's own messages go to.
    pub fn log(&self) -> PathBuf {
        self.0.join("engine.log")
    }

    /// Returns the lock that is held by whoever starts an engine.
    pub fn start_lock(&self) -> PathBuf {
        self.0.join("engine.start.lock")
    }

    /// Tells whether a living engine has written its process id into the root's lock.
    pub fn is_held(&self) -> bool {
        let text = std::fs::read_to_string(self.0.join("lock")).unwrap_or_default();
        let pid = text.split_whitespace().next().and_then(|pid| pid.parse::<u32>().ok());
        pid.is_some_and(|pid| Path::new("/proc").join(pid.to_string()).exists())
    }

    /// Makes the directory, for its user alone.
    pub fn create(&self) -> Result<(), CliError> {
        use std::os::unix::fs::DirBuilderExt;
        if let Some(parent) = self.0.parent() {
            std::fs::create_dir_all(parent).map_err(|e| self.cannot("make", &e))?;
        }
        match std::fs::DirBuilder::new().mode(0o700).create(&self.0) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && self.0.is_dir() => Ok(()),
            Err(e) => Err(self.cannot("make", &e)),
        }
    }

    /// Returns the error for something that cannot be done with the root.
    pub fn cannot(&self, what: &str, error: &std::io::Error) -> CliError {
        CliError::environment(format!("cannot {what} state root {}: {}", self.0.display(), io_text(error)))
            .hint("choose another with --root DIR or KILN_ROOT")
    }
}

/// Resolves links as far as the path exists, so that one root has one name.
fn absolute(path: &Path) -> PathBuf {
    for above in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (above.canonicalize(), path.strip_prefix(above)) {
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let real = dir.path().canonicalize().expect("canonical");
        let env = Env::of(&[], dir.path());
        let chosen = |flag: Option<&str>| Root::choose(flag.map(Path::new), &env).map(|r| r.path().to_owned()).ok();
        assert_eq!(chosen(None), Some(PathBuf::from("/var/lib/kiln")));
        assert_eq!(chosen(Some("a/b")), Some(real.join("a/b")));
        assert_eq!(chosen(Some("")), Some(PathBuf::from("/var/lib/kiln")));
    }

    #[test]
    fn the_root_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("temporary directory");
        let root = Root(dir.path().join("x/y"));
        root.create().expect("create");
        root.create().expect("create again");
        let mode = std::fs::metadata(root.path()).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
