//! In shell form the shell is process 1 and swallows signals; an explicit SHELL says that this is wanted.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "JSONArgsRecommended",
    description: "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals",
    page: "json-args-recommended",
    experimental: false,
    why: "In shell form the command runs below `/bin/sh -c`, which is process 1 of the container and does not pass on signals: `docker stop` waits and then kills. The JSON form starts the program itself. A SHELL instruction in the stage says that a shell is wanted.",
    bad: "FROM scratch\nCMD serve --port 80\n",
    good: "FROM scratch\nCMD [\"serve\", \"--port\", \"80\"]\n",
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
