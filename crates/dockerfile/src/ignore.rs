//! `.dockerignore` files. Matching is `kiln_stdx::pattern`'s.

use kiln_stdx::pattern;

/// Reads an ignore file into patterns for `kiln_stdx::pattern::PatternMatcher`, in order.
///
/// Blank lines and lines that begin with `#` in the first column are dropped; patterns are trimmed, cleaned and made
/// relative; a leading `!` is kept.
pub fn parse(text: &[u8]) -> Vec<String> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    String::from_utf8_lossy(text)
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| match line.strip_prefix('!') {
            Some(rest) => format!("!{}", normalize(rest.trim())),
            None => normalize(line),
        })
        .collect()
}

fn normalize(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let clean = String::from_utf8_lossy(&pattern::clean(text.as_bytes())).into_owned();
    match clean.strip_prefix('/') {
        Some(rest) if !rest.is_empty() => rest.to_owned(),
        _ => clean,
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn lines_become_patterns() {
        let text = "\u{feff}# comment\n\n  /a//b/ \r\n!  ./keep\n #not a comment\n/\n!\n**/*.o\n";
        assert_eq!(parse(text.as_bytes()), ["a/b", "!keep", "#not a comment", "/", "!", "**/*.o"]);
        assert!(parse(b"").is_empty());
    }
}
