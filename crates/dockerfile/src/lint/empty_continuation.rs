//! A blank line inside a continued instruction is easily taken for its end.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "NoEmptyContinuation",
    description: "Empty continuation lines will become errors in a future release",
    page: "no-empty-continuation",
    experimental: false,
    why: "A blank line between the lines of one instruction looks like its end, while what follows still belongs to it. The form is accepted for the sake of old files only.",
    bad: "FROM scratch\nENV A=1 \\\n\n    B=2\n",
    good: "FROM scratch\nENV A=1 \\\n    B=2\n",
};

pub(super) fn check(file: &crate::ast::Dockerfile, linter: &mut super::Linter) {
    for &line in &file.empty_continuations {
        let lines = crate::source::Lines::new(line, line);
        linter.warn(&RULE, &[], Some(lines), "Empty continuation line".into());
    }
}
