//! Parser directives: `# syntax=`, `# escape=`, `# check=` at the top of a file.

use crate::diag::{Fault, Outcome};
use crate::source::Lines;

/// The directives of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Directives {
    pub syntax: Option<Directive>,
    pub escape: Option<Directive>,
    pub check: Option<Directive>,
}

/// One directive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    pub value: String,
    pub lines: Lines,
}

/// A frontend that a file asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Syntax {
    /// The frontend's image.
    pub image: String,
    /// The whole value: the image and its arguments.
    pub command_line: String,
    pub lines: Lines,
}

/// Reads directives line by line until the first line that is none.
#[derive(Debug, Default)]
pub(crate) struct DirectiveReader {
    pub found: Directives,
    done: bool,
}

impl DirectiveReader {
    /// Reads one line (from 1), without blanks before it; true when it is a directive.
    pub fn line(&mut self, text: &str, number: u32) -> Outcome<bool> {
        if self.done {
            return Ok(false);
        }
        let Some((name, value)) = text.strip_prefix('#').and_then(split) else {
            self.done = true;
            return Ok(false);
        };
        let slot = match name.as_str() {
            "syntax" => &mut self.found.syntax,
            "escape" => &mut self.found.escape,
            "check" => &mut self.found.check,
            _ => {
                self.done = true;
                return Ok(false);
            }
        };
        let lines = Lines::new(number, number);
        if slot.is_some() {
            return Err(Fault::new(format!("only one {name} parser directive can be used")).at(lines));
        }
        if name == "escape" && !matches!(value, "\\" | "`") {
            let message = format!("invalid escape token '{value}' does not match ` or \\");
            return Err(Fault::new(message).at(lines));
        }
        *slot = Some(Directive { value: value.to_owned(), lines });
        Ok(true)
    }
}

/// Splits `name = value`; the name is returned in lower case.
fn split(comment: &str) -> Option<(String, &str)> {
    let (name, value) = comment.trim_start().split_once('=')?;
    let name = name.trim_end();
    let valid = name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.bytes().all(|b| b.is_ascii_alphanumeric());
    let value = value.trim();
    (valid && !value.is_empty()).then(|| (name.to_ascii_lowercase(), value))
}

/// Finds the frontend that a file asks for.
///
/// Besides `# syntax=`, a first line `#!…` is skipped, and `// syntax=` and a JSON object with a `syntax` key count.
pub fn detect_syntax(data: &[u8]) -> Option<Syntax> {
    let data = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    let text = String::from_utf8_lossy(data);
    let (text, skipped) = match text.starts_with("#!") {
        true => (text.split_once('\n').map_or("", |(_, rest)| rest), 1),
        false => (text.as_ref(), 0),
    };
    for marker in ["#", "//"] {
        for (i, line) in text.lines().enumerate() {
            let Some((name, value)) = line.strip_prefix(marker).and_then(split) else { break };
            if !matches!(name.as_str(), "syntax" | "escape" | "check") {
                break;
            }
            if name == "syntax" {
                let number = skipped + u32::try_from(i).unwrap_or(u32::MAX - 1) + 1;
                return Some(syntax(value, Lines::new(number, number)));
            }
        }
    }
    let json: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
    let value = json.get("syntax")?.as_str()?;
    Some(Syntax {
        image: value.to_owned(),
        command_line: value.to_owned(),
        lines: Lines::new(skipped + 1, skipped + 1),
    })
}

fn syntax(value: &str, lines: Lines) -> Syntax {
    let image = value.split(' ').next().unwrap_or(value);
    Syntax { image: image.to_owned(), command_line: value.to_owned(), lines }
}

/// Tells whether an image reference is the Dockerfile frontend at a level that this crate implements.
pub fn is_builtin(image: &str) -> bool {
    let name = image.trim_start_matches("docker.io/");
    let Some((name, tag)) = name.split_once(':').or(Some((name, "1"))) else { return false };
    let level = |tag: &str| tag == "1" || tag.strip_prefix("1.").is_some_and(|minor| minor.parse::<u32>().is_ok());
    name == "docker/dockerfile" && (tag == "latest" || level(tag)) || name == "dockerfile.v0"
}

/// Finds a directive in a comment above an instruction, where only `check` has a meaning.
pub(crate) fn check_in_comment(comment: &str) -> Option<&str> {
    let (name, value) = split(comment)?;
    (name == "check").then(|| value.split(' ').next().unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frontends_are_found() {
        for (text, image, line) in [
            ("# syntax=docker/dockerfile:1\nFROM x", "docker/dockerfile:1", 1),
            ("#escape=`\n#  SyNtAx =  a/b:c  arg \n", "a/b:c", 2),
            ("#!/usr/bin/env x\n//syntax=foo\n", "foo", 2),
            ("\u{feff}{\"syntax\": \"j\"}", "j", 1),
        ] {
            let found = detect_syntax(text.as_bytes()).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((found.image.as_str(), found.lines.first), (image, line), "{text}");
        }
        for text in ["FROM x\n# syntax=a", "# note\n# syntax=a", "# foo=bar\n# syntax=a", "# syntax=", ""] {
            assert_eq!(detect_syntax(text.as_bytes()), None, "{text}");
        }
        assert_eq!(detect_syntax(b"# syntax=a b=c\n").unwrap().command_line, "a b=c");
    }

    #[test]
    fn the_official_frontend_is_built_in() {
        for (source, builtin) in [
            ("docker/dockerfile:1", true),
            ("docker.io/docker/dockerfile:1.7", true),
            ("docker/dockerfile", true),
            ("docker/dockerfile:1-labs", false),
            ("docker/dockerfile:1@sha256:00", false),
            ("me/frontend:1", false),
        ] {
            assert_eq!(is_builtin(source), builtin, "{source}");
        }
    }

    #[test]
    fn reading_stops_at_the_first_other_line() {
        let mut reader = DirectiveReader::default();
        assert_eq!(reader.line("# check=skip=all", 1), Ok(true));
        assert_eq!(reader.line("# escape=`", 2), Ok(true));
        assert!(reader.line("# escape=`", 3).is_err());
        let mut reader = DirectiveReader::default();
        assert!(reader.line("# escape=x", 1).is_err());
        let mut reader = DirectiveReader::default();
        assert_eq!(reader.line("# just words", 1), Ok(false));
        assert_eq!(reader.line("# escape=`", 2), Ok(false));
    }
}
