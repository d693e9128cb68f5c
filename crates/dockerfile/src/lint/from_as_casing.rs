//! `FROM x AS y` or `from x as y`, but no mixture.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "FromAsCasing",
    description: "The 'as' keyword should match the case of the 'from' keyword",
    page: "from-as-casing",
    experimental: false,
    why: "`FROM … as` mixes two ways of writing in one instruction. Keywords stand out, and are found by search, when they are written alike.",
    bad: "FROM scratch as app\n",
    good: "FROM scratch AS app\n",
};

pub(super) fn check(stage: &crate::ast::Stage, linter: &mut super::Linter) {
    let Some((word, _)) = &stage.alias else { return };
    let from = &stage.keyword;
    let expected = if *from == from.to_lowercase() {
        word.to_lowercase()
    } else if *from == from.to_uppercase() {
        word.to_uppercase()
    } else {
        return; // a mixed keyword is another rule's finding
    };
    if *word != expected {
        let message = format!("'{word}' and '{from}' keywords' casing do not match");
        linter.warn(&RULE, &stage.comments, Some(stage.lines), message);
    }
}
