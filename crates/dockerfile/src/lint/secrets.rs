//! Arguments and variables end up in the image's history; `RUN --mount=type=secret` does not.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "SecretsUsedInArgOrEnv",
    description: "Sensitive data should not be used in the ARG or ENV commands",
    page: "secrets-used-in-arg-or-env",
    experimental: false,
    why: "Values of ARG are kept in the image's history and in provenance, those of ENV in its config; anyone who can pull the image can read them. `RUN --mount=type=secret` shows a secret to one step and leaves nothing behind. The check goes by the name of the variable.",
    bad: "FROM scratch\nARG GITHUB_TOKEN\nRUN fetch --token $GITHUB_TOKEN\n",
    good: "FROM scratch\nRUN --mount=type=secret,id=github,env=GITHUB_TOKEN fetch\n",
};

const SECRET: [&str; 10] =
    ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
const HARMLESS: [&str; 3] = ["public", "file", "version"];

pub(crate) fn check(instruction: &crate::ast::Instruction, keyword: &str, name: &str, linter: &mut super::Linter) {
    if is_secret(name) {
        let quoted = crate::gofmt::quote(name);
        let message = format!("Do not use ARG or ENV instructions for sensitive data ({keyword} {quoted})");
        linter.warn(&RULE, &instruction.comments, Some(instruction.lines), message);
    }
}

/// Tells whether the name of a variable speaks of a secret.
pub(crate) fn is_secret(name: &str) -> bool {
    let lower = name.to_lowercase();
    let has = |words: &[&str]| lower.split('_').any(|part| words.contains(&part));
    has(&SECRET) && !has(&HARMLESS)
}
