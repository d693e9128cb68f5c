//! Package lists are updated in a step of their own: the step stays cached while the lists grow old, and the install after
//! it asks for versions that are gone.

use super::reader::{Reader, Step};
use super::shell::base;
use super::tools::verb;
use super::{Advice, Edit, Topic};

/// See the module.
pub(super) const TOPIC: Topic =
    Topic { name: "update-alone", title: "package lists are updated in a step of their own" };

/// Returns how lists are updated, where a command does that.
fn updates(words: &[String]) -> Option<&'static str> {
    match (base(words.first()?), verb(words)) {
        ("apt-get", "update") => Some("apt-get"),
        ("apt", "update") => Some("apt"),
        ("apk", "update") => Some("apk"),
        _ => None,
    }
}

fn installs(words: &[String]) -> bool {
    let name = words.first().map_or("", |w| base(w));
    matches!((name, verb(words)), ("apt-get" | "apt", "install") | ("apk", "add"))
}

pub(super) fn check(reader: &Reader<'_>, out: &mut Vec<Advice>) {
    for stage in &reader.file.stages {
        let steps = reader.steps(stage);
        for (i, step) in steps.iter().enumerate() {
            let Some(tool) = step.commands.iter().find_map(|c| updates(c)) else { continue };
            if step.commands.iter().any(|c| installs(c)) {
                continue;
            }
            let next = steps[i + 1..].iter().find(|s| s.commands.iter().any(|c| installs(c)));
            let Some(next) = next else { continue };
            let alone = step.commands.iter().all(|c| updates(c).is_some());
            let edits = joined(reader, step, next, tool);
            out.push(Advice {
                topic: &TOPIC,
                lines: step.instruction.lines,
                reason: format!(
                    "this step stays cached while its lists grow old, and line {} then asks for versions that are gone; \
                     update and install in one step",
                    next.instruction.lines.first
                ),
                ready: alone && !edits.is_empty(),
                edits,
            });
        }
    }
}

/// Removes the step, and updates in front of the install.
fn joined(reader: &Reader<'_>, step: &Step<'_>, next: &Step<'_>, tool: &str) -> Vec<Edit> {
    let text = reader.text(next.instruction);
    if next.commands.iter().any(|c| updates(c).is_some()) {
        return vec![Reader::replace(step.instruction, "")];
    }
    let Some(at) = ["apt-get ", "apt ", "apk "].iter().find_map(|w| text.find(w)) else { return Vec::new() };
    let text = format!("{}{tool} update && {}", &text[..at], &text[at..]);
    vec![Reader::replace(step.instruction, ""), Reader::replace(next.instruction, &text)]
}
