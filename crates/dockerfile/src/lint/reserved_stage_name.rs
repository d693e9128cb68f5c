//! `context` and `scratch` mean something else already.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "ReservedStageName",
    description: "Reserved words should not be used as stage names",
    page: "reserved-stage-name",
    experimental: false,
    why: "`scratch` is the empty image and `context` the build context. A stage of that name cannot be told from them where it is used.",
    bad: "FROM scratch AS context\nCOPY a /\n",
    good: "FROM scratch AS sources\nCOPY a /\n",
};

pub(super) fn check(file: &crate::ast::Dockerfile, linter: &mut super::Linter) {
    for stage in &file.stages {
        let Some(name @ ("context" | "scratch")) = stage.name.as_deref() else { continue };
        let message = format!("Stage name should not use the same name as reserved stage \"{name}\"");
        linter.warn(&RULE, &stage.comments, Some(stage.lines), message);
    }
}
