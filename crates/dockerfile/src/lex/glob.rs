//! Patterns of `${v#p}`, `${v%p}` and `${v/p/r}`: `*`, `?` and backslash escapes, no brackets.

use regex::Regex;

use super::word::{MAX_TEXT, too_long};

/// What one element of a pattern matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Many,
    One,
    Char(char),
}

/// Which end is cut, and how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    Prefix,
    Suffix,
}

fn tokens(pattern: &str) -> Result<Vec<Token>, String> {
    let mut out = Vec::new();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        out.push(match c {
            '*' => Token::Many,
            '?' => Token::One,
            // Inside `${…}` a closing brace and a slash need an escape that is no part of the pattern.
            '\\' if matches!(chars.peek(), Some('}' | '/')) => continue,
            '\\' => match chars.next() {
                Some(c @ ('*' | '?' | '\\')) => Token::Char(c),
                Some(other) => return Err(format!("invalid escape '\\{other}'")),
                None => return Err("trailing backslash".to_owned()),
            },
            c => Token::Char(c),
        });
    }
    Ok(out)
}

fn compile(tokens: impl Iterator<Item = Token>, greedy: bool, anchored: bool) -> Result<Regex, String> {
    let mut text = String::from(if anchored { "^" } else { "" });
    for token in tokens {
        match token {
            Token::Many => text.push_str(if greedy { ".*" } else { ".*?" }),
            Token::One => text.push('.'),
            Token::Char(c) => text.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    Regex::new(&text).map_err(|_| "the pattern is too long".to_owned())
}

fn invalid(pattern: &str, cause: &str) -> String {
    format!("invalid pattern ({pattern}) in substitution: {cause}")
}

/// Cuts what the pattern matches at one end: the longest match when `greedy`, else the shortest.
pub(super) fn cut(value: &str, pattern: &str, end: Cut, greedy: bool) -> Result<String, String> {
    let tokens = tokens(pattern).map_err(|e| invalid(pattern, &e))?;
    match end {
        Cut::Prefix => {
            let regex = compile(tokens.into_iter(), greedy, true).map_err(|e| invalid(pattern, &e))?;
            Ok(regex.find(value).map_or(value, |found| &value[found.end()..]).to_owned())
        }
        // The shortest match at the end is the shortest at the beginning of the text read backwards.
        Cut::Suffix => {
            let regex = compile(tokens.into_iter().rev(), greedy, true).map_err(|e| invalid(pattern, &e))?;
            let backwards: String = value.chars().rev().collect();
            let kept = regex.find(&backwards).map_or(backwards.as_str(), |found| &backwards[found.end()..]);
            Ok(kept.chars().rev().collect())
        }
    }
}

/// Replaces the first longest match of the pattern, or every one.
pub(super) fn replace(value: &str, pattern: &str, replacement: &str, all: bool) -> Result<String, String> {
    let tokens = tokens(pattern).map_err(|e| invalid(pattern, &e))?;
    let regex = compile(tokens.into_iter(), true, false).map_err(|e| invalid(pattern, &e))?;
    if all {
        let (mut out, mut end) = (String::new(), 0);
        for found in regex.captures_iter(value) {
            let Some(whole) = found.get(0) else { continue };
            out.push_str(&value[end..whole.start()]);
            found.expand(replacement, &mut out);
            end = whole.end();
            if out.len() > MAX_TEXT {
                return Err(too_long());
            }
        }
        out.push_str(&value[end..]);
        return Ok(out);
    }
    Ok(regex.replace(value, regex::NoExpand(replacement)).into_owned())
}
