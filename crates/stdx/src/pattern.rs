//! Path patterns: the glob of Go's `path/filepath.Match`, the ordered pattern lists of `.dockerignore`, the walk
//! filter of file sync, and the resolving of follow-paths.
//!
//! Paths are bytes with `/` as separator, relative and clean (no leading `/`, no `.` or `..` parts) unless a
//! function says otherwise: names in an image need not be UTF-8.

mod filter;
mod follow;
mod glob;
mod matcher;
#[cfg(test)]
mod tests;

pub use filter::{PathFilter, Verdict, Walk};
pub use follow::{LinkSource, follow_paths};
pub use glob::{Glob, has_wildcards, matches};
pub use matcher::{MatchInfo, PatternMatcher};

/// Why a pattern is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// A bracket is not closed, a range is empty, or a backslash ends the pattern.
    #[error("syntax error in pattern `{0}`")]
    Syntax(String),
    /// A lone `!` negates nothing.
    #[error("illegal exclusion pattern: \"!\"")]
    LoneNegation,
}

/// Returns the shortest lexical equal of `path`, as Go's `path.Clean` does: no empty or `.` parts, `..` applied where
/// a part precedes it, dropped at a root; the empty path is `.`.
pub fn clean(path: &[u8]) -> Vec<u8> {
    let rooted = path.first() == Some(&b'/');
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => match parts.last() {
                Some(&last) if last != b".." => {
                    parts.pop();
                }
                _ if rooted => {}
                _ => parts.push(part),
            },
            _ => parts.push(part),
        }
    }
    let mut out = Vec::with_capacity(path.len());
    if rooted {
        out.push(b'/');
    }
    out.extend(parts.join(&b'/'));
    if out.is_empty() {
        out.push(b'.');
    }
    out
}

/// Joins two paths and cleans the result; an empty part adds nothing.
pub fn join(base: &[u8], path: &[u8]) -> Vec<u8> {
    match (base, path) {
        (b"", b"") => Vec::new(),
        (b"", path) => clean(path),
        (base, b"") => clean(base),
        (base, path) => clean(&[base, b"/", path].concat()),
    }
}

/// Returns what precedes the last part: `.` for a single part, `/` for one below the root.
pub fn parent(path: &[u8]) -> Vec<u8> {
    match path.iter().rposition(|&b| b == b'/') {
        None => b".".to_vec(),
        Some(at) => clean(&path[..=at]),
    }
}

/// Returns the last part of `path`, trailing separators ignored: `.` for the empty path, `/` for the root.
pub fn base(path: &[u8]) -> &[u8] {
    if path.is_empty() {
        return b".";
    }
    let end = path.iter().rposition(|&b| b != b'/').map_or(0, |at| at + 1);
    if end == 0 {
        return b"/";
    }
    let trimmed = &path[..end];
    let start = trimmed.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1);
    &trimmed[start..]
}
