//! Follow-paths: the paths that a build step reads, widened by the targets of the symbolic links on the way, so that
//! a narrowed context still holds what the links point to.

use std::collections::BTreeSet;
use std::io;

use super::{base, clean, glob, join, parent};

/// Where links are read. Paths are relative to the root and clean; `.` is the root.
pub trait LinkSource {
    /// Returns the target if `path` is a symbolic link; `None` if it is something else or missing.
    ///
    /// # Errors
    /// Reading failed for another reason.
    fn read_link(&self, path: &[u8]) -> io::Result<Option<Vec<u8>>>;

    /// Returns the names in the directory `path`; none if it is missing.
    ///
    /// # Errors
    /// Reading failed for another reason.
    fn names(&self, path: &[u8]) -> io::Result<Vec<Vec<u8>>>;
}

/// Resolves `paths` (wildcards allowed) to the sorted list of paths to include; paths below a listed one are left out.
/// `None` means no limit: the root itself is wanted.
///
/// # Errors
/// Whatever the source fails with.
pub fn follow_paths<S: LinkSource + ?Sized>(source: &S, paths: &[Vec<u8>]) -> io::Result<Option<Vec<Vec<u8>>>> {
    let mut resolved = BTreeSet::new();
    for path in paths {
        resolve(source, path, &mut resolved)?;
    }
    let mut out: Vec<Vec<u8>> = Vec::with_capacity(resolved.len());
    for path in resolved {
        if path == b"." {
            return Ok(None);
        }
        let below =
            out.last().is_some_and(|last| path.strip_prefix(last.as_slice()).is_some_and(|r| r.first() == Some(&b'/')));
        if !below {
            out.push(path);
        }
    }
    Ok(Some(out))
}

fn resolve<S: LinkSource + ?Sized>(source: &S, path: &[u8], resolved: &mut BTreeSet<Vec<u8>>) -> io::Result<()> {
    // A work list, not recursion: a chain of links may be as long as someone cares to make it.
    let mut work = vec![join(b".", path)];
    while let Some(path) = work.pop() {
        let mut current = b".".to_vec();
        let mut rest = path.as_slice();
        loop {
            let (part, after) = match rest.iter().position(|&b| b == b'/') {
                Some(at) => (&rest[..at], &rest[at + 1..]),
                None => (rest, &b""[..]),
            };
            current = join(&current, part);
            rest = after;
            let targets = targets(source, &current)?;
            if !targets.is_empty() {
                // A link seen before was followed then, whatever came after it; this also ends cycles.
                if resolved.insert(current) {
                    work.extend(targets.iter().map(|target| join(b".", &join(target, rest))));
                }
                break;
            }
            if rest.is_empty() {
                resolved.insert(current);
                break;
            }
        }
    }
    Ok(())
}

/// Returns the absolute targets of the link `path`, or of the links that it matches if its last part has wildcards.
fn targets<S: LinkSource + ?Sized>(source: &S, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let name = base(path);
    if !glob::has_wildcards(name) {
        return Ok(target(source, path)?.into_iter().collect());
    }
    let Ok(glob) = glob::Glob::new(name) else { return Ok(Vec::new()) };
    let dir = parent(path);
    let mut out = Vec::new();
    for name in source.names(&dir)? {
        if glob.is_match(&name) {
            out.extend(target(source, &join(&dir, &name))?);
        }
    }
    Ok(out)
}

fn target<S: LinkSource + ?Sized>(source: &S, path: &[u8]) -> io::Result<Option<Vec<u8>>> {
    if path == b"." || path == b"/" {
        return Ok(None);
    }
    let Some(link) = source.read_link(path)? else { return Ok(None) };
    let link = clean(&link);
    if link.first() == Some(&b'/') {
        return Ok(Some(link));
    }
    Ok(Some(join(b"/", &join(&parent(path), &link))))
}
