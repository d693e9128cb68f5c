//! Source excerpts with the lines in question marked, in the layout of the field's tools.

use crate::diag::Diagnostic;
use crate::source::{SourceFile, Span};

const RULE: &str = "--------------------";

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
pub fn excerpt(source: &SourceFile, spans: &[Span]) -> String {
    let lines = source.lines();
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
    let mut out = format!("{}:{}\n{RULE}\n", source.name, first + 1);
    for (i, line) in lines.iter().enumerate().take(end).skip(begin) {
        let mark = if marked.binary_search(&i).is_ok() { ">>>" } else { "   " };
        out.push_str(format!(" {:>3} | {mark} {line}", i + 1).trim_end());
        out.push('\n');
    }
    out.push_str(RULE);
    out.push('\n');
    out
}

/// Renders a caret below the exact place, where one is known: `Dockerfile:2:5: message` and a marked line.
pub fn caret(source: &SourceFile, span: Span) -> String {
    if span.start.column == 0 {
        return String::new();
    }
    let lines = source.lines();
    let Some(line) = (span.start.line as usize).checked_sub(1).and_then(|i| lines.get(i)) else { return String::new() };
    let before: String =
        line.chars().take(span.start.column as usize - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    let width = span.end.column.saturating_sub(span.start.column).max(1) as usize;
    format!("{line}\n{before}{}\n", "^".repeat(width))
}

/// Renders a finding with excerpt, message and hint.
pub fn diagnostic(source: &SourceFile, diagnostic: &Diagnostic) -> String {
    let mut out = excerpt(source, &diagnostic.spans);
    let place = diagnostic.spans.first().map(|s| format!("{}:{}: ", source.name, s.start)).unwrap_or_default();
    let rule = if diagnostic.rule.is_empty() { String::new() } else { format!("{}: ", diagnostic.rule) };
    out.push_str(&format!("{place}{rule}{}\n", diagnostic.message));
    if let Some(span) = diagnostic.spans.first() {
        out.push_str(&caret(source, *span));
    }
    if let Some(hint) = &diagnostic.hint {
        out.push_str(&format!("hint: {hint}\n"));
    }
    out
}
