//! A relative WORKDIR is under whatever the base image has.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "WorkdirRelativePath",
    description: "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes",
    page: "workdir-relative-path",
    experimental: false,
};

pub(crate) fn check(instruction: &crate::ast::Instruction, path: &str, linter: &mut super::Linter) {
    let quoted = crate::gofmt::quote(path);
    let message = format!("Relative workdir {quoted} can have unexpected results if the base image changes");
    linter.warn(&RULE, &instruction.comments, Some(instruction.lines), message);
}
