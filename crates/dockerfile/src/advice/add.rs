//! `ADD` where `COPY` does: a reader has to find out that nothing is downloaded or unpacked, and a file that happens to be
//! an archive is.

use super::reader::Reader;
use super::{Advice, Topic};
use crate::ast::Kind;

/// See the module.
pub(super) const TOPIC: Topic = Topic { name: "add-for-copy", title: "ADD where COPY suffices" };

const ARCHIVES: [&str; 10] =
    [".tar", ".tgz", ".tar.gz", ".txz", ".tar.xz", ".tbz2", ".tar.bz2", ".tar.zst", ".gz", ".xz"];

pub(super) fn check(reader: &Reader<'_>, out: &mut Vec<Advice>) {
    for instruction in reader.file.stages.iter().flat_map(|s| &s.instructions) {
        let Kind::Add(add) = &instruction.kind else { continue };
        let special = |s: &String| {
            s.contains(['$', ':']) || s.starts_with("github.com/") || ARCHIVES.iter().any(|a| s.ends_with(a))
        };
        let plain = add.checksum.is_empty() && add.keep_git_dir.is_none() && add.unpack.is_none();
        // A pattern may match an archive.
        let matches_archive = add.transfer.sources.iter().any(|s| s.contains('*'))
            && (!reader.context.known || reader.context.files.keys().any(|f| ARCHIVES.iter().any(|a| f.ends_with(a))));
        if !plain || matches_archive || add.transfer.sources.iter().any(special) {
            continue;
        }
        let text = reader.text(instruction);
        let at = text.len() - text.trim_start().len();
        let end = at + instruction.keyword.len();
        let copy = if instruction.keyword.chars().all(char::is_lowercase) { "copy" } else { "COPY" };
        let (before, after) = (text.get(..at).unwrap_or_default(), text.get(end..).unwrap_or_default());
        out.push(Advice {
            topic: &TOPIC,
            lines: instruction.lines,
            reason: "ADD also downloads and unpacks; COPY says that files are taken as they are".to_owned(),
            edits: vec![Reader::replace(instruction, &format!("{before}{copy}{after}"))],
            ready: true,
        });
    }
}
