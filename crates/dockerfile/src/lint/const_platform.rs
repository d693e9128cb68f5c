//! A constant platform defeats builds for several platforms, unless the stage's name says what it is for.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "FromPlatformFlagConstDisallowed",
    description: "FROM --platform flag should not use a constant value",
    page: "from-platform-flag-const-disallowed",
    experimental: false,
    why: "A platform that is written out holds whatever the build asks for, so that a build for several platforms gives the same image several times. Use the automatic arguments, or choose the platform with `--platform` when building. A stage whose name contains the system or the processor says that it is meant for it, and is left alone.",
    bad: "FROM --platform=linux/amd64 scratch AS base\nCOPY app /\n",
    good: "FROM --platform=$BUILDPLATFORM scratch AS base\nCOPY app /\n",
};

use crate::lex::Expansion;

pub(crate) fn check(stage: &crate::ast::Stage, expansion: &Expansion, linter: &mut super::Linter) {
    if !expansion.matched.is_empty() || !expansion.unmatched.is_empty() {
        return;
    }
    let Ok(platform) = kiln_oci::Platform::parse(&expansion.text) else { return };
    let name = stage.name.as_deref().unwrap_or_default();
    if name.contains(&platform.os) || name.contains(&platform.architecture) {
        return;
    }
    let quoted = crate::gofmt::quote(&expansion.text);
    let message = format!("FROM --platform flag should not use constant value {quoted}");
    linter.warn(&RULE, &stage.comments, Some(stage.lines), message);
}
