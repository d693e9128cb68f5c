//! Physical lines into instructions: comments, continuations, directives, heredoc bodies.

use kiln_stdx::limits;

use super::heredoc;
use super::json_array::{self, JsonArray};
use super::split::{self, Parts};
use crate::ast::Heredoc;
use crate::diag::{Fault, Outcome};
use crate::directive::{DirectiveReader, Directives};
use crate::source::{Lines, Position};

/// One instruction's text.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Logical {
    /// Continuations joined, without heredoc bodies.
    pub text: String,
    pub parts: Parts,
    pub lines: Lines,
    pub comments: Vec<String>,
    /// From a comment `# kiln: max-age=...` above, in seconds.
    pub max_age: Option<u64>,
    pub heredocs: Vec<Heredoc>,
    /// Where pieces of `text` come from: offset in it, place in the file.
    pieces: Vec<(usize, Position)>,
}

impl Logical {
    /// Returns the place of a word in the file, if it is there as written.
    pub fn find(&self, word: &str) -> Option<Position> {
        if word.is_empty() {
            return None;
        }
        let at = self.text.find(word)?;
        let (start, place) = self.pieces.iter().rev().find(|(start, _)| *start <= at)?;
        let skipped = self.text.get(*start..at)?.chars().count();
        Some(Position { line: place.line, column: place.column.saturating_add(u32::try_from(skipped).ok()?) })
    }
}

/// A file as a list of instructions.
#[derive(Debug, Default)]
pub(crate) struct Lexed {
    pub directives: Directives,
    pub escape: char,
    pub instructions: Vec<Logical>,
    /// Last lines of instructions that hold an empty continuation line.
    pub empty_continuations: Vec<u32>,
}

/// Other instructions make what they make from what is there now, so age is nothing to them.
fn only_for_run(logical: &Logical) -> Outcome<()> {
    let keyword = &logical.parts.keyword;
    if logical.max_age.is_none() || keyword.eq_ignore_ascii_case("run") {
        return Ok(());
    }
    Err(Fault::new(format!("`# kiln: max-age` stands before {}, and is for RUN only", keyword.to_uppercase()))
        .hint("put the comment directly before a RUN, or take it away")
        .at(logical.lines))
}

/// Reads a whole file.
pub(crate) fn lex(data: &[u8]) -> Outcome<Lexed> {
    let data = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    let text = String::from_utf8_lossy(data);
    Reader { lines: text.split_inclusive('\n').collect(), at: 0, directives: DirectiveReader::default(), escape: '\\' }
        .read()
}

struct Reader<'a> {
    lines: Vec<&'a str>,
    at: usize,
    directives: DirectiveReader,
    escape: char,
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

impl<'a> Reader<'a> {
    fn read(mut self) -> Outcome<Lexed> {
        let mut out = Lexed::default();
        let mut comments: Vec<String> = Vec::new();
        let mut max_age = None;
        while let Some(line) = self.next_line()? {
            let line = without_end(line).trim_start();
            if let Some(comment) = line.strip_prefix('#') {
                if self.directive(line)? {
                    continue;
                }
                if let Some(setting) = comment.trim().strip_prefix("kiln:") {
                    max_age = Some(self.max_age(line, setting)?);
                }
                match comment.trim() {
                    "" => comments.clear(),
                    comment => comments.push(comment.to_owned()),
                }
                continue;
            }
            self.directive(line)?;
            if line.is_empty() {
                continue;
            }
            let mut logical = self.instruction(line, std::mem::take(&mut comments), &mut out)?;
            logical.max_age = max_age.take();
            only_for_run(&logical)?;
            out.instructions.push(logical);
        }
        if out.instructions.is_empty() {
            return Err(Fault::new("file with no instructions").at(Lines::new(number(self.at), 0)));
        }
        out.escape = self.escape;
        out.directives = self.directives.found;
        Ok(out)
    }

    fn next_line(&mut self) -> Outcome<Option<&'a str>> {
        let Some(&line) = self.lines.get(self.at) else { return Ok(None) };
        self.at += 1;
        if line.len() > limits::DOCKERFILE_LINE {
            let message = format!("dockerfile line greater than max allowed size of {}", limits::DOCKERFILE_LINE);
            return Err(Fault::new(message)
                .at(Lines::new(number(self.at), 0))
                .hint("break the line, or move the text into a heredoc or a file"));
        }
        Ok(Some(line))
    }

    fn directive(&mut self, line: &str) -> Outcome<bool> {
        let found = self.directives.line(line, number(self.at))?;
        if let Some(escape) = self.directives.found.escape.as_ref().and_then(|d| d.value.chars().next()) {
            self.escape = escape;
        }
        Ok(found)
    }

    /// Reads what a comment says to kiln: `max-age=AGE`, in seconds.
    fn max_age(&self, line: &str, setting: &str) -> Outcome<u64> {
        let setting = setting.trim();
        let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
        let (name, value) = (name.trim(), value.trim());
        let whole = self.lines.get(self.at.saturating_sub(1)).copied().unwrap_or_default();
        let place = |word: &str| {
            let before = whole.find(word).filter(|_| !word.is_empty()).and_then(|at| whole.get(..at));
            let column = before.map_or(0, |text| text.chars().count());
            (Position { line: number(self.at), column: number(column) + 1 }, word.chars().count())
        };
        if name != "max-age" {
            let word = if name.is_empty() { line.trim_end() } else { name };
            let (start, length) = place(word);
            return Err(Fault::new(format!("unknown setting in a comment for kiln: {name:?}"))
                .hint("write `# kiln: max-age=7d` directly before a RUN")
                .at_word(start, length));
        }
        kiln_stdx::age::parse(value).ok_or_else(|| {
            let (start, length) = place(if value.is_empty() { name } else { value });
            Fault::new(format!("invalid max-age {value:?}")).hint(kiln_stdx::age::EXPECTED).at_word(start, length)
        })
    }

    /// Reads an instruction whose first line, without blanks before it, is `line`.
    fn instruction(&mut self, line: &str, comments: Vec<String>, out: &mut Lexed) -> Outcome<Logical> {
        let first = number(self.at);
        let column = |line: &str, whole: &str| whole.len().saturating_sub(line.len());
        let whole = self.lines.get(self.at.saturating_sub(1)).map_or("", |l| without_end(l));
        let indent = whole.get(..column(line, whole)).map_or(0, |s| s.chars().count());
        let mut logical = Logical {
            pieces: vec![(0, Position { line: first, column: number(indent) + 1 })],
            comments,
            ..Logical::default()
        };
        let (text, mut continues) = self.continuation(line);
        logical.text.push_str(text);
        let mut empty_line = false;
        while continues {
            let Some(line) = self.next_line()? else { break };
            let line = without_end(line);
            let trimmed = line.trim_start();
            if trimmed.starts_with('#') {
                continue;
            }
            if trimmed.is_empty() {
                empty_line = true;
                continue;
            }
            let text;
            (text, continues) = self.continuation(line);
            logical.pieces.push((logical.text.len(), Position { line: number(self.at), column: 1 }));
            logical.text.push_str(text);
        }
        if empty_line {
            out.empty_continuations.push(number(self.at));
        }
        logical.lines = Lines::new(first, number(self.at));
        logical.parts = split::split_instruction(&logical.text, self.escape);
        if logical.text.contains("<<") && takes_heredocs(&logical.parts, self.escape) {
            self.heredocs(&mut logical)?;
        }
        Ok(logical)
    }

    /// Removes an escape character at the end of a line; tells whether there was one.
    ///
    /// An escape character before it protects it.
    fn continuation<'t>(&self, line: &'t str) -> (&'t str, bool) {
        let trimmed = line.trim_end_matches([' ', '\t']);
        match trimmed.strip_suffix(self.escape) {
            Some(rest) if !rest.ends_with(self.escape) => (rest, true),
            _ => (line, false),
        }
    }

    fn heredocs(&mut self, logical: &mut Logical) -> Outcome<()> {
        for mut doc in heredoc::marks(&logical.text).map_err(|e| Fault::new(e).at(logical.lines))? {
            let mut closed = false;
            while let Some(line) = self.next_line()? {
                let end = line.trim_end_matches(['\r', '\n']);
                let end = if doc.strip_tabs { end.trim_start_matches('\t') } else { end };
                if end == doc.name {
                    closed = true;
                    break;
                }
                doc.content.push_str(line);
            }
            if !closed {
                return Err(Fault::new("unterminated heredoc")
                    .at(Lines::new(logical.lines.first, number(self.at)))
                    .hint(format!("end the text with a line that holds nothing but {}", doc.name)));
            }
            logical.heredocs.push(doc);
        }
        logical.lines = Lines::new(logical.lines.first, number(self.at));
        Ok(())
    }
}

fn without_end(line: &str) -> &str {
    line.trim_end_matches(['\r', '\n'])
}

/// Tells whether the instruction may have heredocs: `ADD`, `COPY` and `RUN` not in exec form, also behind `ONBUILD`.
fn takes_heredocs(parts: &Parts, escape: char) -> bool {
    let inner;
    let parts = if parts.keyword.eq_ignore_ascii_case("onbuild") {
        inner = split::split_instruction(&parts.rest, escape);
        &inner
    } else {
        parts
    };
    let known = ["add", "copy", "run"].iter().any(|k| parts.keyword.eq_ignore_ascii_case(k));
    known && json_array::parse(&parts.rest) == JsonArray::No
}

#[cfg(test)]
#[path = "line_tests.rs"]
mod tests;
