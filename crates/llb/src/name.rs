//! The name that an operation is shown by when its metadata gives none; the wording is BuildKit's.

use crate::attr;
use crate::op::{FileChange, Op};
use crate::pb;

/// Returns the shown name: the custom one of the metadata, else one made from the operation.
///
/// `input` gives the name of an input by index.
pub(crate) fn shown<'a>(op: &Op, inputs: usize, metadata: &pb::OpMetadata, input: impl Fn(usize) -> &'a str) -> String {
    if let Some(name) = metadata.description.get(attr::CUSTOM_NAME).filter(|n| !n.is_empty()) {
        return name.clone();
    }
    let side = |index: Option<usize>| index.map_or_else(|| "scratch".to_owned(), |i| format!("({})", input(i)));
    match op {
        Op::Source(source) => source.identifier.clone(),
        Op::Exec(exec) => exec.meta.args.join(" "),
        Op::File(file) => {
            let list: Vec<String> = file.actions.iter().map(|a| change(&a.change)).collect();
            list.join(", ")
        }
        Op::Build(_) => "build".to_owned(),
        Op::Merge(_) => {
            let list: Vec<&str> = (0..inputs).map(&input).collect();
            format!("merge ({})", list.join(", "))
        }
        Op::Diff(diff) => format!("diff {} -> {}", side(diff.lower), side(diff.upper)),
        Op::Passthrough(pass) => format!("passthrough {}", pass.id),
    }
}

fn change(change: &FileChange) -> String {
    match change {
        FileChange::Copy(copy) => format!("copy {} {}", copy.src, copy.dest),
        FileChange::Mkfile(file) => format!("mkfile {}", file.path),
        FileChange::Mkdir(dir) => format!("mkdir {}", dir.path),
        FileChange::Rm(rm) => format!("rm {}", rm.path),
        FileChange::Symlink(link) => format!("symlink {} -> {}", link.link, link.target),
    }
}
