//! The comment right above an ARG or a named FROM describes it: `# <name> <description>`.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "InvalidDefinitionDescription",
    description: "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment.",
    page: "invalid-definition-description",
    experimental: true,
    why: "A comment right above a stage or an argument is shown as its description by `--call=outline` and `--call=targets`, provided it begins with the name. A comment that does not is shown nowhere; an empty line keeps other remarks apart. This check is experimental: it runs when `experimental=InvalidDefinitionDescription` asks for it.",
    bad: "# check=experimental=all\nFROM scratch AS base\n# which release is packed\nARG VERSION=1\n",
    good: "# check=experimental=all\nFROM scratch AS base\n# VERSION which release is packed\nARG VERSION=1\n",
};

use crate::ast::{Instruction, Kind, Stage};
use crate::source::Lines;

pub(super) fn check_stage(stage: &Stage, linter: &mut super::Linter) {
    if let Some(name) = stage.name.as_deref() {
        check("FROM", &[name], &stage.comments, stage.lines, linter);
    }
}

pub(super) fn check_arg(instruction: &Instruction, linter: &mut super::Linter) {
    if let Kind::Arg(args) = &instruction.kind {
        let names: Vec<&str> = args.iter().map(|a| a.name.as_str()).collect();
        check("ARG", &names, &instruction.comments, instruction.lines, linter);
    }
}

fn check(keyword: &str, names: &[&str], comments: &[String], lines: Lines, linter: &mut super::Linter) {
    let (Some(comment), Some(first)) = (comments.last(), names.first()) else { return };
    if names.contains(&comment.split(' ').next().unwrap_or_default()) {
        return;
    }
    let example = if names.len() > 1 { "<arg_key>" } else { first };
    let message = format!("Comment for {keyword} should follow the format: `# {example} <description>`");
    linter.warn(&RULE, comments, Some(lines), message);
}
