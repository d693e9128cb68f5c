//! Keywords are all in upper case or all in lower case; the majority decides.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "ConsistentInstructionCasing",
    description: "All commands within the Dockerfile should use the same casing (either upper or lower)",
    page: "consistent-instruction-casing",
    experimental: false,
    why: "Instructions stand out from their arguments when all are written alike. Upper case is what most files use; the way that most instructions of the file are written is taken as the wish.",
    bad: "FROM scratch\ncopy a /\nCMD [\"/a\"]\n",
    good: "FROM scratch\nCOPY a /\nCMD [\"/a\"]\n",
};

pub(super) fn check(file: &crate::ast::Dockerfile, linter: &mut super::Linter) {
    let mut keywords = Vec::new();
    for stage in &file.stages {
        keywords.push((&stage.keyword, &stage.comments, stage.lines));
        keywords.extend(stage.instructions.iter().map(|i| (&i.keyword, &i.comments, i.lines)));
    }
    let (lower, upper) = (|k: &str| !k.contains(char::is_uppercase), |k: &str| !k.contains(char::is_lowercase));
    let count = |right: fn(&str) -> bool| keywords.iter().filter(|(k, ..)| right(k)).count();
    let (right, casing) = match count(lower) > count(upper) {
        true => (lower as fn(&str) -> bool, "lowercase"),
        false => (upper as fn(&str) -> bool, "uppercase"),
    };
    for (keyword, comments, lines) in keywords {
        if !right(keyword) {
            let message = format!("Command '{keyword}' should match the case of the command majority ({casing})");
            linter.warn(&RULE, comments, Some(lines), message);
        }
    }
}
