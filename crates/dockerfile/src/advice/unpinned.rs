//! A base image or a download without a version: the same file gives another image tomorrow.

use kiln_oci::Reference;

use super::reader::Reader;
use super::{Advice, Topic};
use crate::ast::{Add, Instruction, Kind, Stage};
use crate::git_ref;

/// See the module.
pub(super) const TOPIC: Topic = Topic { name: "unpinned", title: "a base image or a download is not pinned" };

pub(super) fn check(reader: &Reader<'_>, out: &mut Vec<Advice>) {
    for stage in &reader.file.stages {
        base(reader, stage, out);
        for instruction in &stage.instructions {
            match &instruction.kind {
                Kind::Add(add) => download(reader, instruction, add, out),
                Kind::Copy(copy) => {
                    if let Some(from) = copy.from.as_deref().filter(|f| reader.stage(f).is_none() && floats(f)) {
                        image(reader, instruction.lines.first, instruction.lines, from, out);
                    }
                }
                _ => {}
            }
        }
    }
}

fn base(reader: &Reader<'_>, stage: &Stage, out: &mut Vec<Advice>) {
    if stage.base != "scratch" && reader.parent(stage).is_none() && floats(&stage.base) {
        image(reader, stage.lines.first, stage.lines, &stage.base, out);
    }
}

/// Tells whether a reference means another image from day to day.
fn floats(name: &str) -> bool {
    if name.contains('$') {
        return false;
    }
    Reference::parse(name).is_ok_and(|r| r.digest().is_none() && r.tag().is_none_or(|t| t == "latest"))
}

fn image(reader: &Reader<'_>, line: u32, lines: crate::source::Lines, name: &str, out: &mut Vec<Advice>) {
    let text = reader.lines.get(line as usize - 1).cloned().unwrap_or_default();
    let bare = name.strip_suffix(":latest").unwrap_or(name);
    let new = text.replacen(name, &format!("{bare}:VERSION"), 1);
    out.push(Advice {
        topic: &TOPIC,
        lines,
        reason: format!(
            "{name} is another image whenever a new one is released; name a version, or a digest where builds must be \
             the same for good"
        ),
        edits: vec![super::Edit::dockerfile(line, 1, &new)],
        ready: false,
    });
}

fn download(reader: &Reader<'_>, instruction: &Instruction, add: &Add, out: &mut Vec<Advice>) {
    if !add.checksum.is_empty() {
        return;
    }
    for source in &add.transfer.sources {
        let text = reader.text(instruction);
        let (what, new) = match git_ref::parse(source) {
            Ok(Some(git)) if git.checksum.is_empty() && !is_commit(&git.reference) => {
                ("whatever the branch or tag then names", text.replacen("ADD ", "ADD --checksum=COMMIT ", 1))
            }
            Ok(None) if source.starts_with("https://") || source.starts_with("http://") => {
                ("whatever the server then sends", text.replacen("ADD ", "ADD --checksum=sha256:DIGEST ", 1))
            }
            _ => continue,
        };
        out.push(Advice {
            topic: &TOPIC,
            lines: instruction.lines,
            reason: format!("a later build takes {what}; a checksum makes it the same, or an error"),
            edits: vec![Reader::replace(instruction, &new)],
            ready: false,
        });
    }
}

fn is_commit(reference: &str) -> bool {
    matches!(reference.len(), 40 | 64) && reference.bytes().all(|b| b.is_ascii_hexdigit())
}
