//! Source excerpts with the lines in question marked, in the layout of the field's tools.

use std::borrow::Cow;

use crate::diag::Diagnostic;
use crate::source::{SourceFile, Span};

const RULE: &str = "--------------------";
/// Most characters of a line that are shown.
pub const WIDTH: usize = 2000;
/// Most lines of one place that are shown.
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

/// Cuts a line after [`WIDTH`] characters. Thousands of findings in one line would show all of it each time.
pub fn shortened(line: &str) -> Cow<'_, str> {
    match line.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}…", &line[..end]).into(),
        None => line.into(),
    }
}

/// Widens a range of lines, counted from one: by two lines each way when it is one line, else by one; what one end lacks
/// goes to the other.
pub fn window(first: usize, last: usize, count: usize) -> (usize, usize) {
    let (mut from, mut to) = (first, last.max(first));
    let budget = if from == to { 4 } else { 2 };
    let mut spent = 0;
    while spent < budget {
        if from > 1 {
            from -= 1;
            spent += 1;
        }
        if to < count {
            to += 1;
            spent += 1;
        }
        spent += 1;
    }
    (from, to)
}

impl<'a> Drawing<'a> {
    /// Splits the file into lines.
    pub fn new(source: &'a SourceFile) -> Self {
        // As the field's tools count: after the last line's end there is one more, which is empty.
        let lines =
            String::from_utf8_lossy(&source.data).split('\n').map(|l| l.trim_end_matches('\r').to_owned()).collect();
        Self { name: &source.name, lines }
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
        let (begin, end) = window(first + 1, last + 1, lines.len());
        let begin = begin - 1;
        let mut out = format!("{}:{}\n{RULE}\n", self.name, first + 1);
        for (i, line) in lines.iter().enumerate().take(end.min(begin + HEIGHT)).skip(begin) {
            let mark = if marked.binary_search(&i).is_ok() { ">>>" } else { "   " };
            out.push_str(&format!(" {:>3} | {mark} {}\n", i + 1, shortened(line)));
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
