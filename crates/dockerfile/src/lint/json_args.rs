//! In shell form the shell is process 1 and swallows signals; an explicit SHELL says that this is wanted.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "JSONArgsRecommended",
    description: "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals",
    page: "json-args-recommended",
    experimental: false,
};

pub(crate) fn check(instruction: &crate::ast::Instruction, shell: &[String], linter: &mut super::Linter) {
    if shell.is_empty() {
        let message = format!(
            "JSON arguments recommended for {} to prevent unintended behavior related to OS signals",
            instruction.keyword
        );
        linter.warn(&RULE, &instruction.comments, Some(instruction.lines), message);
    }
}
