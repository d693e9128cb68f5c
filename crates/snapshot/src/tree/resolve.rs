//! Following symbolic links inside a root that exists only as data.

use std::collections::VecDeque;

use kiln_stdx::{ErrorClass, limits};

use crate::entry::{Entry, Kind};
use crate::error::Error;
use crate::path;

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedPath {
    /// The path without links on the way, relative to the root; its tail may not exist.
    pub path: Vec<u8>,
    /// Whether something is there.
    pub exists: bool,
}

/// Why a path leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// More than 255 symbolic links were met.
    #[error("too many symbolic links while resolving `{0}`")]
    TooManyLinks(String),
    /// Something on the way is neither a directory nor a link.
    #[error("`{0}` is not a directory")]
    NotADirectory(String),
}

impl ResolveError {
    /// Returns the class that decides exit code and retry.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::UserInput
    }
}

impl From<ResolveError> for Error {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::TooManyLinks(path) => Self::TooManyLinks(path),
            ResolveError::NotADirectory(path) => Self::NotADirectory(path),
        }
    }
}

/// What resolving needs to know of a name.
pub(crate) enum Seen {
    Dir,
    Link(Vec<u8>),
    Other,
}

impl Seen {
    pub(crate) fn of(entry: &Entry) -> Self {
        match entry.kind {
            Kind::Dir => Self::Dir,
            Kind::Symlink => Self::Link(entry.target.clone()),
            _ => Self::Other,
        }
    }
}

/// Resolves `path` in the root that `look` describes; see [`Tree::resolve`](crate::Tree::resolve).
pub(crate) fn resolve(
    path: &[u8],
    follow_last: bool,
    mut look: impl FnMut(&[u8]) -> Option<Seen>,
) -> Result<ResolvedPath, ResolveError> {
    let mut todo: VecDeque<Vec<u8>> = parts(path).collect();
    let mut done: Vec<u8> = Vec::new();
    let mut exists = true;
    let mut links = 0;
    while let Some(part) = todo.pop_front() {
        if part == b".." {
            done.truncate(path::parent(&done).map_or(0, <[u8]>::len));
            // Whatever was left behind, a directory that was walked through is there; a missing one is not.
            exists = done.is_empty() || look(&done).is_some();
            continue;
        }
        let next = path::join(&done, &part);
        match if exists { look(&next) } else { None } {
            None => exists = false,
            Some(Seen::Dir) => {}
            Some(Seen::Link(target)) if follow_last || !todo.is_empty() => {
                links += 1;
                if links > limits::SYMLINKS {
                    return Err(ResolveError::TooManyLinks(path::lossy(path)));
                }
                if target.starts_with(b"/") {
                    done.clear();
                }
                for part in parts(&target).collect::<Vec<_>>().into_iter().rev() {
                    todo.push_front(part);
                }
                continue;
            }
            Some(_) if todo.is_empty() => {}
            Some(_) => return Err(ResolveError::NotADirectory(path::lossy(&next))),
        }
        done = next;
    }
    Ok(ResolvedPath { path: done, exists })
}

fn parts(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    path.split(|&b| b == b'/').filter(|p| !p.is_empty() && *p != b".").map(<[u8]>::to_vec)
}
