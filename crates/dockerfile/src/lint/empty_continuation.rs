//! A blank line inside a continued instruction is easily taken for its end.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "NoEmptyContinuation",
    description: "Empty continuation lines will become errors in a future release",
    page: "no-empty-continuation",
    experimental: false,
};

pub(super) fn check(file: &crate::ast::Dockerfile, linter: &mut super::Linter) {
    for &line in &file.empty_continuations {
        let lines = crate::source::Lines::new(line, line);
        linter.warn(&RULE, &[], Some(lines), "Empty continuation line".into());
    }
}
