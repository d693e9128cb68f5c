//! Names of checks that nobody knows, in the directive and in comments: most often misspelt, and so without effect.
//!
//! Other builders pass over them, so this is no check of its own but told by `kiln lint`.

use kiln_stdx::suggest;

use super::{Config, RULES};
use crate::ast::Dockerfile;
use crate::diag::{Diagnostic, Severity};
use crate::directive::check_in_comment;
use crate::source::Lines;

/// Returns a warning for each name of a check in the file that is none.
pub fn unknown_names(file: &Dockerfile) -> Vec<Diagnostic> {
    let mut out = Vec::new();
    if let Some(check) = &file.directives.check {
        look(&check.value, check.lines, &mut out);
    }
    let stages = file.stages.iter().map(|s| (&s.comments, s.lines));
    let instructions = file.stages.iter().flat_map(|s| &s.instructions).chain(&file.global_args);
    for (comments, lines) in stages.chain(instructions.map(|i| (&i.comments, i.lines))) {
        for text in comments.iter().filter_map(|c| check_in_comment(c)) {
            look(text, lines, &mut out);
        }
    }
    out
}

fn look(text: &str, lines: Lines, out: &mut Vec<Diagnostic>) {
    let Ok(config) = Config::parse(text) else { return };
    for name in config.skip.iter().chain(&config.experimental).filter(|n| !n.is_empty()) {
        if RULES.iter().any(|rule| rule.name == name) {
            continue;
        }
        let near = suggest::nearest(name, RULES.iter().map(|r| r.name));
        out.push(Diagnostic {
            severity: Severity::Warning,
            rule: "UnknownCheck",
            message: format!("there is no check {name}, so this has no effect"),
            detail: String::new(),
            url: String::new(),
            spans: vec![lines.into()],
            hint: near.map(|near| format!("did you mean `{near}`?")),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::unknown_names;

    #[test]
    fn misspelt_checks_are_found() {
        let text = "# check=skip=JSONArgRecommended,StageNameCasing\nFROM scratch\n# check=skip=UndefinedVars\nENV a=b\n# check=skip=all\nENV c=d\n";
        let file = crate::parse("Dockerfile", text.as_bytes()).unwrap();
        let found: Vec<(u32, Option<String>)> = unknown_names(&file).into_iter().map(|d| (d.line(), d.hint)).collect();
        let want = [(1, "did you mean `JSONArgsRecommended`?"), (4, "did you mean `UndefinedVar`?")];
        assert_eq!(found, want.map(|(line, hint)| (line, Some(hint.to_owned()))));
    }
}
