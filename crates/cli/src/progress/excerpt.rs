//! The lines of a source file an error or warning points at, with a marker before each of them:
//!
//! ```text
//! Dockerfile:3
//! --------------------
//!    1 |     FROM base
//!    2 |
//!    3 | >>> RUN make
//! --------------------
//! ```

use kiln_dockerfile::render::{WIDTH, shortened};
use kiln_llb::pb;

/// A file whose lines are known, to show many places of it.
pub struct SourceLines {
    name: String,
    lines: Vec<String>,
}

impl SourceLines {
    /// Splits a file into lines; `name` is what it is called in excerpts.
    pub fn new(name: &str, data: &[u8]) -> Self {
        let lines = String::from_utf8_lossy(data).split('\n').map(str::to_owned).collect();
        Self { name: name.to_owned(), lines }
    }

    /// As [`render`].
    pub fn render(&self, ranges: &[pb::Range]) -> Option<String> {
        draw(&self.name, &self.lines, ranges)
    }
}

/// Renders the lines of `ranges` with a little around them; `None` when the ranges are not in the file.
pub fn render(source: &pb::SourceInfo, ranges: &[pb::Range]) -> Option<String> {
    SourceLines::new(&source.filename, &source.data).render(ranges)
}

fn draw(name: &str, lines: &[String], ranges: &[pb::Range]) -> Option<String> {
    let first_of = |r: &pb::Range| r.start.as_ref().map_or(0, |p| p.line);
    let last_of = |r: &pb::Range| r.end.as_ref().map_or(0, |p| p.line).max(first_of(r));
    let first = usize::try_from(ranges.iter().map(first_of).min()?).ok()?;
    let last = usize::try_from(ranges.iter().map(last_of).max()?).ok()?.min(lines.len());
    if first == 0 || first > lines.len() {
        return None;
    }
    let (from, to) = kiln_dockerfile::render::window(first, last, lines.len());
    let mut out = format!("{name}:{first}\n--------------------\n");
    for (number, line) in lines.iter().enumerate().map(|(i, l)| (i + 1, l)).skip(from - 1).take(to + 1 - from) {
        let hit =
            ranges.iter().any(|r| (first_of(r)..=last_of(r)).contains(&i32::try_from(number).unwrap_or(i32::MAX)));
        let mark = if hit { ">>>" } else { "   " };
        let line = line.strip_suffix('\r').unwrap_or(line);
        out.push_str(&format!(" {number:3} | {mark} {}\n", shortened(line)));
        let here = |r: &&pb::Range| first_of(r) == i32::try_from(number).unwrap_or(i32::MAX);
        if let Some(carets) = ranges.iter().find(here).and_then(|r| carets(r, line)) {
            out.push_str(&format!("     |     {carets}\n"));
        }
    }
    out.push_str("--------------------\n");
    Some(out)
}

/// Returns what is drawn below a line whose range says which part of it is meant. Columns count from one.
fn carets(range: &pb::Range, line: &str) -> Option<String> {
    let (start, end) = (range.start.as_ref()?, range.end.as_ref()?);
    let from = usize::try_from(start.character).ok()?.checked_sub(1)?;
    let to = if end.line == start.line { usize::try_from(end.character).ok()?.saturating_sub(1) } else { 0 };
    let count = line.chars().take(WIDTH).count();
    let before: String = line.chars().take(from).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    let width = to.min(count).saturating_sub(from).max(1);
    (from < count).then(|| format!("{before}{}", "^".repeat(width)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> pb::SourceInfo {
        pb::SourceInfo { filename: "Dockerfile".into(), data: text.as_bytes().to_vec().into(), ..Default::default() }
    }

    fn lines(start: i32, end: i32) -> pb::Range {
        let position = |line| Some(pb::Position { line, character: 0 });
        pb::Range { start: position(start), end: position(end) }
    }

    #[test]
    fn one_line_with_context() {
        let got = render(&file("FROM a\nARG x\nRUN false\nCMD z\n"), &[lines(3, 3)]);
        let want = "Dockerfile:3\n--------------------\n   1 |     FROM a\n   2 |     ARG x\n   3 | >>> RUN false\n   4 |     CMD z\n   5 |     \n--------------------\n";
        assert_eq!(got.as_deref(), Some(want));
    }

    #[test]
    fn the_word_that_is_meant() {
        let position = |line, character| Some(pb::Position { line, character });
        let range = pb::Range { start: position(2, 2), end: position(2, 5) };
        let got = render(&file("FROM a\n\tRUM x"), &[range]).unwrap_or_default();
        let want = "Dockerfile:2\n--------------------\n   1 |     FROM a\n   2 | >>> \tRUM x\n     |     \t^^^\n--------------------\n";
        assert_eq!(got, want);
        let beyond = pb::Range { start: position(1, 99), end: position(1, 100) };
        assert!(!render(&file("FROM a"), &[beyond]).unwrap_or_default().contains('^'));
    }

    #[test]
    fn a_long_line_is_cut() {
        let position = |line, character| Some(pb::Position { line, character });
        let range = |at| pb::Range { start: position(1, at), end: position(1, at + 1) };
        let source = file(&"x".repeat(9000));
        let got = render(&source, &[range(8000)]).unwrap_or_default();
        assert!(got.len() < 2200 && got.contains("xx…\n") && !got.contains('^'), "{got}");
        assert!(render(&source, &[range(10)]).unwrap_or_default().contains("     |              ^\n"));
    }

    #[test]
    fn several_lines_and_file_ends() {
        let got = render(&file("RUN a \\\n  b"), &[lines(1, 2)]).unwrap_or_default();
        assert_eq!(
            got,
            "Dockerfile:1\n--------------------\n   1 | >>> RUN a \\\n   2 | >>>   b\n--------------------\n"
        );
    }

    #[test]
    fn ranges_outside_give_nothing() {
        assert_eq!(render(&file("FROM a"), &[]), None);
        assert_eq!(render(&file("FROM a"), &[lines(7, 7)]), None);
        assert_eq!(render(&file("FROM a"), &[lines(0, 0)]), None);
        assert_eq!(render(&file("FROM a"), &[lines(-4, 1)]), None);
    }
}
