//! An ordered list of patterns as in `.dockerignore` and in include and exclude options: later patterns win, `!`
//! takes back, and what matches a directory matches all below it.

use super::glob::{Glob, Token};
use super::{PatternError, clean};

/// How one pattern is tested. The plain forms are not only faster: `a**` and `**b` match across separators without a
/// border, which no glob of this dialect expresses.
#[derive(Debug, Clone)]
enum Form {
    Exact(Vec<u8>),
    Prefix(Vec<u8>),
    Suffix(Vec<u8>),
    Glob(Glob),
}

#[derive(Debug, Clone)]
struct Pattern {
    text: Vec<u8>,
    negated: bool,
    form: Form,
}

/// What is known of a directory, to test its children against: which patterns it, or one above it, matched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MatchInfo(Vec<bool>);

/// A compiled list of patterns.
#[derive(Debug, Clone, Default)]
pub struct PatternMatcher {
    patterns: Vec<Pattern>,
}

impl PatternMatcher {
    /// Compiles `patterns`: blanks around each are dropped, empty ones skipped, each is cleaned lexically.
    ///
    /// # Errors
    /// A malformed pattern or a lone `!`.
    pub fn new<S: AsRef<[u8]>>(patterns: impl IntoIterator<Item = S>) -> Result<Self, PatternError> {
        let mut compiled = Vec::new();
        for pattern in patterns {
            let text = pattern.as_ref().trim_ascii();
            if !text.is_empty() {
                compiled.push(Pattern::new(&clean(text))?);
            }
        }
        Ok(Self { patterns: compiled })
    }

    /// Tells whether there is no pattern at all.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Tells whether any pattern begins with `!`.
    pub fn has_negations(&self) -> bool {
        self.patterns.iter().any(|p| p.negated)
    }

    /// Returns each pattern's cleaned text without its `!`, and whether it had one.
    pub fn patterns(&self) -> impl Iterator<Item = (&[u8], bool)> {
        self.patterns.iter().map(|p| (p.text.as_slice(), p.negated))
    }

    /// Tells whether the list matches `path`, be it through a directory above it.
    pub fn matches(&self, path: &[u8]) -> bool {
        self.matches_below(path, &MatchInfo::default()).0
    }

    /// Tells whether the list matches `path`, given what is known of its directory, and what is then known of `path`.
    ///
    /// With the default info nothing is known, and the directories above are tested here. The result is the same either
    /// way only if the whole walk passes infos down: a negated pattern may be skipped above and yet match below.
    pub fn matches_below(&self, path: &[u8], parent: &MatchInfo) -> (bool, MatchInfo) {
        let known = parent.0.len() == self.patterns.len() && !parent.0.is_empty();
        let mut info = vec![false; self.patterns.len()];
        let mut matched = false;
        for (i, pattern) in self.patterns.iter().enumerate() {
            let mut hit = known && parent.0[i];
            if !hit {
                // A pattern that could not change the outcome is not evaluated, and counts as not matched below, too.
                if pattern.negated != matched {
                    continue;
                }
                hit = pattern.is_match(path) || (!known && ancestors(path).any(|dir| pattern.is_match(dir)));
            }
            info[i] = hit;
            if hit {
                matched = !pattern.negated;
            }
        }
        (matched, MatchInfo(info))
    }
}

/// Returns the proper ancestors of `path`, topmost first.
fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|&(i, &b)| b == b'/' && i > 0).map(|(i, _)| &path[..i])
}

impl Pattern {
    fn new(cleaned: &[u8]) -> Result<Self, PatternError> {
        let (negated, text) = match cleaned.strip_prefix(b"!") {
            Some(b"") => return Err(PatternError::LoneNegation),
            Some(rest) => (true, rest),
            None => (false, cleaned),
        };
        Glob::new(text)?;
        let glob = Glob::ignore(text)?;
        let escaped = text.contains(&b'\\');
        let form = match glob.0.as_slice() {
            [] => Form::Exact(Vec::new()),
            [Token::Literal(literal)] if !escaped => Form::Exact(literal.clone()),
            // `dir/**` and also `dir**`: everything with that beginning, but `dir/**` not the directory itself.
            [Token::Literal(_), Token::Anything] if !escaped => Form::Prefix(text[..text.len() - 2].to_vec()),
            [Token::Anything] => Form::Suffix(Vec::new()),
            [Token::AnyDirs, Token::Literal(_)] if !escaped => Form::Suffix(text[2..].to_vec()),
            _ => Form::Glob(glob),
        };
        Ok(Self { text: text.to_vec(), negated, form })
    }

    fn is_match(&self, path: &[u8]) -> bool {
        match &self.form {
            Form::Exact(text) => path == text,
            Form::Prefix(text) => path.starts_with(text),
            Form::Suffix(text) => path.ends_with(text) || text.strip_prefix(b"/").is_some_and(|bare| path == bare),
            Form::Glob(glob) => glob.is_match(path),
        }
    }
}
