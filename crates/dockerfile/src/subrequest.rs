//! Answers to questions about a Dockerfile: its targets, what a target takes, what the linter finds (features 1.11).
//!
//! An answer is metadata: `result.json`, `result.txt`, `version`, for lint also `result.statuscode`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64::Engine as _;
use serde::Serialize;

use crate::ast::Dockerfile;
use crate::diag::{Diagnostic, DockerfileError, Severity};
use crate::lower::Lowered;
use crate::render;
use crate::source::{Lines, SourceFile, Span};

/// Metadata of a result.
pub type Answer = BTreeMap<String, Vec<u8>>;

pub const DESCRIBE: &str = "frontend.subrequests.describe";
pub const OUTLINE: &str = "frontend.outline";
pub const TARGETS: &str = "frontend.targets";
pub const LINT: &str = "frontend.lint";

const VERSION: &str = "1.0.0";

#[derive(Serialize)]
struct Location {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ranges: Vec<Range>,
}

#[derive(Serialize)]
struct Range {
    start: Place,
    end: Place,
}

#[derive(Serialize)]
struct Place {
    #[serde(skip_serializing_if = "is_zero")]
    line: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl From<Lines> for Location {
    fn from(lines: Lines) -> Self {
        let one = |line| Range { start: Place { line }, end: Place { line } };
        Self { ranges: (lines.first..=lines.last).map(one).collect() }
    }
}

impl From<&[Span]> for Location {
    fn from(spans: &[Span]) -> Self {
        let lines = spans.iter().flat_map(|s| Self::from(Lines::new(s.start.line, s.end.line)).ranges);
        Self { ranges: lines.collect() }
    }
}

fn encode(data: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(data)
}

fn answer(json: &impl Serialize, text: String) -> Answer {
    let json = kiln_oci::to_indented_json("subrequest", json).unwrap_or_default();
    BTreeMap::from([
        ("result.json".to_owned(), json),
        ("result.txt".to_owned(), text.into_bytes()),
        ("version".to_owned(), VERSION.into()),
    ])
}

/// Lays out rows in columns, `gap` blanks between them; the last column is not padded.
fn table(rows: &[Vec<&str>], gap: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|t| t.chars().count()).max().unwrap_or(0) + gap;
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        for (c, text) in row.iter().enumerate() {
            match c + 1 == row.len() {
                true => out.push_str(text),
                false => {
                    let _ = write!(out, "{text:<0$}", widths[c]);
                }
            }
        }
        out.push('\n');
    }
    out
}

/// Lists the questions. `lint` is answered too but has never been listed.
pub fn describe() -> Answer {
    #[derive(Serialize)]
    struct Request {
        name: &'static str,
        version: &'static str,
        #[serde(rename = "type")]
        kind: &'static str,
        description: &'static str,
        opts: Vec<Named>,
        inputs: Option<Vec<Named>>,
        metadata: Vec<Named>,
        refs: Option<Vec<Named>>,
    }
    #[derive(Serialize)]
    struct Named {
        name: &'static str,
        description: &'static str,
    }
    let request = |name, description, opts| Request {
        name,
        version: VERSION,
        kind: "rpc",
        description,
        opts,
        inputs: None,
        metadata: ["result.json", "result.txt"].map(|name| Named { name, description: "" }).into(),
        refs: None,
    };
    let target = vec![Named { name: "target", description: "Target build stage" }];
    let all = [
        request(OUTLINE, "List all parameters current build target supports", target),
        request(TARGETS, "List all targets current build supports", Vec::new()),
        request(DESCRIBE, "List available subrequest types", Vec::new()),
    ];
    let mut rows = vec![vec!["NAME", "VERSION", "DESCRIPTION"]];
    rows.extend(all.iter().map(|r| vec![r.name.trim_start_matches("frontend."), r.version, r.description]));
    let text = table(&rows, 1);
    answer(&all, text)
}

/// Lists the stages of a file.
pub fn targets(file: &Dockerfile) -> Answer {
    #[derive(Serialize)]
    struct List<'a> {
        targets: Vec<Target<'a>>,
        sources: [String; 1],
    }
    #[derive(Serialize)]
    struct Target<'a> {
        #[serde(skip_serializing_if = "str::is_empty")]
        name: &'a str,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        default: bool,
        #[serde(skip_serializing_if = "str::is_empty")]
        description: &'a str,
        base: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        platform: &'a str,
        location: Location,
    }
    let last = file.stages.len().saturating_sub(1);
    let targets: Vec<Target<'_>> = file
        .stages
        .iter()
        .enumerate()
        .map(|(i, stage)| Target {
            name: stage.name.as_deref().unwrap_or_default(),
            default: i == last,
            description: stage.description().unwrap_or_default(),
            base: &stage.base,
            platform: stage.platform.as_deref().unwrap_or_default(),
            location: stage.lines.into(),
        })
        .collect();
    let shown: Vec<String> = targets
        .iter()
        .map(|t| match (t.name, t.default) {
            ("", true) => "(default)".to_owned(),
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_owned(),
        })
        .collect();
    let mut rows = vec![vec!["TARGET", "DESCRIPTION"]];
    rows.extend(shown.iter().zip(&targets).map(|(name, t)| vec![name.as_str(), t.description]));
    let text = table(&rows, 1);
    answer(&List { targets, sources: [encode(&file.source.data)] }, text)
}

#[derive(Serialize)]
struct Outline<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<OutlineArg<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<FromSession<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssh: Vec<FromSession<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cache: Vec<OutlineCache<'a>>,
    sources: [String; 1],
}

#[derive(Serialize)]
struct OutlineArg<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    value: &'a str,
    location: Location,
}

/// A secret or an agent socket.
#[derive(Serialize)]
struct FromSession<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    required: bool,
    location: Location,
}

#[derive(Serialize)]
struct OutlineCache<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    location: Location,
}

fn from_session(map: &BTreeMap<String, (Lines, bool)>) -> Vec<FromSession<'_>> {
    let mut list: Vec<_> = map.iter().collect();
    list.sort_by_key(|(_, (lines, _))| lines.first);
    list.into_iter()
        .map(|(name, (lines, required))| FromSession { name, required: *required, location: (*lines).into() })
        .collect()
}

/// Lists what the target takes: arguments, secrets, agent sockets, cache mounts.
pub fn outline(file: &Dockerfile, target: Option<&str>, lowered: &Lowered) -> Answer {
    let named = |t: &str| file.stages.iter().rfind(|s| s.name.as_deref().is_some_and(|n| n.eq_ignore_ascii_case(t)));
    let stage = target.and_then(named).or_else(|| file.stages.last());
    let found = &lowered.outline;
    let args = found.args.iter().map(|a| OutlineArg {
        name: &a.name,
        description: a.description.as_deref().unwrap_or_default(),
        value: a.value.as_deref().unwrap_or_default(),
        location: a.lines.into(),
    });
    let outline = Outline {
        name: stage.and_then(|s| s.name.as_deref()).unwrap_or_default(),
        description: stage.and_then(|s| s.description()).unwrap_or_default(),
        args: args.collect(),
        secrets: from_session(&found.secrets),
        ssh: from_session(&found.ssh),
        cache: found.caches.iter().map(|(id, lines)| OutlineCache { id, location: (*lines).into() }).collect(),
        sources: [encode(&file.source.data)],
    };
    let text = outline.text();
    answer(&outline, text)
}

impl Outline<'_> {
    fn text(&self) -> String {
        let mut text = String::new();
        if !self.name.is_empty() || !self.description.is_empty() {
            let name = if self.name.is_empty() { "(default)" } else { self.name };
            let mut rows = vec![vec!["TARGET:", name]];
            if !self.description.is_empty() {
                rows.push(vec!["DESCRIPTION:", self.description]);
            }
            text.push_str(&table(&rows, 1));
            text.push('\n');
        }
        if !self.args.is_empty() {
            let mut rows = vec![vec!["BUILD ARG", "VALUE", "DESCRIPTION"]];
            rows.extend(self.args.iter().map(|a| vec![a.name, a.value, a.description]));
            text.push_str(&table(&rows, 3));
            text.push('\n');
        }
        for (title, list) in [("SECRET", &self.secrets), ("SSH", &self.ssh)] {
            if !list.is_empty() {
                let mut rows = vec![vec![title, "REQUIRED"]];
                rows.extend(list.iter().map(|s| vec![s.name, if s.required { "true" } else { "" }]));
                text.push_str(&table(&rows, 3));
                text.push('\n');
            }
        }
        text
    }
}

/// Reports findings, and the error when there is one. The build to judge has [`crate::BuildOptions::all_stages`] set
/// unless a target is named.
pub fn lint(source: &SourceFile, result: Result<&Lowered, &DockerfileError>) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Results<'a> {
        warnings: Option<Vec<Warning<'a>>>,
        sources: [Source<'a>; 1],
        #[serde(skip_serializing_if = "Option::is_none")]
        build_error: Option<BuildError<'a>>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Warning<'a> {
        rule_name: &'a str,
        description: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        url: &'a str,
        detail: &'a str,
        location: Location,
    }
    #[derive(Serialize)]
    struct Source<'a> {
        filename: &'a str,
        data: String,
        language: &'a str,
    }
    #[derive(Serialize)]
    struct BuildError<'a> {
        message: &'a str,
        location: Location,
    }
    let (warnings, error) = match result {
        Ok(lowered) => (&lowered.warnings, None),
        Err(error) => (&error.warnings, error.diagnostics.iter().find(|d| d.severity == Severity::Error)),
    };
    let mut sorted: Vec<&Diagnostic> = warnings.iter().collect();
    sorted.sort_by_key(|w| w.line());
    let mut text = String::new();
    let drawing = render::Drawing::new(source);
    for w in &sorted {
        let url = if w.url.is_empty() { String::new() } else { format!(" - {}", w.url) };
        let _ = write!(text, "\nWARNING: {}{url}\n{}\n{}", w.rule, w.message, drawing.excerpt(&w.spans));
    }
    let list: Vec<Warning<'_>> = warnings
        .iter()
        .map(|w| Warning {
            rule_name: w.rule,
            description: &w.detail,
            url: &w.url,
            detail: &w.message,
            location: w.spans.as_slice().into(),
        })
        .collect();
    let failed = error.is_some() || !list.is_empty();
    let results = Results {
        warnings: Some(list).filter(|l| !l.is_empty()),
        sources: [Source { filename: &source.name, data: encode(&source.data), language: "Dockerfile" }],
        build_error: error.map(|e| BuildError { message: &e.message, location: e.spans.as_slice().into() }),
    };
    let mut out = answer(&results, text);
    out.insert("result.statuscode".to_owned(), if failed { b"1".to_vec() } else { b"0".to_vec() });
    out
}

#[cfg(test)]
#[path = "subrequest_tests.rs"]
mod tests;
