//! `--platform=$TARGETPLATFORM` is what FROM does anyway.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "RedundantTargetPlatform",
    description: "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
    page: "redundant-target-platform",
    experimental: false,
    why: "FROM takes the platform that is built for unless told otherwise. The flag adds nothing, and makes readers look for a reason.",
    bad: "FROM --platform=$TARGETPLATFORM scratch\n",
    good: "FROM scratch\n",
};

use crate::lex::{Expansion, Vars};

pub(crate) fn check(stage: &crate::ast::Stage, expansion: &Expansion, args: &dyn Vars, linter: &mut super::Linter) {
    let only = expansion.matched.len() == 1 && expansion.unmatched.is_empty();
    if only
        && expansion.matched.contains("TARGETPLATFORM")
        && args.value("TARGETPLATFORM").as_ref() == Some(&expansion.text)
    {
        let written = stage.platform.as_deref().unwrap_or_default();
        let message =
            format!("Setting platform to predefined {written} in FROM is redundant as this is the default behavior");
        linter.warn(&RULE, &stage.comments, Some(stage.lines), message);
    }
}
