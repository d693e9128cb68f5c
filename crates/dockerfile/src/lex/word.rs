//! Words: quotes, escapes and the fourteen forms of variables, as a shell would read them.

use std::collections::BTreeSet;

use super::glob::{self, Cut};

/// Deepest nesting of `${a:-${b:-…}}`; real files need two or three.
const MAX_DEPTH: usize = 64;
/// Most bytes that the variables of one text may come to, those in nested words counted again: a value that is made
/// of itself doubles with each line, and would take all memory in a few dozen.
pub const MAX_TEXT: usize = 1 << 20;

/// Where values of variables come from.
pub trait Vars {
    /// Returns the value of a variable that is set.
    fn value(&self, name: &str) -> Option<String>;
    /// Returns the names of all variables.
    fn names(&self) -> Vec<String>;
}

/// No variables at all.
#[derive(Debug, Clone, Copy)]
pub struct NoVars;

impl Vars for NoVars {
    fn value(&self, _: &str) -> Option<String> {
        None
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

impl Vars for kiln_llb::builder::EnvList {
    fn value(&self, name: &str) -> Option<String> {
        self.get(name).map(str::to_owned)
    }

    fn names(&self) -> Vec<String> {
        self.iter().map(|(k, _)| k.to_owned()).collect()
    }
}

/// How words are read.
#[derive(Debug, Clone, Copy)]
pub struct WordLexer {
    /// The escape character.
    pub escape: char,
    /// Keep quotes in the result.
    pub raw_quotes: bool,
    /// Keep escape characters in the result.
    pub raw_escapes: bool,
    /// Quotes mean nothing.
    pub ignore_quotes: bool,
    /// Leave variables that are not set as they are written.
    pub keep_unset: bool,
}

/// A text with its variables replaced.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expansion {
    pub text: String,
    /// The text split at blanks that are neither quoted nor escaped.
    pub words: Vec<String>,
    /// Variables that were used and set.
    pub matched: BTreeSet<String>,
    /// Variables that were used and not set.
    pub unmatched: BTreeSet<String>,
}

impl WordLexer {
    /// Returns a lexer that removes quotes and escapes and replaces unset variables by nothing.
    pub fn new(escape: char) -> Self {
        Self { escape, raw_quotes: false, raw_escapes: false, ignore_quotes: false, keep_unset: false }
    }

    /// Expands a text.
    ///
    /// # Errors
    /// A quote or brace that is not closed, a form that does not exist, a bad pattern, or `${v:?…}` that fails.
    pub fn expand(&self, text: &str, vars: &dyn Vars) -> Result<Expansion, String> {
        let mut scan = Scan {
            lexer: *self,
            vars,
            chars: text.chars().collect(),
            at: 0,
            raw_escapes: self.raw_escapes,
            depth: 0,
            spent: 0,
            matched: BTreeSet::new(),
            unmatched: BTreeSet::new(),
        };
        match scan.until(None, self.raw_escapes) {
            Ok((text, words)) => Ok(Expansion { text, words, matched: scan.matched, unmatched: scan.unmatched }),
            Err(cause) => Err(format!("failed to process {}: {cause}", crate::gofmt::quote(text))),
        }
    }
}

struct Scan<'a> {
    lexer: WordLexer,
    vars: &'a dyn Vars,
    chars: Vec<char>,
    at: usize,
    raw_escapes: bool,
    depth: usize,
    /// Bytes of values so far.
    spent: usize,
    matched: BTreeSet<String>,
    unmatched: BTreeSet<String>,
}

/// Words in the making.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    current: String,
}

impl Words {
    fn split_text(&mut self, text: &str) {
        for c in text.chars() {
            if !c.is_whitespace() {
                self.current.push(c);
            } else if !self.current.is_empty() {
                self.done.push(std::mem::take(&mut self.current));
            }
        }
    }

    fn finish(mut self) -> Vec<String> {
        if !self.current.is_empty() {
            self.done.push(self.current);
        }
        self.done
    }
}

impl Scan<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += 1;
        Some(c)
    }

    /// Reads up to `stop`, which is taken, or to the end of the text.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Result<(String, Vec<String>), String> {
        if self.depth >= MAX_DEPTH {
            return Err("variables are nested too deeply".into());
        }
        self.depth += 1;
        let before = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        let result = self.until_inner(stop);
        self.raw_escapes = before;
        self.depth -= 1;
        result
    }

    fn until_inner(&mut self, stop: Option<char>) -> Result<(String, Vec<String>), String> {
        let (mut text, mut words) = (String::new(), Words::default());
        let quotes = !self.lexer.ignore_quotes;
        while let Some(c) = self.peek() {
            if stop == Some(c) {
                self.at += 1;
                return Ok((text, words.finish()));
            }
            match c {
                '$' => {
                    let value = self.value()?;
                    words.split_text(&value);
                    text.push_str(&value);
                }
                '\'' | '"' | '<' if c == '<' || quotes => {
                    let piece = match c {
                        '\'' => self.single_quotes()?,
                        '"' => self.double_quotes()?,
                        _ => self.heredoc_mark(),
                    };
                    words.current.push_str(&piece);
                    text.push_str(&piece);
                }
                _ if c == self.lexer.escape => {
                    self.at += 1;
                    if self.raw_escapes {
                        words.current.push(c);
                        text.push(c);
                    }
                    let Some(escaped) = self.next() else { break };
                    words.current.push(escaped);
                    text.push(escaped);
                }
                _ => {
                    self.at += 1;
                    words.split_text(c.encode_utf8(&mut [0; 4]));
                    text.push(c);
                }
            }
        }
        match stop {
            Some(stop) => Err(format!("unexpected end of statement while looking for matching {stop}")),
            None => Ok((text, words.finish())),
        }
    }

    /// `<<` keeps the blanks after it, so that `<< EOF` is one word.
    fn heredoc_mark(&mut self) -> String {
        self.at += 1;
        if self.peek() != Some('<') {
            return "<".into();
        }
        self.at += 1;
        let mut out = String::from("<<");
        while let Some(c @ ('\t' | '\r' | ' ')) = self.peek() {
            out.push(c);
            self.at += 1;
        }
        out
    }

    fn single_quotes(&mut self) -> Result<String, String> {
        let mut out = String::new();
        self.at += 1;
        if self.lexer.raw_quotes {
            out.push('\'');
        }
        loop {
            match self.next() {
                None => return Err("unexpected end of statement while looking for matching single-quote".into()),
                Some('\'') => break,
                Some(c) => out.push(c),
            }
        }
        if self.lexer.raw_quotes {
            out.push('\'');
        }
        Ok(out)
    }

    fn double_quotes(&mut self) -> Result<String, String> {
        let mut out = String::new();
        self.at += 1;
        if self.lexer.raw_quotes {
            out.push('"');
        }
        loop {
            match self.peek() {
                None => return Err("unexpected end of statement while looking for matching double-quote".into()),
                Some('"') => {
                    self.at += 1;
                    break;
                }
                Some('$') => out.push_str(&self.value()?),
                Some(c) if c == self.lexer.escape => {
                    self.at += 1;
                    if self.raw_escapes {
                        out.push(c);
                    }
                    match self.peek() {
                        None => {}
                        Some(next) if next == '"' || next == '$' || next == c => {
                            self.at += 1;
                            out.push(next);
                        }
                        Some(_) => out.push(c),
                    }
                }
                Some(c) => {
                    self.at += 1;
                    out.push(c);
                }
            }
        }
        if self.lexer.raw_quotes {
            out.push('"');
        }
        Ok(out)
    }

    fn name(&mut self) -> String {
        let start = self.at;
        match self.peek() {
            Some(c) if c.is_numeric() => {
                while self.peek().is_some_and(char::is_numeric) {
                    self.at += 1;
                }
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => self.at += 1,
            _ => {
                while self.peek().is_some_and(|c| c.is_alphanumeric() || c == '_') {
                    self.at += 1;
                }
            }
        }
        self.chars[start..self.at].iter().collect()
    }

    fn lookup(&mut self, name: &str) -> Option<String> {
        let value = self.vars.value(name);
        let seen = if value.is_some() { &mut self.matched } else { &mut self.unmatched };
        seen.insert(name.to_owned());
        value
    }

    /// Reads one use of a variable.
    fn value(&mut self) -> Result<String, String> {
        let value = self.dollar()?;
        self.spent = self.spent.saturating_add(value.len());
        if self.spent > MAX_TEXT {
            return Err(too_long());
        }
        Ok(value)
    }

    fn dollar(&mut self) -> Result<String, String> {
        self.at += 1;
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".into());
            }
            return Ok(match self.lookup(&name) {
                None if self.lexer.keep_unset => format!("${name}"),
                value => value.unwrap_or_default(),
            });
        }
        self.at += 1;
        match self.peek() {
            None => return Err("syntax error: missing '}'".into()),
            Some('{' | '}' | ':') => return Err("syntax error: bad substitution".into()),
            Some(_) => {}
        }
        let name = self.name();
        match self.next() {
            None => Err("syntax error: missing '}'".into()),
            Some('}') => Ok(match self.lookup(&name) {
                None if self.lexer.keep_unset => format!("${{{name}}}"),
                value => value.unwrap_or_default(),
            }),
            Some(':') => {
                let Some(c) = self.next() else { return Err("syntax error: missing '}'".into()) };
                if matches!(c, '#' | '%') {
                    return Err(format!("unsupported modifier (:{c}) in substitution"));
                }
                self.modifier(&name, c, true)
            }
            Some(c @ ('+' | '-' | '?' | '#' | '%')) => self.modifier(&name, c, false),
            Some('/') => self.replacement(&name),
            Some(c) => Err(format!("unsupported modifier ({c}) in substitution")),
        }
    }

    /// Reads a nested word up to `stop`; running out of text is reported as a missing `stop`.
    fn nested(&mut self, stop: char, raw_escapes: bool, missing: &str) -> Result<String, String> {
        match self.until(Some(stop), raw_escapes) {
            Ok((text, _)) => Ok(text),
            Err(_) if self.peek().is_none() => Err(format!("syntax error: missing {missing}")),
            Err(cause) => Err(cause),
        }
    }

    fn modifier(&mut self, name: &str, c: char, empty_is_unset: bool) -> Result<String, String> {
        let mark = if empty_is_unset { format!(":{c}") } else { c.to_string() };
        let word = self.nested('}', matches!(c, '#' | '%'), "'}'")?;
        let value = self.lookup(name);
        if self.lexer.keep_unset && value.is_none() {
            return Ok(format!("${{{name}{mark}{word}}}"));
        }
        let unset = value.is_none() || (empty_is_unset && value.as_deref() == Some(""));
        match c {
            '-' if unset => Ok(word),
            '+' if unset => Ok(String::new()),
            '+' => Ok(word),
            '?' if unset => {
                let state = if value.is_none() { "unset" } else { "empty" };
                let message = if word.is_empty() { format!("is not allowed to be {state}") } else { word };
                Err(format!("{name}: {message}"))
            }
            '-' | '?' => Ok(value.unwrap_or_default()),
            '#' | '%' => {
                let (greedy, pattern) = match word.strip_prefix(c) {
                    Some(rest) => (true, rest),
                    None => (false, word.as_str()),
                };
                let end = if c == '#' { Cut::Prefix } else { Cut::Suffix };
                glob::cut(&value.unwrap_or_default(), pattern, end, greedy)
            }
            _ => Err(format!("unsupported modifier ({mark}) in substitution")),
        }
    }

    fn replacement(&mut self, name: &str) -> Result<String, String> {
        let all = self.peek() == Some('/');
        if all {
            self.at += 1;
        }
        let pattern = self.nested('/', true, "'/' in ${}")?;
        let replacement = self.nested('}', true, "'}'")?;
        match self.lookup(name) {
            None if self.lexer.keep_unset => Ok(format!("${{{name}/{pattern}/{replacement}}}")),
            value => glob::replace(&value.unwrap_or_default(), &pattern, &replacement, all),
        }
    }
}

/// What is said of a text whose variables come to more than [`MAX_TEXT`].
pub(super) fn too_long() -> String {
    format!("the text is longer than {} MiB once its variables are replaced", MAX_TEXT >> 20)
}

#[cfg(test)]
#[path = "word_tests.rs"]
mod tests;
