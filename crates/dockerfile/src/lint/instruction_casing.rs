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
    let lower = keywords.iter().filter(|(k, ..)| **k == k.to_lowercase()).count();
    let upper = keywords.iter().filter(|(k, ..)| **k == k.to_uppercase()).count();
    for (keyword, comments, lines) in keywords {
        let (right, casing) = match lower > upper {
            true => (keyword.to_lowercase(), "lowercase"),
            false => (keyword.to_uppercase(), "uppercase"),
        };
        if *keyword != right {
            let message = format!("Command '{keyword}' should match the case of the command majority ({casing})");
            linter.warn(&RULE, comments, Some(lines), message);
        }
    }
}
