//! A relative WORKDIR is under whatever the base image has.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "WorkdirRelativePath",
    description: "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes",
    page: "workdir-relative-path",
    experimental: false,
    why: "A relative WORKDIR continues whatever directory the base image ends in. When the base changes, the files end up elsewhere.",
    bad: "FROM scratch\nWORKDIR app\n",
    good: "FROM scratch\nWORKDIR /app\n",
};

pub(crate) fn check(instruction: &crate::ast::Instruction, path: &str, linter: &mut super::Linter) {
    let quoted = crate::gofmt::quote(path);
    let message = format!("Relative workdir {quoted} can have unexpected results if the base image changes");
    linter.warn(&RULE, &instruction.comments, Some(instruction.lines), message);
}
