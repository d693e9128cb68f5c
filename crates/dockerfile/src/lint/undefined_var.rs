//! A variable that no ARG or ENV above sets is empty.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "UndefinedVar",
    description: "Variables should be defined before their use",
    page: "undefined-var",
    experimental: false,
    why: "A variable that no ARG or ENV above it sets, and that the base image does not set, is replaced by nothing. Most often it is misspelt, or a global ARG that the stage does not take up.",
    bad: "FROM scratch\nARG DESTINATION=/srv\nCOPY app $DESTINATON/\n",
    good: "FROM scratch\nARG DESTINATION=/srv\nCOPY app $DESTINATION/\n",
};

pub(crate) fn check(
    instruction: &crate::ast::Instruction,
    name: &str,
    known: &kiln_llb::builder::EnvList,
    linter: &mut super::Linter,
) {
    let nearest = linter.nearest(name, known.iter().map(|(k, _)| k)).filter(|n| *n != name);
    let hint = nearest.map(|n| format!(" (did you mean ${n}?)")).unwrap_or_default();
    let message = format!("Usage of undefined variable '${name}'{hint}");
    linter.warn(&RULE, &instruction.comments, Some(instruction.lines), message);
}
