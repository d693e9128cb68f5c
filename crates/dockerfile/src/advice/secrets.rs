//! A secret is handed over by ARG or ENV, and stays in the image's history or config.

use super::reader::Reader;
use super::{Advice, Edit, Topic};
use crate::ast::{Kind, Stage};
use crate::lint::secrets::is_secret;

/// See the module.
pub(super) const TOPIC: Topic = Topic { name: "secret-in-image", title: "a secret is passed by ARG or ENV" };

pub(super) fn check(reader: &Reader<'_>, out: &mut Vec<Advice>) {
    for stage in &reader.file.stages {
        for (index, instruction) in stage.instructions.iter().enumerate() {
            let (names, all, keeper): (Vec<&str>, usize, &str) = match &instruction.kind {
                Kind::Arg(args) => (args.iter().map(|a| a.name.as_str()).collect(), args.len(), "history"),
                Kind::Env(pairs) => (pairs.iter().map(|p| p.key.as_str()).collect(), pairs.len(), "config"),
                _ => continue,
            };
            let Some(name) = names.into_iter().find(|n| is_secret(n)) else { continue };
            let mut edits = Vec::new();
            if all == 1 {
                edits.push(Reader::replace(instruction, ""));
            }
            let used = mounts(reader, stage, index, name, &mut edits);
            let id = name.to_lowercase();
            out.push(Advice {
                topic: &TOPIC,
                lines: instruction.lines,
                reason: format!(
                    "{name} stays readable in the image's {keeper}; {} `--secret id={id},env={name}`",
                    if used {
                        "mount it in the step that needs it, and build with"
                    } else {
                        "give it when it is needed, with"
                    }
                ),
                edits,
                ready: false,
            });
        }
    }
}

/// Mounts the secret in the steps that use the variable; true when there is one.
fn mounts(reader: &Reader<'_>, stage: &Stage, after: usize, name: &str, edits: &mut Vec<Edit>) -> bool {
    let before = edits.len();
    for step in reader.steps(stage).iter().filter(|s| s.index > after) {
        let text = reader.text(step.instruction);
        if !text.contains(&format!("${name}")) && !text.contains(&format!("${{{name}")) {
            continue;
        }
        let mount = format!(" --mount=type=secret,id={},env={name}", name.to_lowercase());
        let at = text.len() - text.trim_start().len() + step.instruction.keyword.len();
        let (keyword, rest) = text.split_at(at.min(text.len()));
        edits.push(Reader::replace(step.instruction, &format!("{keyword}{mount}{rest}")));
    }
    edits.len() > before
}
