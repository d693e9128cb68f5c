//! `EXPOSE 53/udp`, not `53/UDP`.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "ExposeProtoCasing",
    description: "Protocol in EXPOSE instruction should be lowercase",
    page: "expose-proto-casing",
    experimental: false,
    why: "Protocols are written `tcp`, `udp` and `sctp` everywhere else; tools that compare the text of the image's config do not find `TCP`.",
    bad: "FROM scratch\nEXPOSE 53/UDP\n",
    good: "FROM scratch\nEXPOSE 53/udp\n",
};

pub(crate) fn check(instruction: &crate::ast::Instruction, port: &str, protocol: &str, linter: &mut super::Linter) {
    if protocol != protocol.to_lowercase() {
        let message = format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase");
        linter.warn(&RULE, &instruction.comments, Some(instruction.lines), message);
    }
}
