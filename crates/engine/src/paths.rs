//! Paths as texts: the cleaning that LLB paths need before they are compared or hashed.

/// Returns `path` without leading slash, empty parts, `.` and `..`; a `..` never leaves the root.
pub fn clean_relative(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Returns the last part of `path`, `/` for the root and `.` for nothing, as Go's `path.Base` has it.
pub fn base(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() {
        return "/";
    }
    trimmed.rsplit('/').next().unwrap_or(trimmed)
}

/// Tells whether a copy source holds a wildcard: `*`, `?` or `[` that no backslash escapes.
pub fn has_wildcard(path: &str) -> bool {
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                bytes.next();
            }
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning_stays_inside() {
        for (path, want) in [("/a//b/./c", "a/b/c"), ("../../x", "x"), ("a/../..", ""), ("/", "")] {
            assert_eq!(clean_relative(path), want);
        }
        for (path, want) in [("", "."), ("/", "/"), ("/a/b/", "b"), ("x", "x")] {
            assert_eq!(base(path), want);
        }
        assert!(has_wildcard("a*") && has_wildcard("[ab]") && !has_wildcard("a\\*"));
    }
}
