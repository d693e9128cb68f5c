//! A label such as `org.opencontainers.image.authors` does the same and can be read by tools.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "MaintainerDeprecated",
    description: "The MAINTAINER instruction is deprecated, use a label instead to define an image author",
    page: "maintainer-deprecated",
    experimental: false,
    why: "The author field of images is read by hardly any tool. The label `org.opencontainers.image.authors` says the same, and registries and scanners know it.",
    bad: "FROM scratch\nMAINTAINER me@example.com\n",
    good: "FROM scratch\nLABEL org.opencontainers.image.authors=\"me@example.com\"\n",
};

pub(super) fn check(instruction: &crate::ast::Instruction, linter: &mut super::Linter) {
    if matches!(instruction.kind, crate::ast::Kind::Maintainer(_)) {
        let message = "Maintainer instruction is deprecated in favor of using label".into();
        linter.warn(&RULE, &instruction.comments, Some(instruction.lines), message);
    }
}
