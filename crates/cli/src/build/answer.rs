//! Shows the answer to a question about a Dockerfile, in the words and layout of `docker buildx build --call`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::call::Call;
use crate::error::CliError;
use crate::progress::excerpt::SourceLines;

/// Metadata of an answer.
pub type Answer = BTreeMap<String, Vec<u8>>;

/// What goes to standard output, the error if there is one, and the exit code.
#[derive(Debug)]
pub struct Shown {
    pub text: String,
    pub error: Option<CliError>,
    pub code: u8,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Findings {
    warnings: Option<Vec<Finding>>,
    sources: Vec<Source>,
    build_error: Option<Wrong>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Finding {
    rule_name: String,
    url: String,
    detail: String,
    location: Location,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Wrong {
    message: String,
    location: Location,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Location {
    source_index: i64,
    ranges: Vec<Range>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Range {
    start: Place,
    end: Place,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Place {
    line: i32,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Source {
    filename: String,
    data: String,
}

/// Lays out an answer. `dockerfile` is the name the user knows the Dockerfile by.
pub fn show(call: &Call, answer: &Answer, dockerfile: &str) -> Result<Shown, CliError> {
    let value = |key: &str| answer.get(key).map(|v| String::from_utf8_lossy(v).into_owned());
    let status = value("result.statuscode").and_then(|v| v.parse::<u8>().ok()).unwrap_or(0);
    let mut shown = Shown { text: String::new(), error: None, code: if call.ignore_status { 0 } else { status } };
    if call.name == "lint" {
        let json = value("result.json").unwrap_or_default();
        let found: Findings = serde_json::from_str(&json)
            .map_err(|e| CliError::environment(format!("the engine's answer cannot be read: {e}")))?;
        let sources = found.sources(dockerfile);
        shown.text = if call.json { format!("{json}\n") } else { found.text(&sources) };
        shown.error = found.error(&sources);
        return Ok(shown);
    }
    shown.text = match (call.json, value("result.json"), value("result.txt")) {
        (true, Some(json), _) => format!("{json}\n"),
        (_, _, Some(text)) => text,
        (_, Some(json), None) => format!("{json}\n"),
        (_, None, None) => {
            return Err(CliError::user(format!("the frontend does not answer to --call={}", call.name)));
        }
    };
    Ok(shown)
}

impl Findings {
    fn text(&self, sources: &[SourceLines]) -> String {
        let mut warnings: Vec<&Finding> = self.warnings.iter().flatten().collect();
        warnings.sort_by_key(|w| w.location.ranges.first().map_or(0, |r| r.start.line));
        let mut out = match (warnings.len(), &self.build_error) {
            (0, None) => return "Check complete, no warnings found.\n".to_owned(),
            (0, Some(_)) => return String::new(),
            (1, _) => "Check complete, 1 warning has been found!\n".to_owned(),
            (n, _) => format!("Check complete, {n} warnings have been found!\n"),
        };
        for warning in warnings {
            let url = if warning.url.is_empty() { String::new() } else { format!(" - {}", warning.url) };
            let _ = write!(out, "\nWARNING: {}{url}\n{}\n", warning.rule_name, warning.detail);
            out.push_str(&warning.location.excerpt(sources));
        }
        if self.build_error.is_some() {
            out.push('\n');
        }
        out
    }

    fn error(&self, sources: &[SourceLines]) -> Option<CliError> {
        let wrong = self.build_error.as_ref()?;
        Some(CliError::user(format!("{}\n{}", wrong.message, wrong.location.excerpt(sources)).trim_end()))
    }

    /// Returns the files that locations are in. `dockerfile` is the name the user knows them by, if there is one.
    fn sources(&self, dockerfile: &str) -> Vec<SourceLines> {
        let lines = |source: &Source| {
            let name = if dockerfile.is_empty() { &source.filename } else { dockerfile };
            SourceLines::new(name, &BASE64_STANDARD.decode(&source.data).unwrap_or_default())
        };
        self.sources.iter().map(lines).collect()
    }
}

impl Location {
    fn excerpt(&self, sources: &[SourceLines]) -> String {
        let source = usize::try_from(self.source_index).ok().and_then(|i| sources.get(i));
        let ranges: Vec<_> = self.ranges.iter().map(|r| kiln_llb::builder::range(r.start.line, r.end.line)).collect();
        source.and_then(|source| source.render(&ranges)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lint(text: &str) -> Answer {
        let source = kiln_dockerfile::source::SourceFile { name: "Dockerfile".into(), data: text.as_bytes().to_vec() };
        let file = match kiln_dockerfile::parse("Dockerfile", text.as_bytes()) {
            Ok(file) => file,
            Err(error) => return kiln_dockerfile::subrequest::lint(&source, Err(&error)),
        };
        let (options, resolved) = Default::default();
        let plan = kiln_dockerfile::plan(&file, &options, &resolved).expect("a plan");
        let lowered = kiln_dockerfile::lower(&file, &plan, &options, &resolved).expect("a graph");
        kiln_dockerfile::subrequest::lint(&source, Ok(&lowered))
    }

    fn call(text: &str) -> Call {
        Call::parse(text).expect("a call").expect("a question")
    }

    #[test]
    fn findings_are_counted_and_drawn() {
        let shown =
            show(&call("check"), &lint("FROM scratch\nMAINTAINER me\nENV a b\n"), "x/Dockerfile").expect("shown");
        let want = "Check complete, 2 warnings have been found!\n\nWARNING: MaintainerDeprecated - https://docs.docker.com/go/dockerfile/rule/maintainer-deprecated/\n";
        assert!(shown.text.starts_with(want), "{}", shown.text);
        assert!(shown.text.contains("x/Dockerfile:3\n--------------------\n"), "{}", shown.text);
        assert_eq!((shown.code, shown.error.is_none()), (1, true));
        assert_eq!(
            show(&call("check,ignorestatus=true"), &lint("FROM scratch\nENV a b\n"), "").expect("shown").code,
            0
        );
        let clean = show(&call("check"), &lint("FROM scratch\n"), "").expect("shown");
        assert_eq!((clean.text.as_str(), clean.code), ("Check complete, no warnings found.\n", 0));
    }

    #[test]
    fn an_error_is_told_with_its_lines() {
        let shown = show(&call("check"), &lint("FROM scratch\nCOPI a b\n"), "Dockerfile").expect("shown");
        let error = shown.error.expect("an error");
        let want = "dockerfile parse error on line 2: unknown instruction: COPI (did you mean COPY?)\nDockerfile:2\n";
        assert!(error.message().starts_with(want), "{}", error.message());
        assert_eq!(shown.text, "");
    }
}
