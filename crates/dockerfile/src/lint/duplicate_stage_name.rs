//! A name that is given twice means its last use only.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "DuplicateStageName",
    description: "Stage names should be unique",
    page: "duplicate-stage-name",
    experimental: false,
    why: "A stage name that is given twice means the later stage for everything below it and the earlier one for everything between. Readers will take one for the other, and `--target` reaches only the last.",
    bad: "FROM scratch AS app\nCOPY a /\nFROM scratch AS app\nCOPY b /\n",
    good: "FROM scratch AS first\nCOPY a /\nFROM scratch AS second\nCOPY b /\n",
};

pub(super) fn check(file: &crate::ast::Dockerfile, linter: &mut super::Linter) {
    let mut seen = std::collections::BTreeSet::new();
    for stage in &file.stages {
        let Some(name) = &stage.name else { continue };
        if !seen.insert(name) {
            let quoted = crate::gofmt::quote(name);
            let message = format!("Duplicate stage name {quoted}, stage names should be unique");
            linter.warn(&RULE, &stage.comments, Some(stage.lines), message);
        }
    }
}
