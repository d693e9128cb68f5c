//! Arguments and variables end up in the image's history; `RUN --mount=type=secret` does not.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "SecretsUsedInArgOrEnv",
    description: "Sensitive data should not be used in the ARG or ENV commands",
    page: "secrets-used-in-arg-or-env",
    experimental: false,
};

const SECRET: [&str; 10] =
    ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
const HARMLESS: [&str; 3] = ["public", "file", "version"];

pub(crate) fn check(instruction: &crate::ast::Instruction, keyword: &str, name: &str, linter: &mut super::Linter) {
    let lower = name.to_lowercase();
    let has = |words: &[&str]| lower.split('_').any(|part| words.contains(&part));
    if has(&SECRET) && !has(&HARMLESS) {
        let quoted = crate::gofmt::quote(name);
        let message = format!("Do not use ARG or ENV instructions for sensitive data ({keyword} {quoted})");
        linter.warn(&RULE, &instruction.comments, Some(instruction.lines), message);
    }
}
