//! What the ignore file excludes is not there to be copied. Ignore files with `!` are not judged.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "CopyIgnoredFile",
    description: "Attempting to Copy file that is excluded by .dockerignore",
    page: "copy-ignored-file",
    experimental: false,
    why: "The ignore file keeps the path out of the build context, so the instruction finds nothing and the build fails, or silently copies less than the line says. Take the path out of the ignore file, or do not copy it. Files with exceptions (`!`) are not judged.",
    bad: "FROM scratch\nCOPY notes.tmp /\n",
    good: "FROM scratch\nCOPY notes.txt /\n",
};

use kiln_stdx::pattern::{PatternMatcher, clean};

pub(crate) fn check(
    instruction: &crate::ast::Instruction,
    source: &str,
    matcher: &PatternMatcher,
    linter: &mut super::Linter,
) {
    if matcher.is_empty() || matcher.has_negations() {
        return;
    }
    let path = clean(source.as_bytes());
    let root = path == b"." || path == b"/";
    if root && !matcher.patterns().any(|(p, _)| matches!(p, b"*" | b"**" | b"**/*")) {
        return;
    }
    if matcher.matches(&path) {
        let add = matches!(instruction.kind, crate::ast::Kind::Add(_));
        let command = if add { "Add" } else { "Copy" };
        let quoted = crate::gofmt::quote(&String::from_utf8_lossy(&path));
        let message = format!("Attempting to {command} file {quoted} that is excluded by .dockerignore");
        linter.warn(&RULE, &instruction.comments, Some(instruction.lines), message);
    }
}
