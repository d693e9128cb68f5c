//! EXPOSE names ports of the container; addresses and host ports belong to `docker run -p`.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "ExposeInvalidFormat",
    description: "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release",
    page: "expose-invalid-format",
    experimental: false,
    why: "EXPOSE tells which ports the process in the container listens on. Addresses and host ports are chosen when a container is started, with `docker run -p`; in EXPOSE they are dropped.",
    bad: "FROM scratch\nEXPOSE 127.0.0.1:80:8080\n",
    good: "FROM scratch\nEXPOSE 8080\n",
};

pub(crate) fn check(instruction: &crate::ast::Instruction, port: &str, mapped: bool, linter: &mut super::Linter) {
    if mapped {
        let message =
            format!("EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'");
        linter.warn(&RULE, &instruction.comments, Some(instruction.lines), message);
    }
}
