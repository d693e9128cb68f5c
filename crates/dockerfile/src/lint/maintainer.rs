//! A label such as `org.opencontainers.image.authors` does the same and can be read by tools.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "MaintainerDeprecated",
    description: "The MAINTAINER instruction is deprecated, use a label instead to define an image author",
    page: "maintainer-deprecated",
    experimental: false,
};

pub(super) fn check(instruction: &crate::ast::Instruction, linter: &mut super::Linter) {
    if matches!(instruction.kind, crate::ast::Kind::Maintainer(_)) {
        let message = "Maintainer instruction is deprecated in favor of using label".into();
        linter.warn(&RULE, &instruction.comments, Some(instruction.lines), message);
    }
}
