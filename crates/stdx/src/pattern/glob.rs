//! One glob pattern, compiled. Two dialects share the machine: Go's `filepath.Match` (`*`, `?`, classes, escapes), and
//! the ignore-file dialect, in which `**` also crosses separators.

use super::PatternError;

/// What one place of a pattern matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// Exactly these bytes.
    Literal(Vec<u8>),
    /// Any one character but the separator.
    AnyChar,
    /// A character of (or not of) a set of ranges.
    Class { negated: bool, ranges: Vec<(char, char)> },
    /// Any run of characters without a separator.
    Star,
    /// Any run of characters.
    Anything,
    /// Nothing, or any run that ends with a separator.
    AnyDirs,
}

/// A compiled glob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(pub(super) Vec<Token>);

/// Tells whether `name` matches `pattern` as Go's `filepath.Match` has it.
///
/// # Errors
/// A malformed pattern, wherever the matching would have ended.
pub fn matches(pattern: &[u8], name: &[u8]) -> Result<bool, PatternError> {
    Ok(Glob::new(pattern)?.is_match(name))
}

/// Tells whether `name` holds an unescaped `*`, `?` or `[`.
pub fn has_wildcards(name: &[u8]) -> bool {
    let mut bytes = name.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'*' | b'?' | b'[' => return true,
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
    false
}

impl Glob {
    /// Compiles a pattern of Go's `filepath.Match`.
    ///
    /// # Errors
    /// A malformed pattern.
    pub fn new(pattern: &[u8]) -> Result<Self, PatternError> {
        parse(pattern, false)
    }

    /// Compiles a pattern of the ignore-file dialect.
    pub(super) fn ignore(pattern: &[u8]) -> Result<Self, PatternError> {
        parse(pattern, true)
    }

    /// Tells whether the whole of `name` matches.
    pub fn is_match(&self, name: &[u8]) -> bool {
        // The set of places in `name` up to which the tokens so far can match; no backtracking, so no blow-up.
        let mut reached = vec![0usize];
        for token in &self.0 {
            let mut next = Vec::with_capacity(reached.len());
            for &at in &reached {
                step(token, name, at, &mut next);
            }
            next.sort_unstable();
            next.dedup();
            if next.is_empty() {
                return false;
            }
            reached = next;
        }
        reached.last() == Some(&name.len())
    }
}

fn step(token: &Token, name: &[u8], at: usize, next: &mut Vec<usize>) {
    match token {
        Token::Literal(text) => {
            if name[at..].starts_with(text) {
                next.push(at + text.len());
            }
        }
        Token::AnyChar => {
            if let Some((c, width)) = char_at(name, at)
                && c != '/'
            {
                next.push(at + width);
            }
        }
        Token::Class { negated, ranges } => {
            if let Some((c, width)) = char_at(name, at)
                && ranges.iter().any(|&(low, high)| low <= c && c <= high) != *negated
            {
                next.push(at + width);
            }
        }
        Token::Star => {
            let mut at = at;
            next.push(at);
            while let Some((c, width)) = char_at(name, at)
                && c != '/'
            {
                at += width;
                next.push(at);
            }
        }
        Token::Anything => next.extend(at..=name.len()),
        Token::AnyDirs => {
            next.push(at);
            next.extend((at..name.len()).filter(|&i| name[i] == b'/').map(|i| i + 1));
        }
    }
}

/// Returns the character at `at` and its width; a byte that is not UTF-8 is the replacement character of width 1.
fn char_at(text: &[u8], at: usize) -> Option<(char, usize)> {
    let rest = text.get(at..)?;
    let &first = rest.first()?;
    if first < 0x80 {
        return Some((char::from(first), 1));
    }
    for width in 2..=rest.len().min(4) {
        if let Ok(text) = std::str::from_utf8(&rest[..width]) {
            return text.chars().next().map(|c| (c, width));
        }
    }
    Some((char::REPLACEMENT_CHARACTER, 1))
}

fn parse(pattern: &[u8], crossing: bool) -> Result<Glob, PatternError> {
    let bad = || PatternError::Syntax(String::from_utf8_lossy(pattern).into_owned());
    let mut tokens = Vec::new();
    let mut literal = Vec::new();
    let mut at = 0;
    while at < pattern.len() {
        let token = match pattern[at] {
            b'*' if crossing && pattern.get(at + 1) == Some(&b'*') => {
                at += 2;
                if pattern.get(at) == Some(&b'/') {
                    at += 1;
                }
                if at == pattern.len() { Token::Anything } else { Token::AnyDirs }
            }
            b'*' => {
                at += 1;
                Token::Star
            }
            b'?' => {
                at += 1;
                Token::AnyChar
            }
            b'[' => {
                let (class, end) = parse_class(pattern, at + 1).ok_or_else(bad)?;
                at = end;
                class
            }
            b'\\' => {
                literal.push(*pattern.get(at + 1).ok_or_else(bad)?);
                at += 2;
                continue;
            }
            byte => {
                literal.push(byte);
                at += 1;
                continue;
            }
        };
        if !literal.is_empty() {
            tokens.push(Token::Literal(std::mem::take(&mut literal)));
        }
        tokens.push(token);
    }
    if !literal.is_empty() {
        tokens.push(Token::Literal(literal));
    }
    Ok(Glob(tokens))
}

/// Parses a class whose text starts at `at`, after the bracket; returns it and the place after its end.
fn parse_class(pattern: &[u8], mut at: usize) -> Option<(Token, usize)> {
    let negated = pattern.get(at) == Some(&b'^');
    if negated {
        at += 1;
    }
    let mut ranges = Vec::new();
    loop {
        if pattern.get(at) == Some(&b']') && !ranges.is_empty() {
            return Some((Token::Class { negated, ranges }, at + 1));
        }
        let (low, after) = class_char(pattern, at)?;
        at = after;
        let mut high = low;
        if pattern.get(at) == Some(&b'-') {
            (high, at) = class_char(pattern, at + 1)?;
        }
        ranges.push((low, high));
    }
}

/// Reads one, perhaps escaped, character of a class; something must follow it.
fn class_char(pattern: &[u8], mut at: usize) -> Option<(char, usize)> {
    match pattern.get(at)? {
        b'-' | b']' => return None,
        b'\\' => at += 1,
        _ => {}
    }
    let (c, width) = char_at(pattern, at)?;
    if (c == char::REPLACEMENT_CHARACTER && width == 1) || at + width >= pattern.len() {
        return None;
    }
    Some((c, at + width))
}
