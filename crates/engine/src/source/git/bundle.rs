//! Git bundles in place of a remote: the history of a commit as one blob.

use std::io::Write;
use std::path::Path;

use kiln_solver::OpContext;
use kiln_store::Blob;

use super::command::Git;
use super::identifier::{GitSource, is_commit};
use super::pin::{self, GitPin};
use super::repository::{Repository, empty};
use crate::error::EngineError;
use crate::layers;
use crate::parts::Parts;
use crate::source::blob::BlobSource;

/// Says in a repository that everything of its bundle is there.
const WHOLE: &str = "kiln-whole";

/// Returns a repository with everything that is in the bundle.
///
/// # Errors
/// The bundle cannot be had, is none, or has not the commit of the checksum.
pub async fn unbundled(
    parts: &Parts,
    cx: &OpContext,
    git: &Git,
    source: &GitSource,
    bundle: &BlobSource,
) -> Result<Repository, EngineError> {
    let name = format!("git:bundle:{}", bundle.digest);
    let mount = layers::own_mount(parts, cx, &name, &format!("git bundle {}", bundle.name)).await?;
    let this = Repository::over(mount, git);
    let commit = format!("{}^{{commit}}", source.checksum.as_deref().unwrap_or_default());
    if this.dir.join(WHOLE).exists() && this.git.succeeds(&["cat-file", "-e", &commit]).await? {
        return Ok(this);
    }
    let blob = bundle.bring(parts, cx).await?;
    empty(&this.dir)?;
    let file = this.dir.join("kiln-bundle");
    write(parts, blob, &file).await?;
    let path = file.display().to_string();
    let failed =
        |e: EngineError| EngineError::new(e.class(), format!("failed to import git bundle {}: {e}", bundle.name));
    let listing = git.run(&["ls-remote", "--", &path]).await.map_err(failed)?;
    let listing = String::from_utf8_lossy(&listing);
    let Some((id, _)) = listing.lines().find_map(|line| line.split_once('\t')) else {
        return Err(EngineError::user(format!("failed to import git bundle {}: no refs found", bundle.name)));
    };
    let format = if id.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
    let dir = this.dir.display().to_string();
    this.git.run(&["-c", "init.defaultBranch=master", "init", "--bare", format, &dir]).await?;
    this.git.run(&["fetch", "--", &path, "+refs/*:refs/*"]).await.map_err(failed)?;
    std::fs::remove_file(&file)?;
    if !this.git.succeeds(&["cat-file", "-e", &commit]).await? {
        let commit = source.checksum.as_deref().unwrap_or_default();
        return Err(EngineError::user(format!("commit {commit} not found in bundle {}", bundle.name)));
    }
    std::fs::write(this.dir.join(WHOLE), "")?;
    Ok(this)
}

async fn write(parts: &Parts, blob: Blob, path: &Path) -> Result<(), EngineError> {
    let path = path.to_owned();
    let work = move || {
        let mut file = std::fs::File::create(path)?;
        std::io::copy(&mut blob.open_verified()?, &mut file)?;
        Ok(file.flush()?)
    };
    parts.blocking(work).await
}

/// Finds what the reference leads to in the bundle. Without a name it is the commit of the checksum.
///
/// # Errors
/// As [`unbundled`]; the bundle has no such reference, or it leads elsewhere than the checksum says.
pub async fn pin(
    parts: &Parts,
    cx: &OpContext,
    git: &Git,
    source: &GitSource,
    bundle: &BlobSource,
) -> Result<GitPin, EngineError> {
    let checksum = source.checksum.clone().unwrap_or_default();
    if source.git_ref.is_empty() && is_commit(&checksum) {
        return Ok(GitPin { reference: checksum.clone(), object: checksum, commit: None });
    }
    if is_commit(&source.git_ref) {
        return pin::pin(git, source).await;
    }
    let repository = unbundled(parts, cx, git, source, bundle).await?;
    if source.git_ref.is_empty() {
        let whole = repository.git.run(&["rev-parse", "--verify", &format!("{checksum}^{{commit}}")]).await?;
        let whole = String::from_utf8_lossy(&whole).trim().to_owned();
        return Ok(GitPin { reference: whole.clone(), object: whole, commit: None });
    }
    let remote = format!("file://{}", repository.dir.display());
    pin::pin(git, &GitSource { remote, ..source.clone() }).await
}
