//! The actions that make or remove one thing: mkfile, mkdir, rm, symlink.

use kiln_llb::op::{Mkdir, Mkfile, Rm, Symlink};
use kiln_snapshot::layer::FileMeta;
use kiln_snapshot::{LayerBuilder, Tree};

use crate::error::EngineError;
use crate::paths::{clean_relative, has_wildcard};

/// A user and a group.
pub type Ids = (u32, u32);

/// Splits nanoseconds since 1970 into seconds and nanoseconds; `now` stands in for none.
pub fn time(timestamp: Option<i64>, now: (i64, u32)) -> (i64, u32) {
    match timestamp {
        None => now,
        Some(nanos) => {
            let part = u32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or_default();
            (nanos.div_euclid(1_000_000_000), part)
        }
    }
}

fn meta(mode: u32, owner: Option<Ids>, mtime: (i64, u32)) -> FileMeta {
    let (uid, gid) = owner.unwrap_or_default();
    FileMeta { uid, gid, ..FileMeta::new(mode, mtime) }
}

/// Makes a file; links on the way are followed, one at its place is too.
///
/// # Errors
/// Its parent does not exist, or something that is no file is there.
pub fn mkfile(
    builder: &mut LayerBuilder<'_>,
    file: &Mkfile,
    owner: Option<Ids>,
    now: (i64, u32),
) -> Result<(), EngineError> {
    let path = builder.resolve(clean_relative(&file.path).as_bytes(), true)?.path;
    if builder.lookup(&path).is_some_and(kiln_snapshot::Entry::is_dir) {
        return Err(EngineError::user(format!("open {}: is a directory", file.path)));
    }
    parent_exists(builder, &path, &file.path)?;
    builder.file_from_bytes(&path, &meta(file.mode & 0o777, owner, time(file.timestamp, now)), &file.data)?;
    Ok(())
}

/// Makes a directory; one that is there stays as it is.
///
/// # Errors
/// Its parent does not exist and is not to be made, or something else is there.
pub fn mkdir(
    builder: &mut LayerBuilder<'_>,
    dir: &Mkdir,
    owner: Option<Ids>,
    now: (i64, u32),
) -> Result<(), EngineError> {
    let path = builder.resolve(clean_relative(&dir.path).as_bytes(), true)?.path;
    let meta = meta(dir.mode & 0o777, owner, time(dir.timestamp, now));
    match builder.lookup(&path).map(kiln_snapshot::Entry::is_dir) {
        Some(true) => Ok(()),
        Some(false) => Err(EngineError::user(format!("mkdir {}: not a directory", dir.path))),
        None if dir.make_parents => Ok(builder.mkdir_all(&path, &meta)?),
        None => {
            parent_exists(builder, &path, &dir.path)?;
            Ok(builder.mkdir(&path, &meta)?)
        }
    }
}

/// Makes a symbolic link; nothing may be there.
///
/// # Errors
/// Something is there, or the parent does not exist.
pub fn symlink(
    builder: &mut LayerBuilder<'_>,
    link: &Symlink,
    owner: Option<Ids>,
    now: (i64, u32),
) -> Result<(), EngineError> {
    let path = builder.resolve(clean_relative(&link.link).as_bytes(), false)?.path;
    if builder.lookup(&path).is_some() {
        return Err(EngineError::user(format!("symlink {} {}: file exists", link.target, link.link)));
    }
    parent_exists(builder, &path, &link.link)?;
    builder.symlink(&path, link.target.as_bytes(), &meta(0o777, owner, time(link.timestamp, now)))?;
    Ok(())
}

/// Removes what is at a path, or all that a pattern matches.
///
/// # Errors
/// Nothing is there and that is not allowed.
pub fn rm(builder: &mut LayerBuilder<'_>, tree: &Tree, rm: &Rm) -> Result<(), EngineError> {
    let path = clean_relative(&rm.path);
    if path.is_empty() {
        return Err(EngineError::user("rm: the root cannot be removed"));
    }
    if !rm.allow_wildcard || !has_wildcard(&path) {
        let resolved = builder.resolve(path.as_bytes(), false)?.path;
        let removed = builder.remove(&resolved)?;
        if !removed && !rm.allow_not_found {
            return Err(EngineError::user(format!("rm {}: no such file or directory", rm.path)));
        }
        return Ok(());
    }
    for name in super::copy::expand(tree, &path)? {
        builder.remove(&name)?;
    }
    Ok(())
}

fn parent_exists(builder: &LayerBuilder<'_>, path: &[u8], shown: &str) -> Result<(), EngineError> {
    let parent = match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => &path[..slash],
        None => return Ok(()),
    };
    if builder.lookup(parent).is_some_and(kiln_snapshot::Entry::is_dir) {
        return Ok(());
    }
    Err(EngineError::user(format!("open {shown}: no such file or directory")))
}
