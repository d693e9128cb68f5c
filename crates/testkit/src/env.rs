//! An environment for end-to-end tests: its own home, state root, contexts and engine, gone when it is dropped.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::image::Image;
use crate::process::{Finished, Run};

/// Everything one end-to-end test needs; dropping it stops the engine and removes all files.
pub struct TestEnv {
    kiln: PathBuf,
    dir: TempDir,
    root: PathBuf,
}

impl TestEnv {
    /// Returns an empty environment for the given `kiln` program.
    ///
    /// # Panics
    /// The temporary directory cannot be made.
    pub fn new(kiln: impl Into<PathBuf>) -> Self {
        let dir = tempfile::Builder::new().prefix("kiln-test-").tempdir().unwrap_or_else(|e| panic!("{e}"));
        for sub in ["home", "ctx", "out"] {
            std::fs::create_dir(dir.path().join(sub)).unwrap_or_else(|e| panic!("{sub}: {e}"));
        }
        let root = dir.path().join("root");
        Self { kiln: kiln.into(), dir, root }
    }

    /// Uses another state root, for example on a file system of its own.
    #[must_use]
    pub fn with_root(mut self, root: impl Into<PathBuf>) -> Self {
        self.root = root.into();
        self
    }

    /// Returns the temporary directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the engine's state root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the build context's directory.
    pub fn ctx(&self) -> PathBuf {
        self.dir.path().join("ctx")
    }

    /// Returns a path for a result.
    pub fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join("out").join(name)
    }

    /// Fills the build context.
    pub fn context(&self, entries: &[(&str, &str)]) {
        crate::write_tree(&self.ctx(), entries);
    }

    /// Prepares a run of kiln in this environment.
    pub fn kiln<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Run {
        self.kiln_through::<&str, S>(&[], args)
    }

    /// Prepares a run of kiln that another program starts, such as `taskset`: `prefix` is that program's command line.
    pub fn kiln_through<P: AsRef<OsStr>, S: AsRef<OsStr>>(
        &self,
        prefix: &[P],
        args: impl IntoIterator<Item = S>,
    ) -> Run {
        let run = match prefix.split_first() {
            Some((program, rest)) => Run::new(program).args(rest).args([&self.kiln]),
            None => Run::new(&self.kiln),
        };
        run.args(args)
            .env("HOME", self.dir.path().join("home"))
            .env("KILN_ROOT", &self.root)
            .env("NO_COLOR", "1")
            .dir(self.dir.path())
    }

    /// Runs `kiln build` on the context with plain progress and these further arguments.
    pub fn build(&self, args: &[&str]) -> Finished {
        let ctx = self.ctx();
        let mut all = vec!["build", "--progress=plain"];
        all.extend(args);
        self.kiln(all.iter().map(OsStr::new).chain([ctx.as_os_str()])).finish()
    }

    /// Builds the context into an OCI archive and reads it back.
    ///
    /// # Panics
    /// The build fails or the archive is not well formed.
    #[track_caller]
    pub fn build_image(&self, args: &[&str]) -> (Image, Finished) {
        let dest = self.out("image.tar");
        let _ = std::fs::remove_file(&dest);
        let output = format!("type=oci,dest={}", dest.display());
        let mut all = vec!["-o", output.as_str()];
        all.extend(args);
        let finished = self.build(&all).ok();
        (Image::read(&dest), finished)
    }

    /// Returns the process id of this environment's engine, when one runs.
    pub fn engine_pid(&self) -> Option<i32> {
        let text = std::fs::read_to_string(self.root.join("lock")).ok()?;
        text.split_whitespace().next()?.parse().ok()
    }

    /// Adds a busybox base image and returns the `--build-context` value that names it `base`.
    ///
    /// Returns none when the host has no busybox.
    pub fn base(&self) -> Option<String> {
        let dir = self.dir.path().join("base");
        let layout = if dir.join("layout").is_dir() { dir.join("layout") } else { crate::busybox_layout(&dir)? };
        Some(format!("base=oci-layout://{}", layout.display()))
    }
}

impl Drop for TestEnv {
    fn drop(&mut self) {
        if self.root.exists() {
            let _ = self.kiln(["daemon", "stop"]).finish();
        }
    }
}
