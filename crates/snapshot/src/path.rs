//! Paths inside a layer: bytes, relative, without a leading slash; the empty path is the root directory.
//!
//! Two orders exist for such paths. *Component order* compares name by name, so a directory comes right before
//! everything below it; it is byte order with `/` taken as the lowest byte (names hold no NUL). Everything in this
//! crate is in component order. Plain byte order would put `a-b` between `a` and `a/b`.

use std::cmp::Ordering;

use crate::error::{Error, Result};

/// Longest name of one component in bytes, the limit of every Linux file system in use.
pub const NAME_MAX: usize = 255;

/// Longest path accepted, in bytes. Longer than the kernel's limit for one call (4095), since deeper trees can be
/// made and are reached step by step; bounded so that an archive cannot make work that grows with its square.
pub const PATH_MAX: usize = 32 * 1024;

/// Compares two paths in component order.
pub fn cmp(a: &[u8], b: &[u8]) -> Ordering {
    let n = a.len().min(b.len());
    match a[..n].iter().zip(&b[..n]).position(|(x, y)| x != y) {
        Some(i) => rank(a[i]).cmp(&rank(b[i])),
        None => a.len().cmp(&b.len()),
    }
}

fn rank(byte: u8) -> u8 {
    if byte == b'/' { 0 } else { byte }
}

/// Returns the directory that holds `path`, or `None` for the root directory.
pub fn parent(path: &[u8]) -> Option<&[u8]> {
    if path.is_empty() {
        return None;
    }
    Some(path.iter().rposition(|&b| b == b'/').map_or(&[][..], |i| &path[..i]))
}

/// Returns the last name of `path`; empty for the root directory.
pub fn name(path: &[u8]) -> &[u8] {
    path.iter().rposition(|&b| b == b'/').map_or(path, |i| &path[i + 1..])
}

/// Returns `dir/name`.
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(dir.len() + name.len() + 1);
    path.extend_from_slice(dir);
    if !dir.is_empty() && !name.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// Tells whether `path` is below `dir` (and not `dir` itself).
pub fn is_below(path: &[u8], dir: &[u8]) -> bool {
    if dir.is_empty() {
        return !path.is_empty();
    }
    path.len() > dir.len() && path[dir.len()] == b'/' && path.starts_with(dir)
}

/// Returns `path` without empty and `.` components, with `..` taken back lexically and stopped at the root.
/// The flag tells whether a `..` tried to leave the root.
pub fn clean(path: &[u8]) -> (Vec<u8>, bool) {
    let mut out: Vec<&[u8]> = Vec::new();
    let mut escaped = false;
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => escaped |= out.pop().is_none(),
            name => out.push(name),
        }
    }
    (out.join(&b'/'), escaped)
}

/// Checks that `path` has the form that layers use.
///
/// # Errors
/// [`Error::BadPath`] with what is wrong with it.
pub fn check(path: &[u8]) -> Result<()> {
    let bad = |what| Err(Error::BadPath { path: lossy(path), what });
    if path.is_empty() {
        return Ok(());
    }
    if path.len() > PATH_MAX {
        return bad("the path is longer than 32 KiB");
    }
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" => return bad("it has an empty component"),
            b"." | b".." => return bad("it has a `.` or `..` component"),
            _ if part.len() > NAME_MAX => return bad("a name in it is longer than 255 bytes"),
            _ if part.contains(&0) => return bad("it holds a NUL byte"),
            _ => {}
        }
    }
    Ok(())
}

/// Returns `path` for people: with a leading slash, odd bytes escaped, long ones cut in the middle.
pub fn lossy(path: &[u8]) -> String {
    const SHOWN: usize = 300;
    let mut text = String::from("/");
    let show = |text: &mut String, bytes: &[u8]| text.push_str(&bytes.escape_ascii().to_string());
    if path.len() <= SHOWN {
        match std::str::from_utf8(path) {
            Ok(plain) if !plain.contains(char::is_control) => text.push_str(plain),
            _ => show(&mut text, path),
        }
    } else {
        show(&mut text, &path[..SHOWN / 2]);
        text.push_str("...");
        show(&mut text, &path[path.len() - SHOWN / 2..]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn component_order_keeps_subtrees_together() {
        let mut paths: Vec<&[u8]> = vec![b"a-b", b"a/b", b"a", b"", b"a.b", b"a/b/c", b"a/b-c", b"b"];
        paths.sort_by(|a, b| cmp(a, b));
        let expected: Vec<&[u8]> = vec![b"", b"a", b"a/b", b"a/b/c", b"a/b-c", b"a-b", b"a.b", b"b"];
        assert_eq!(paths, expected);
    }

    #[test]
    fn parts() {
        assert_eq!(parent(b""), None);
        assert_eq!(parent(b"a"), Some(&b""[..]));
        assert_eq!(parent(b"a/b/c"), Some(&b"a/b"[..]));
        assert_eq!((name(b"a/b"), name(b"a"), name(b"")), (&b"b"[..], &b"a"[..], &b""[..]));
        assert_eq!(
            (join(b"", b"x"), join(b"a", b"x"), join(b"a", b"")),
            (b"x".to_vec(), b"a/x".to_vec(), b"a".to_vec())
        );
        assert!(is_below(b"a/b", b"a") && is_below(b"a", b"") && !is_below(b"ab", b"a") && !is_below(b"a", b"a"));
    }

    #[test]
    fn cleaning_stops_at_the_root() {
        assert_eq!(clean(b"/a//./b/../c/"), (b"a/c".to_vec(), false));
        assert_eq!(clean(b"a/../../etc"), (b"etc".to_vec(), true));
        assert_eq!(clean(b"./"), (Vec::new(), false));
    }

    #[test]
    fn bad_paths_are_refused() {
        for path in [&b"/a"[..], b"a/", b"a//b", b"a/../b", b".", b"a\0b", &[b'x'; 256], &b"d/".repeat(20_000)] {
            assert!(check(path).is_err(), "{}", lossy(path));
        }
        for path in [&b""[..], b"a", b"a/b", &[b'x'; 255], b"\xff\xfe"] {
            assert!(check(path).is_ok(), "{}", lossy(path));
        }
    }
}
