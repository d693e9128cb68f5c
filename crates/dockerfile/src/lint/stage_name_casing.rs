//! Stage names are compared without regard to case; writing them in lower case says so.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "StageNameCasing",
    description: "Stage names should be lowercase",
    page: "stage-name-casing",
    experimental: false,
    why: "Stage names are compared without regard to case and told in lower case. Writing them so avoids two spellings of one stage.",
    bad: "FROM scratch AS BuildBase\n",
    good: "FROM scratch AS build-base\n",
};

pub(super) fn check(stage: &crate::ast::Stage, linter: &mut super::Linter) {
    let Some((_, name)) = &stage.alias else { return };
    if name.to_lowercase() != *name {
        let message = format!("Stage name '{name}' should be lowercase");
        linter.warn(&RULE, &stage.comments, Some(stage.lines), message);
    }
}
