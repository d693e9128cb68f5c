//! EXPOSE names ports of the container; addresses and host ports belong to `docker run -p`.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "ExposeInvalidFormat",
    description: "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release",
    page: "expose-invalid-format",
    experimental: false,
};

pub(crate) fn check(instruction: &crate::ast::Instruction, port: &str, mapped: bool, linter: &mut super::Linter) {
    if mapped {
        let message =
            format!("EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'");
        linter.warn(&RULE, &instruction.comments, Some(instruction.lines), message);
    }
}
