//! Files of a commit into an empty directory.

use std::path::{Path, PathBuf};

use kiln_stdx::rand_id;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::command::Git;
use super::identifier::{GitSource, is_commit, redact};
use super::pin::GitPin;
use super::repository::Repository;
use crate::error::EngineError;
use crate::source::offline::missing;

/// Puts the files of the pinned commit into `dest`. `scratch` is an empty directory on the same file system.
///
/// # Errors
/// The commit cannot be checked out, a submodule cannot be had, or the wanted directory is not there.
pub async fn checkout(
    repository: &Repository,
    source: &GitSource,
    pin: &GitPin,
    dest: &Path,
    scratch: &Path,
) -> Result<(), EngineError> {
    if source.as_bundle {
        return bundle(repository, pin, dest).await;
    }
    let whole = source.subdir.is_empty();
    let tree = if whole { dest.to_owned() } else { scratch.join("tree") };
    std::fs::create_dir_all(&tree)?;
    let failed =
        |e: EngineError| EngineError::new(e.class(), format!("failed to checkout remote {}: {e}", source.shown()));
    let git = if source.keep_git_dir && whole {
        cloned(repository, source, pin, &tree).await.map_err(failed)?
    } else {
        // The index is that of the last checkout, and of no use to this one.
        let _ = std::fs::remove_file(repository.dir.join("index"));
        let git = repository.git.at(&repository.dir, Some(&tree));
        git.run(&["checkout", "--no-overlay", &pin.object, "--", "."]).await.map_err(failed)?;
        git
    };
    if !source.skip_submodules && tree.join(".gitmodules").exists() {
        const UPDATE: [&str; 5] = ["submodule", "update", "--init", "--recursive", "--depth=1"];
        let update = match git.run_shown(&UPDATE).await {
            // A plain web server gives only all of the history.
            Err(e) if e.to_string().contains("shallow") => git.run_shown(&UPDATE[..4]).await,
            update => update,
        };
        update.map_err(|e| {
            if git.is_offline() && e.to_string().contains("not allowed") {
                return missing(format!("a submodule of {}", source.shown()));
            }
            EngineError::new(e.class(), format!("failed to update submodules for {}: {e}", source.shown()))
        })?;
        if !source.keep_git_dir {
            forget_submodules(&repository.dir, &tree)?;
        }
    }
    if !whole {
        take_subdir(&tree, &source.subdir, dest)?;
    }
    if source.commit_time {
        let seconds = repository.git.run(&["log", "-1", "--format=%ct", &pin.object]).await?;
        let seconds: i64 = String::from_utf8_lossy(&seconds).trim().parse().unwrap_or(0);
        set_times(dest, seconds)?;
    }
    Ok(())
}

/// Makes a repository of its own in the tree, with the pinned commit and its name and nothing else.
async fn cloned(repository: &Repository, source: &GitSource, pin: &GitPin, tree: &Path) -> Result<Git, EngineError> {
    let git_dir = tree.join(".git");
    let git = repository.git.at(&git_dir, Some(tree));
    let format = if pin.object.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
    git.run(&["-c", "init.defaultBranch=master", "init", format]).await?;
    // A name of this build's own: fetches are given names only.
    let local = format!("refs/kiln/checkout-{}", rand_id());
    repository.git.run(&["update-ref", &local, &pin.object]).await?;
    let wanted = if is_commit(&pin.reference) { local.clone() } else { format!("{local}:{}", pin.reference) };
    // By the file protocol, which copies nothing of a repository but objects.
    let from = format!("file://{}", repository.dir.display());
    let fetched = git.run(&["fetch", "-u", "--depth=1", "--no-tags", "--", &from, &wanted]).await;
    repository.git.run(&["update-ref", "-d", &local]).await?;
    fetched?;
    git.run(&["checkout", "FETCH_HEAD"]).await?;
    git.run(&["remote", "add", "origin", &redact(&source.remote)]).await?;
    git.run(&["reflog", "expire", "--all", "--expire=now"]).await?;
    remove(&git_dir.join("FETCH_HEAD"))?;
    Ok(git)
}

async fn bundle(repository: &Repository, pin: &GitPin, dest: &Path) -> Result<(), EngineError> {
    // Only a name can be bundled.
    let commit = pin.commit(false);
    let name = if is_commit(&pin.reference) { "refs/heads/bundle".to_owned() } else { pin.reference.clone() };
    let object = if name.starts_with("refs/tags/") { &pin.object } else { commit };
    // The name may be one of the repository's own, if that came of a bundle.
    let before = repository.git.run(&["rev-parse", "--verify", "--quiet", &name]).await.ok();
    let before = before.map(|id| String::from_utf8_lossy(&id).trim().to_owned()).filter(|id| is_commit(id));
    repository.git.run(&["update-ref", &name, object]).await?;
    let file = dest.join("bundle").display().to_string();
    // One thread and no reuse of old packs make equal bundles of equal commits.
    let made = repository.git.run(&["-c", "pack.threads=1", "bundle", "create", &file, &name]).await;
    match &before {
        Some(before) => repository.git.run(&["update-ref", &name, before]).await?,
        None => repository.git.run(&["update-ref", "-d", &name]).await?,
    };
    made.map(drop)
}

/// Removes the files that lead from submodules to the repository, which is a place of the engine's own.
fn forget_submodules(repository: &Path, tree: &Path) -> Result<(), EngineError> {
    let mut dirs = vec![tree.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                dirs.push(entry.path());
            } else if kind.is_file() && entry.file_name() == ".git" {
                remove(&entry.path())?;
            }
        }
    }
    let modules = repository.join("modules");
    if modules.exists() {
        std::fs::remove_dir_all(modules)?;
    }
    remove(&repository.join("config.worktree"))
}

fn remove(path: &Path) -> Result<(), EngineError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}

/// Moves what is in a directory of the tree to `dest`; every part of the way must be a directory.
fn take_subdir(tree: &Path, subdir: &str, dest: &Path) -> Result<(), EngineError> {
    let mut dir = PathBuf::from(tree);
    for part in subdir.split('/').filter(|p| !p.is_empty() && *p != ".") {
        dir.push(part);
        let is_dir = dir.symlink_metadata().map(|m| m.is_dir());
        if part == ".." || !is_dir.unwrap_or(false) {
            return Err(EngineError::user(format!("invalid subdir {subdir}: no such directory in the repository")));
        }
    }
    for entry in std::fs::read_dir(&dir)? {
        let entry = entry?;
        std::fs::rename(entry.path(), dest.join(entry.file_name()))?;
    }
    std::fs::set_permissions(dest, std::fs::metadata(&dir)?.permissions())?;
    Ok(())
}

/// Gives everything below `top`, and `top`, the same time. Links are not followed.
fn set_times(top: &Path, seconds: i64) -> Result<(), EngineError> {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    let mut todo = vec![top.to_owned()];
    let mut all = Vec::new();
    while let Some(path) = todo.pop() {
        if path.symlink_metadata()?.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                todo.push(entry?.path());
            }
        }
        all.push(path);
    }
    for path in all.iter().rev() {
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(std::io::Error::from)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_subdir_is_moved_and_never_reached_through_a_link() {
        let tmp = tempfile::tempdir().unwrap();
        let (tree, dest) = (tmp.path().join("t"), tmp.path().join("d"));
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::create_dir(&dest).unwrap();
        std::fs::write(tree.join("a/b/f"), "x").unwrap();
        std::os::unix::fs::symlink("a", tree.join("l")).unwrap();
        let before = tree.join("a/b/f").metadata().unwrap().ino();
        for bad in ["l/b", "a/b/f", "gone", "a/../a"] {
            assert!(take_subdir(&tree, bad, &dest).is_err(), "{bad}");
        }
        take_subdir(&tree, "a/b", &dest).unwrap();
        assert_eq!(dest.join("f").metadata().unwrap().ino(), before);
    }

    #[test]
    fn times_are_set_on_links_themselves() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(tmp.path().join("f"), "x").unwrap();
        std::os::unix::fs::symlink("gone", tmp.path().join("l")).unwrap();
        set_times(tmp.path(), 1_000_000_000).unwrap();
        for name in ["f", "l", "."] {
            let meta = tmp.path().join(name).symlink_metadata().unwrap();
            assert_eq!(meta.mtime(), 1_000_000_000, "{name}");
        }
    }
}
