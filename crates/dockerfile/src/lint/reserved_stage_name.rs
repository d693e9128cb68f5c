//! `context` and `scratch` mean something else already.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "ReservedStageName",
    description: "Reserved words should not be used as stage names",
    page: "reserved-stage-name",
    experimental: false,
};

pub(super) fn check(file: &crate::ast::Dockerfile, linter: &mut super::Linter) {
    for stage in &file.stages {
        let Some(name @ ("context" | "scratch")) = stage.name.as_deref() else { continue };
        let message = format!("Stage name should not use the same name as reserved stage \"{name}\"");
        linter.warn(&RULE, &stage.comments, Some(stage.lines), message);
    }
}
