//! How findings are shown: as text, as JSON, or as one diff with every rewrite that can be made as it is.

use std::fmt::Write as _;

use kiln_dockerfile::advice;
use kiln_dockerfile::source::{Lines, Span};
use kiln_dockerfile::{Diagnostic, render};
use serde_json::json;

use super::Report;
use crate::error::CliError;

/// A form of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
    /// A patch.
    Diff,
}

impl Format {
    /// Reads the value of `--format`.
    pub fn parse(text: &str) -> Result<Format, CliError> {
        match text {
            "text" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            "diff" => Ok(Format::Diff),
            other => Err(CliError::user(format!("invalid format {other}")).nearest(
                "format",
                other,
                ["text", "json", "diff"].into_iter(),
            )),
        }
    }
}

/// Returns what goes to standard output.
pub fn show(report: &Report, format: Format) -> String {
    match format {
        Format::Text => text(report),
        Format::Json => json(report),
        Format::Diff => {
            let (file, ignore) = advice::propose(&report.source, &report.context);
            let old = String::from_utf8_lossy(&report.source.data);
            let mut out = advice::unified(&report.source.name, &old, &file);
            out.push_str(&advice::unified(".dockerignore", &report.context.ignore, &ignore));
            out
        }
    }
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    let drawing = render::Drawing::new(&report.source);
    for finding in report.errors.iter().chain(&report.warnings) {
        out.push_str(&drawing.diagnostic(finding));
        if !finding.url.is_empty() {
            let _ = writeln!(out, "see {}", finding.url);
        }
        out.push('\n');
    }
    for piece in &report.advice {
        out.push_str(&drawing.excerpt(&[Span::from(piece.lines)]));
        let _ = writeln!(out, "{}:{}: {}: {}", report.source.name, piece.lines.first, piece.topic.name, piece.reason);
        out.push_str(&advice::diff(&report.source, &report.context, &piece.edits));
        if !piece.ready && !piece.edits.is_empty() {
            out.push_str("(a sketch: look it over before it is applied)\n");
        }
        out.push('\n');
    }
    let count = |n: usize, one: &str, many: &str| if n == 1 { format!("1 {one}") } else { format!("{n} {many}") };
    let _ = writeln!(
        out,
        "{}, {}, {}",
        count(report.errors.len(), "error", "errors"),
        count(report.warnings.len(), "warning", "warnings"),
        count(report.advice.len(), "piece of advice", "pieces of advice"),
    );
    if report.without_bases {
        let _ = writeln!(out, "note: base images were not looked at; `kiln build --check` does");
    }
    out
}

fn json(report: &Report) -> String {
    let lines = |l: Lines| json!({"first": l.first, "last": l.last});
    let diagnostic = |kind: &str, d: &Diagnostic| {
        let spans: Vec<_> = d
            .spans
            .iter()
            .map(|s| {
                json!({
                    "start": {"line": s.start.line, "column": s.start.column},
                    "end": {"line": s.end.line, "column": s.end.column},
                })
            })
            .collect();
        json!({"kind": kind, "name": d.rule, "message": d.message, "url": d.url, "hint": d.hint, "spans": spans})
    };
    let mut findings: Vec<_> = report.errors.iter().map(|d| diagnostic("error", d)).collect();
    findings.extend(report.warnings.iter().map(|d| diagnostic("warning", d)));
    findings.extend(report.advice.iter().map(|a| {
        json!({
            "kind": "advice", "name": a.topic.name, "message": a.reason, "lines": lines(a.lines), "ready": a.ready,
            "diff": advice::diff(&report.source, &report.context, &a.edits),
        })
    }));
    let all = json!({"file": report.source.name, "findings": findings, "basesKnown": !report.without_bases});
    format!("{all:#}\n")
}
