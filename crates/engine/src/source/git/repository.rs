//! The bare repository that stays in the store for an address: what was fetched for one build serves the next.

use std::path::Path;

use kiln_solver::OpContext;
use kiln_stdx::{Digest, ErrorClass};
use kiln_store::CacheMount;

use super::bundle::unbundled;
use super::command::Git;
use super::identifier::{GitSource, is_commit};
use super::pin::{GitPin, failed};
use crate::error::EngineError;
use crate::layers;
use crate::parts::Parts;
use crate::source::offline::missing;

/// A repository with the commit that is wanted; nobody else uses it meanwhile.
pub struct Repository {
    _mount: CacheMount,
    /// Git at this repository.
    pub git: Git,
    /// Its directory.
    pub dir: std::path::PathBuf,
}

impl Repository {
    /// Brings the pinned object into the repository of the source's address.
    ///
    /// # Errors
    /// The remote cannot be reached or does not have the commit any more.
    pub async fn with(
        parts: &Parts,
        cx: &OpContext,
        git: &Git,
        source: &GitSource,
        pin: &GitPin,
    ) -> Result<Self, EngineError> {
        if let Some(bundle) = &source.bundle {
            return unbundled(parts, cx, git, source, bundle).await;
        }
        let identity = git.identity().map(|d| d.to_string()).unwrap_or_default();
        let key = Digest::of(format!("{}\n{identity}\n{}", source.remote, pin.object.len()));
        let (name, description) = (format!("git:{key}"), format!("git repository {}", source.shown()));
        let mount = layers::own_mount(parts, cx, &name, &description).await?;
        let this = Self::over(mount, git);
        match this.bring(source, pin).await {
            // What a killed fetch left can be beyond repair; it is only a copy.
            Err(e) if e.class() == ErrorClass::Remote && is_broken(&e.to_string()) => {
                empty(&this.dir)?;
                this.bring(source, pin).await?;
            }
            other => other?,
        }
        Ok(this)
    }

    /// Returns the repository in a directory of the engine's own.
    pub(super) fn over(mount: CacheMount, git: &Git) -> Self {
        let dir = mount.path().to_owned();
        Self { _mount: mount, git: git.at(&dir, None), dir }
    }

    async fn bring(&self, source: &GitSource, pin: &GitPin) -> Result<(), EngineError> {
        if !self.dir.join("HEAD").exists() {
            empty(&self.dir)?;
            let format = if pin.object.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
            let path = self.dir.display().to_string();
            self.git.run(&["-c", "init.defaultBranch=master", "init", "--bare", format, &path]).await?;
        }
        if self.has(&pin.object).await? {
            return Ok(());
        }
        if self.git.is_offline() {
            return Err(missing(format!("commit {} of {}", pin.object, source.shown())));
        }
        // A lock of a fetch that was killed; the mount is this build's alone.
        let _ = std::fs::remove_file(self.dir.join("shallow.lock"));
        let result = self.fetch(source, pin).await;
        if self.has(&pin.object).await? {
            return Ok(());
        }
        result.map_err(|e| failed(source, &e))?;
        Err(EngineError::user(format!(
            "fetched ref {} does not match expected commit {} and commit can not be found in the repository",
            pin.reference, pin.object
        )))
    }

    async fn fetch(&self, source: &GitSource, pin: &GitPin) -> Result<(), EngineError> {
        let remote = source.remote.as_str();
        let by_commit = source.fetch_by_commit || is_commit(&pin.reference);
        if !by_commit {
            let name = format!("{}:refs/kiln/{}", pin.reference, Digest::of(&pin.reference).hex());
            self.shallow(&["fetch", "--depth=1", "--no-tags", "--force", "--", remote, &name]).await?;
            if self.has(&pin.object).await? {
                return Ok(());
            }
        }
        // The name leads elsewhere by now, or there never was one: ask for the commit itself.
        let direct = self.shallow(&["fetch", "--depth=1", "--no-tags", "--", remote, &pin.object]).await;
        if direct.is_ok() || source.fetch_by_commit {
            return direct;
        }
        // A server that gives only what has a name gives all of it.
        let mut args = vec!["fetch", "--tags", "--force"];
        if self.dir.join("shallow").exists() {
            args.push("--unshallow");
        }
        args.extend(["--", remote, "+refs/heads/*:refs/kiln/heads/*"]);
        self.git.run_shown(&args).await.map(drop)
    }

    /// Runs a fetch of a part of the history, or of all of it where the transport knows no parts.
    async fn shallow(&self, args: &[&str]) -> Result<(), EngineError> {
        match self.git.run_shown(args).await {
            Err(e) if e.to_string().contains("shallow") || e.to_string().contains("--depth") => {
                let whole: Vec<&str> = args.iter().copied().filter(|a| !a.starts_with("--depth")).collect();
                self.git.run_shown(&whole).await.map(drop)
            }
            other => other.map(drop),
        }
    }

    async fn has(&self, object: &str) -> Result<bool, EngineError> {
        self.git.succeeds(&["cat-file", "-e", object]).await
    }
}

fn is_broken(text: &str) -> bool {
    ["corrupt", "bad object", "is empty", "not a git repository", "missing blob", "missing tree"]
        .iter()
        .any(|sign| text.contains(sign))
}

/// Removes everything that is in a directory.
pub(super) fn empty(dir: &Path) -> Result<(), EngineError> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
