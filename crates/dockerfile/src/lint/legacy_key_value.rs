//! `ENV k v` takes the whole rest of the line; `ENV k=v` says what is meant.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "LegacyKeyValueFormat",
    description: "Legacy key/value format with whitespace separator should not be used",
    page: "legacy-key-value-format",
    experimental: false,
    why: "Without `=` everything after the first blank is the value, also what looks like a second variable. With `=` several can be set at once, and quotes mean what they say.",
    bad: "FROM scratch\nENV HOME_PAGE /srv/www index\n",
    good: "FROM scratch\nENV HOME_PAGE=\"/srv/www index\"\n",
};

pub(crate) fn check(instruction: &crate::ast::Instruction, pair: &crate::ast::Pair, linter: &mut super::Linter) {
    if pair.legacy {
        let name = &instruction.keyword;
        let message = format!("\"{name} key=value\" should be used instead of legacy \"{name} key value\" format");
        linter.warn(&RULE, &instruction.comments, Some(instruction.lines), message);
    }
}
