//! Without build arguments the base would have no valid name.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "InvalidDefaultArgInFrom",
    description: "Default value for global ARG results in an empty or invalid base image name",
    page: "invalid-default-arg-in-from",
    experimental: false,
    why: "Whoever builds without giving the argument gets an error that speaks of a bad image name. A default makes the file build as it is, and shows what kind of value is expected.",
    bad: "ARG TAG\nFROM busybox:${TAG}\n",
    good: "ARG TAG=latest\nFROM busybox:${TAG}\n",
};

use crate::lex::{Vars, WordLexer};

pub(crate) fn check(file: &crate::ast::Dockerfile, defaults: &dyn Vars, linter: &mut super::Linter) {
    let lexer = WordLexer::new(file.escape);
    for stage in &file.stages {
        let Ok(expansion) = lexer.expand(&stage.base, defaults) else { return };
        if kiln_oci::Reference::parse(&expansion.text).is_err() {
            let message = format!("Default value for ARG {} results in empty or invalid base image name", stage.base);
            linter.warn(&RULE, &stage.comments, Some(stage.lines), message);
        }
    }
}
