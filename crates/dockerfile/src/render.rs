//! Source excerpts with the lines in question marked, in the layout of the field's tools.

use crate::diag::Diagnostic;
use crate::source::{SourceFile, Span};

const RULE: &str = "--------------------";
/// Most characters of a line that are shown, and most lines of one place.
const WIDTH: usize = 2000;
const HEIGHT: usize = 500;

/// A file whose lines are known, to draw many places in it.
pub struct Drawing<'a> {
    name: &'a str,
    lines: Vec<String>,
}

/// See [`Drawing::excerpt`].
pub fn excerpt(source: &SourceFile, spans: &[Span]) -> String {
    Drawing::new(source).excerpt(spans)
}

/// See [`Drawing::diagnostic`].
pub fn diagnostic(source: &SourceFile, diagnostic: &Diagnostic) -> String {
    Drawing::new(source).diagnostic(diagnostic)
}

fn shortened(line: &str) -> String {
    match line.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

impl<'a> Drawing<'a> {
    /// Splits the file into lines.
    pub fn new(source: &'a SourceFile) -> Self {
        Self { name: &source.name, lines: source.lines() }
    }

    /// Renders the lines around `spans`:
    ///
    /// ```text
    /// Dockerfile:2
    /// --------------------
    ///    1 |     FROM alpine
    ///    2 | >>> RUN exit 1
    ///    3 |
    /// --------------------
    /// ```
    ///
    /// Empty when no span is inside the file.
    pub fn excerpt(&self, spans: &[Span]) -> String {
        let lines = &self.lines;
        let index = |n: u32| (n as usize).checked_sub(1);
        let mut marked: Vec<usize> = Vec::new();
        for span in spans {
            let (Some(first), Some(last)) = (index(span.start.line), index(span.end.line)) else { continue };
            marked.extend(first..(last + 1).min(lines.len()));
        }
        marked.sort_unstable();
        marked.dedup();
        let (Some(&first), Some(&last)) = (marked.first(), marked.last()) else { return String::new() };
        let around = if first == last { 2 } else { 1 };
        let begin = first.saturating_sub(around);
        let end = (last + 1 + around).min(lines.len());
        let mut out = format!("{}:{}\n{RULE}\n", self.name, first + 1);
        for (i, line) in lines.iter().enumerate().take(end.min(begin + HEIGHT)).skip(begin) {
            let mark = if marked.binary_search(&i).is_ok() { ">>>" } else { "   " };
            out.push_str(format!(" {:>3} | {mark} {}", i + 1, shortened(line)).trim_end());
            out.push('\n');
        }
        if end > begin + HEIGHT {
            out.push_str("     | …\n");
        }
        out.push_str(RULE);
        out.push('\n');
        out
    }

    /// Renders a caret below the exact place, where one is known: `Dockerfile:2:5: message` and a marked line.
    fn caret(&self, span: Span) -> String {
        if span.start.column == 0 {
            return String::new();
        }
        let Some(line) = (span.start.line as usize).checked_sub(1).and_then(|i| self.lines.get(i)) else {
            return String::new();
        };
        let column = span.start.column as usize;
        if column > WIDTH {
            return String::new();
        }
        let before: String = line.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        let width = (span.end.column.saturating_sub(span.start.column).max(1) as usize).min(WIDTH + 1 - column);
        format!("{}\n{before}{}\n", shortened(line), "^".repeat(width))
    }

    /// Renders a finding with excerpt, message and hint.
    pub fn diagnostic(&self, diagnostic: &Diagnostic) -> String {
        let mut out = self.excerpt(&diagnostic.spans);
        let place = diagnostic.spans.first().map(|s| format!("{}:{}: ", self.name, s.start)).unwrap_or_default();
        let rule = if diagnostic.rule.is_empty() { String::new() } else { format!("{}: ", diagnostic.rule) };
        out.push_str(&format!("{place}{rule}{}\n", diagnostic.message));
        if let Some(span) = diagnostic.spans.first() {
            out.push_str(&self.caret(*span));
        }
        if let Some(hint) = &diagnostic.hint {
            out.push_str(&format!("hint: {hint}\n"));
        }
        out
    }
}
