//! Only the last CMD, ENTRYPOINT or HEALTHCHECK of a stage counts; the finding is at the one that does not.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "MultipleInstructionsDisallowed",
    description: "Multiple instructions of the same type should not be used in the same stage",
    page: "multiple-instructions-disallowed",
    experimental: false,
    why: "Of several CMD, ENTRYPOINT or HEALTHCHECK instructions of a stage only the last has an effect; the finding is at one that has none.",
    bad: "FROM scratch\nCMD [\"/old\"]\nCMD [\"/new\"]\n",
    good: "FROM scratch\nCMD [\"/new\"]\n",
};

pub(crate) fn check(
    instruction: &crate::ast::Instruction,
    earlier: Option<crate::source::Lines>,
    linter: &mut super::Linter,
) {
    if earlier.is_some() {
        let message = format!(
            "Multiple {} instructions should not be used in the same stage because only the last one will be used",
            instruction.keyword
        );
        linter.warn(&RULE, &instruction.comments, earlier, message);
    }
}
