//! A variable in FROM must be a global ARG or a platform argument.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "UndefinedArgInFrom",
    description: "FROM command must use declared ARGs",
    page: "undefined-arg-in-from",
    experimental: false,
    why: "FROM sees the arguments declared before the first FROM, and the platform arguments. Any other variable is empty there, most often because it is misspelt or declared inside a stage.",
    bad: "ARG DISTRO=scratch\nFROM ${DISTR:-scratch}\n",
    good: "ARG DISTRO=scratch\nFROM ${DISTRO:-scratch}\n",
};

use std::collections::BTreeSet;

pub(crate) fn check(
    stage: &crate::ast::Stage,
    unmatched: &BTreeSet<String>,
    known: &BTreeSet<String>,
    linter: &mut super::Linter,
) {
    for name in unmatched.difference(known) {
        let nearest = linter.nearest(name, known.iter().map(String::as_str));
        let hint = nearest.map(|n| format!(" (did you mean {n}?)")).unwrap_or_default();
        let message = format!("FROM argument '{name}' is not declared{hint}");
        linter.warn(&RULE, &stage.comments, Some(stage.lines), message);
    }
}
