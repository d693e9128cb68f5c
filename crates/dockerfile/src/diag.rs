//! What is wrong with a Dockerfile, where, and what to do.

use kiln_stdx::{ErrorClass, suggest};

use crate::source::{Lines, Position, Span};

/// Errors after which the rest is not looked at.
pub(crate) const MOST: usize = 20;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// A lint warning; the build goes on.
    Warning,
    /// Nothing can be built.
    Error,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    /// The lint rule's name; empty for errors.
    pub rule: &'static str,
    /// One sentence, in the words users of other builders know.
    pub message: String,
    /// What the rule is about, for warnings.
    pub detail: String,
    /// Documentation of the rule, empty when there is none.
    pub url: String,
    /// Where; several for errors that join distant lines, none for errors about options.
    pub spans: Vec<Span>,
    /// What to do.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// Returns an error without a place.
    pub fn error(message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            rule: "",
            message: message.into(),
            detail: String::new(),
            url: String::new(),
            spans: Vec::new(),
            hint: None,
        }
    }

    /// Adds a place.
    #[must_use]
    pub fn at(mut self, span: impl Into<Span>) -> Self {
        self.spans.push(span.into());
        self
    }

    /// Sets the hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Returns the first line it is about, 0 when it is about none.
    pub fn line(&self) -> u32 {
        self.spans.first().map_or(0, |s| s.start.line)
    }
}

/// Why a Dockerfile cannot be built: at least one error, the first of them first in the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.diagnostics.first().map_or("invalid Dockerfile", |d| d.message.as_str()))]
pub struct DockerfileError {
    pub diagnostics: Vec<Diagnostic>,
    /// Lint warnings found before the error.
    pub warnings: Vec<Diagnostic>,
}

impl DockerfileError {
    /// Every such error is the user's to fix.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::UserInput
    }

    /// Sets the warnings found before.
    pub(crate) fn after(mut self, warnings: &[Diagnostic]) -> Self {
        self.warnings = warnings.to_vec();
        self
    }
}

impl From<Diagnostic> for DockerfileError {
    fn from(diagnostic: Diagnostic) -> Self {
        Self { diagnostics: vec![diagnostic], warnings: Vec::new() }
    }
}

/// An error on its way up, before it is known which instruction it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub message: String,
    pub hint: Option<String>,
    /// The word of the instruction that is wrong, to find its column.
    pub word: Option<String>,
    /// The place, where it is known already.
    pub spans: Vec<Span>,
}

pub(crate) type Outcome<T> = Result<T, Fault>;

impl Fault {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, word: None, spans: Vec::new() }
    }

    pub fn word(mut self, word: impl Into<String>) -> Self {
        self.word = Some(word.into());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds `(did you mean …?)` when a candidate is near.
    pub fn did_you_mean<'a>(mut self, name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Self {
        if let Some(best) = suggest::nearest(name, candidates).filter(|best| *best != name) {
            let lower = name.chars().any(char::is_alphabetic) && name == name.to_lowercase();
            let best = if lower { best.to_lowercase() } else { best.to_owned() };
            self.message = format!("{} (did you mean {best}?)", self.message);
        }
        self
    }

    /// Sets the place unless a nearer one is known.
    pub fn at(mut self, lines: Lines) -> Self {
        if self.spans.is_empty() {
            self.spans.push(lines.into());
        }
        self
    }

    /// Sets a place of one word.
    pub fn at_word(mut self, start: Position, length: usize) -> Self {
        let length = u32::try_from(length).unwrap_or(0);
        let end = Position { line: start.line, column: start.column.saturating_add(length) };
        self.spans.push(Span { start, end });
        self
    }
}

impl From<Fault> for Diagnostic {
    fn from(fault: Fault) -> Self {
        Diagnostic { spans: fault.spans, hint: fault.hint, ..Diagnostic::error(fault.message) }
    }
}

impl From<Fault> for DockerfileError {
    fn from(fault: Fault) -> Self {
        Diagnostic::from(fault).into()
    }
}

impl From<String> for Fault {
    fn from(message: String) -> Self {
        Self::new(message)
    }
}

impl From<&str> for Fault {
    fn from(message: &str) -> Self {
        Self::new(message)
    }
}
