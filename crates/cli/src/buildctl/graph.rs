//! `buildctl debug dump-llb`: a definition as JSON, one operation a line, or as a graph for Graphviz.

use std::io::Read;

use kiln_llb::pb;
use kiln_stdx::Digest;
use prost::Message;
use prost::bytes::Bytes;
use serde::Serialize;

use super::args::DumpLlbFlags;
use crate::env::Env;
use crate::error::{CliError, io_text};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    op: pb::Op,
    digest: String,
    op_metadata: pb::OpMetadata,
}

/// Writes a definition to standard output.
pub fn dump(flags: &DumpLlbFlags, env: &Env) -> Result<(), CliError> {
    let mut data = Vec::new();
    let read = match flags.file.as_deref().filter(|path| path.as_os_str() != "-" && !path.as_os_str().is_empty()) {
        Some(path) => std::fs::read(env.cwd().join(path)).map(|read| data = read),
        None => std::io::stdin().lock().read_to_end(&mut data).map(drop),
    };
    read.map_err(|e| CliError::user(format!("cannot read the definition: {}", io_text(&e))))?;
    let entries = entries(&data)?;
    if flags.dot {
        return crate::print(&dot(&entries));
    }
    for entry in &entries {
        let mut line = serde_json::to_string(entry).map_err(|e| CliError::user(e.to_string()))?;
        if entry.op.op.is_none() {
            // The last one does nothing but name the result.
            line = line.replacen("\"Op\":null", "\"Op\":{}", 1);
        }
        crate::print(&format!("{line}\n"))?;
    }
    Ok(())
}

fn entries(data: &[u8]) -> Result<Vec<Entry>, CliError> {
    let bad = |e: prost::DecodeError| CliError::user(format!("failed to parse the definition: {e}"));
    let definition = pb::Definition::decode(data).map_err(bad)?;
    let entry = |bytes: &Bytes| {
        let digest = Digest::of(bytes).to_string();
        let op_metadata = definition.metadata.get(&digest).cloned().unwrap_or_default();
        Ok::<_, CliError>(Entry { op: pb::Op::decode(bytes.as_ref()).map_err(bad)?, digest, op_metadata })
    };
    definition.def.iter().map(entry).collect()
}

fn dot(entries: &[Entry]) -> String {
    let mut out = String::from("digraph {\n");
    for entry in entries {
        let (label, shape) = describe(entry);
        out.push_str(&format!("  {:?} [label={label:?} shape={shape:?}];\n", entry.digest));
    }
    for entry in entries {
        for (number, input) in entry.op.inputs.iter().enumerate() {
            let mut label = "";
            if let Some(pb::op::Op::Exec(exec)) = &entry.op.op {
                let of_input = |m: &&pb::Mount| usize::try_from(m.input) == Ok(number) && m.dest != "/";
                label = exec.mounts.iter().rfind(of_input).map_or("", |m| &m.dest);
            }
            out.push_str(&format!("  {:?} -> {:?} [label={label:?}];\n", input.digest, entry.digest));
        }
    }
    out + "}\n"
}

fn describe(entry: &Entry) -> (String, &'static str) {
    use pb::op::Op;
    match &entry.op.op {
        Some(Op::Source(source)) => (source.identifier.clone(), "ellipse"),
        Some(Op::Exec(exec)) => (exec.meta.as_ref().map(|m| m.args.join(" ")).unwrap_or_default(), "box"),
        Some(Op::Build(_)) => ("build".to_owned(), "box3d"),
        Some(Op::Merge(_)) => ("merge".to_owned(), "invtriangle"),
        Some(Op::Diff(_)) => ("diff".to_owned(), "doublecircle"),
        Some(Op::File(file)) => (file.actions.iter().map(action).collect::<Vec<_>>().join(","), "note"),
        _ => (entry.digest.clone(), "plaintext"),
    }
}

fn action(of: &pb::FileAction) -> String {
    use pb::file_action::Action;
    match &of.action {
        Some(Action::Copy(a)) => format!("copy{{src={}, dest={}}}", a.src, a.dest),
        Some(Action::Mkfile(a)) => format!("mkfile{{path={}}}", a.path),
        Some(Action::Mkdir(a)) => format!("mkdir{{path={}}}", a.path),
        Some(Action::Rm(a)) => format!("rm{{path={}}}", a.path),
        Some(Action::Symlink(a)) => format!("symlink{{oldpath={}, newpath={}}}", a.oldpath, a.newpath),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graph_has_operations_and_edges() {
        let source = pb::Op {
            op: Some(pb::op::Op::Source(pb::SourceOp { identifier: "local://c".into(), ..Default::default() })),
            ..Default::default()
        };
        let below = source.encode_to_vec();
        let digest = Digest::of(&below).to_string();
        let top = pb::Op {
            inputs: vec![pb::Input { digest: digest.clone(), index: 0 }],
            op: Some(pb::op::Op::Merge(pb::MergeOp::default())),
            ..Default::default()
        };
        let definition = pb::Definition { def: vec![below.into(), top.encode_to_vec().into()], ..Default::default() };
        let entries = entries(&definition.encode_to_vec()).unwrap();
        let text = dot(&entries);
        assert!(text.contains(&format!("  \"{digest}\" [label=\"local://c\" shape=\"ellipse\"];\n")), "{text}");
        assert!(text.contains(&format!("  \"{digest}\" -> \"{}\" [label=\"\"];\n", entries[1].digest)), "{text}");
        assert!(super::entries(b"\xff\xff").is_err());
    }
}
