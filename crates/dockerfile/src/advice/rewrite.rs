//! Proposed changes: edits by line, how they look as a diff, and the file that has all of them.

use super::{Advice, ContextView, advise};
use crate::source::SourceFile;

/// Which file an edit is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Dockerfile,
    /// The ignore file, made when there is none.
    IgnoreFile,
}

/// Lines to put in place of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    pub target: Target,
    /// First line that goes, from 1; with no line that goes, the line before which `text` comes.
    pub first: u32,
    /// How many lines go.
    pub count: u32,
    pub text: Vec<String>,
}

impl Edit {
    /// Returns an edit of the Dockerfile; `text` may have several lines, and removes them when it is empty.
    pub fn dockerfile(first: u32, count: u32, text: &str) -> Self {
        let text = if text.is_empty() { Vec::new() } else { text.split('\n').map(str::to_owned).collect() };
        Self { target: Target::Dockerfile, first, count, text }
    }

    /// Returns an edit that adds a line to the ignore file.
    pub fn ignore(context: &ContextView, pattern: &str) -> Self {
        let lines = u32::try_from(context.ignore.lines().count()).unwrap_or(u32::MAX - 1);
        Self { target: Target::IgnoreFile, first: lines + 1, count: 0, text: vec![pattern.to_owned()] }
    }
}

/// Applies the edits of one file. Edits that overlap an earlier one are left out.
pub fn apply(text: &str, edits: &[Edit], target: Target) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut edits: Vec<(usize, &Edit)> = edits.iter().filter(|e| e.target == target).enumerate().collect();
    // From the end, so that line numbers stay what they are; what is inserted at one place keeps its order.
    edits.sort_by_key(|(i, e)| std::cmp::Reverse((e.first, e.count > 0, *i)));
    let mut limit = usize::MAX;
    for (_, edit) in edits {
        let first = (edit.first as usize).saturating_sub(1).min(lines.len());
        let end = first.saturating_add(edit.count as usize);
        if end > limit || end > lines.len() {
            continue;
        }
        lines.splice(first..end, edit.text.iter().cloned());
        limit = first;
    }
    let mut out = lines.join("\n");
    if !out.is_empty() {
        out.push('\n');
    }
    out
}

/// Draws the change of one piece of advice.
pub fn diff(source: &SourceFile, context: &ContextView, edits: &[Edit]) -> String {
    let text = String::from_utf8_lossy(&source.data);
    let mut out = unified(&source.name, &text, &apply(&text, edits, Target::Dockerfile));
    out.push_str(&unified(".dockerignore", &context.ignore, &apply(&context.ignore, edits, Target::IgnoreFile)));
    out
}

/// Applies everything that is ready to be applied, one after the other, until nothing is left. Returns the new
/// Dockerfile and the new ignore file.
pub fn propose(source: &SourceFile, context: &ContextView) -> (String, String) {
    let mut text = String::from_utf8_lossy(&source.data).into_owned();
    let mut context = context.clone();
    for _ in 0..ROUNDS {
        let Ok(file) = crate::parse(&source.name, text.as_bytes()) else { break };
        let next = advise(&file, &context).into_iter().find(|a: &Advice| a.ready && !a.edits.is_empty());
        let Some(advice) = next else { break };
        let changed = apply(&text, &advice.edits, Target::Dockerfile);
        let ignore = apply(&context.ignore, &advice.edits, Target::IgnoreFile);
        if (changed.as_str(), ignore.as_str()) == (text.as_str(), context.ignore.as_str()) {
            break;
        }
        for edit in advice.edits.iter().filter(|e| e.target == Target::IgnoreFile) {
            for path in &edit.text {
                let below = format!("{}/", path.trim_start_matches('/').trim_end_matches('/'));
                context.files.retain(|file, _| !file.starts_with(&below) && *file != below.trim_end_matches('/'));
            }
        }
        (text, context.ignore) = (changed, ignore);
    }
    (text, context.ignore)
}

/// How many changes are made at most.
const ROUNDS: usize = 100;
/// Unchanged lines around changed ones.
const AROUND: usize = 3;
/// Lines of a file beyond which a diff is one block, since finding a short one takes time in their square.
const LIMIT: usize = 2000;

/// Returns the difference of two texts in the unified form; empty when there is none.
pub fn unified(name: &str, old: &str, new: &str) -> String {
    if old == new {
        return String::new();
    }
    let (a, b): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let before = if a.is_empty() { "/dev/null".to_owned() } else { format!("a/{name}") };
    let mut out = format!("--- {before}\n+++ b/{name}\n");
    let script = script(&a, &b);
    let changed: Vec<usize> = (0..script.len()).filter(|&i| script[i].0 != ' ').collect();
    let mut at = 0;
    while let Some(&start) = changed.get(at) {
        let mut end = start;
        while let Some(&next) = changed.get(at).filter(|&&next| next <= end + 2 * AROUND || next == start) {
            end = next;
            at += 1;
        }
        let from = start.saturating_sub(AROUND);
        let to = (end + AROUND + 1).min(script.len());
        let count = |kinds: &str, range: &[(char, &str)]| range.iter().filter(|(k, _)| kinds.contains(*k)).count();
        let (old_before, new_before) = (count(" -", &script[..from]), count(" +", &script[..from]));
        let (olds, news) = (count(" -", &script[from..to]), count(" +", &script[from..to]));
        let first = |before: usize, lines: usize| if lines == 0 { before } else { before + 1 };
        out.push_str(&format!("@@ -{},{olds} +{},{news} @@\n", first(old_before, olds), first(new_before, news)));
        for (kind, line) in &script[from..to] {
            out.push_str(&format!("{kind}{line}\n"));
        }
    }
    out
}

/// Returns the lines of both texts, each with what becomes of it: ` ` stays, `-` goes, `+` comes.
fn script<'a>(a: &[&'a str], b: &[&'a str]) -> Vec<(char, &'a str)> {
    let head = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let tail = a[head..].iter().rev().zip(b[head..].iter().rev()).take_while(|(x, y)| x == y).count();
    let (old, new) = (&a[head..a.len() - tail], &b[head..b.len() - tail]);
    let mut out: Vec<(char, &str)> = a[..head].iter().map(|l| (' ', *l)).collect();
    if old.len() > LIMIT || new.len() > LIMIT {
        out.extend(old.iter().map(|l| ('-', *l)));
        out.extend(new.iter().map(|l| ('+', *l)));
    } else {
        // Lengths of longest common subsequences of the rests.
        let mut common = vec![vec![0u32; new.len() + 1]; old.len() + 1];
        for i in (0..old.len()).rev() {
            for j in (0..new.len()).rev() {
                let longest = common[i + 1][j].max(common[i][j + 1]);
                common[i][j] = if old[i] == new[j] { common[i + 1][j + 1] + 1 } else { longest };
            }
        }
        let (mut i, mut j) = (0, 0);
        while i < old.len() || j < new.len() {
            if i < old.len() && j < new.len() && old[i] == new[j] {
                out.push((' ', old[i]));
                (i, j) = (i + 1, j + 1);
            } else if j == new.len() || i < old.len() && common[i + 1][j] >= common[i][j + 1] {
                out.push(('-', old[i]));
                i += 1;
            } else {
                out.push(('+', new[j]));
                j += 1;
            }
        }
    }
    out.extend(a[a.len() - tail..].iter().map(|l| (' ', *l)));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_drawn() {
        let old = "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\nk\nl\n";
        let new = "a\nB\nc\nd\ne\nf\ng\nh\ni\nj\nl\nm\n";
        let want =
            "--- a/x\n+++ b/x\n@@ -1,5 +1,5 @@\n a\n-b\n+B\n c\n d\n e\n@@ -8,5 +8,5 @@\n h\n i\n j\n-k\n l\n+m\n";
        assert_eq!(unified("x", old, new), want);
        assert_eq!(unified("x", "", "a\n"), "--- /dev/null\n+++ b/x\n@@ -0,0 +1,1 @@\n+a\n");
        assert_eq!(unified("x", old, old), "");
    }

    #[test]
    fn edits_do_not_disturb_each_other() {
        let edits = [Edit::dockerfile(2, 1, "B\nB2"), Edit::dockerfile(4, 0, "new"), Edit::dockerfile(1, 1, "")];
        assert_eq!(apply("a\nb\nc\nd\n", &edits, Target::Dockerfile), "B\nB2\nc\nnew\nd\n");
        assert_eq!(apply("a\n", &[Edit::dockerfile(9, 3, "x")], Target::Dockerfile), "a\n");
    }
}
