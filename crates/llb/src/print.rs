//! A text form of a graph, for debugging and for expected results in tests.

use std::fmt::Write;

use crate::graph::Graph;
use crate::op::{FileChange, FileInput, MountKind, Op};

/// Returns one paragraph an operation, inputs first. Operations are numbered, since digests say nothing to a reader.
pub fn print(graph: &Graph) -> String {
    let mut out = String::new();
    let number = |digest| graph.vertices().iter().position(|v| v.digest == digest).unwrap_or(usize::MAX);
    for (i, vertex) in graph.vertices().iter().enumerate() {
        let inputs: Vec<String> = vertex
            .inputs
            .iter()
            .map(|e| match e.index {
                0 => format!("#{}", number(e.vertex)),
                index => format!("#{}.{index}", number(e.vertex)),
            })
            .collect();
        let _ = write!(out, "#{i} ");
        describe(&mut out, &vertex.op);
        let _ = writeln!(out);
        if !inputs.is_empty() {
            let _ = writeln!(out, "  inputs: {}", inputs.join(" "));
        }
        if let Some(platform) = &vertex.platform {
            let _ = writeln!(out, "  platform: {platform}");
        }
        for (key, value) in &vertex.metadata.description {
            let _ = writeln!(out, "  {key}: {value}");
        }
        if vertex.ignore_cache() {
            let _ = writeln!(out, "  ignore-cache");
        }
    }
    let result = graph.result();
    let _ = writeln!(out, "result: #{}.{}", number(result.vertex), result.index);
    out
}

fn describe(out: &mut String, op: &Op) {
    let _ = match op {
        Op::Source(source) => {
            let _ = write!(out, "source {}", source.identifier);
            source.attrs.iter().try_for_each(|(k, v)| write!(out, "\n  {k}={v}"))
        }
        Op::Exec(exec) => {
            let _ = write!(out, "exec {:?} cwd={:?}", exec.meta.args, exec.meta.cwd);
            if !exec.meta.user.is_empty() {
                let _ = write!(out, " user={}", exec.meta.user);
            }
            let _ = exec.meta.env.iter().try_for_each(|e| write!(out, "\n  env {e}"));
            exec.mounts.iter().try_for_each(|m| {
                write!(out, "\n  mount {} {}", m.dest, mount_kind(&m.kind))?;
                write!(out, " in={} out={}", opt(m.input), opt(m.output))?;
                if !m.selector.is_empty() {
                    write!(out, " from={}", m.selector)?;
                }
                if m.readonly { write!(out, " ro") } else { Ok(()) }
            })
        }
        Op::File(file) => {
            let _ = write!(out, "file");
            file.actions.iter().try_for_each(|a| {
                write!(out, "\n  {} ", file_input(a.input))?;
                match &a.change {
                    FileChange::Copy(c) => {
                        write!(out, "copy {}:{} -> {}", file_input(a.secondary), c.src, c.dest)
                    }
                    FileChange::Mkfile(f) => write!(out, "mkfile {} {:o} {} bytes", f.path, f.mode, f.data.len()),
                    FileChange::Mkdir(d) => write!(out, "mkdir {} {:o}", d.path, d.mode),
                    FileChange::Rm(r) => write!(out, "rm {}", r.path),
                    FileChange::Symlink(s) => write!(out, "symlink {} -> {}", s.link, s.target),
                }
            })
        }
        Op::Merge(merge) => write!(out, "merge {:?}", merge.inputs),
        Op::Diff(diff) => write!(out, "diff {} {}", opt(diff.lower), opt(diff.upper)),
        Op::Build(build) => write!(out, "build {}", opt(build.input)),
        Op::Passthrough(pass) => write!(out, "passthrough {} {:?}", pass.id, pass.outputs),
    };
}

fn opt(index: Option<usize>) -> String {
    index.map_or_else(|| "-".to_owned(), |i| i.to_string())
}

fn file_input(input: FileInput) -> String {
    match input {
        FileInput::Empty => "-".to_owned(),
        FileInput::Input(i) => format!("in{i}"),
        FileInput::Action(i) => format!("act{i}"),
    }
}

fn mount_kind(kind: &MountKind) -> String {
    match kind {
        MountKind::Bind => "bind".to_owned(),
        MountKind::Tmpfs { size: None } => "tmpfs".to_owned(),
        MountKind::Tmpfs { size: Some(size) } => format!("tmpfs({size})"),
        MountKind::Cache { id, sharing } => format!("cache({id},{})", sharing.as_str_name().to_lowercase()),
        MountKind::Secret(file) => format!("secret({})", file.id),
        MountKind::Ssh(file) => format!("ssh({})", file.id),
    }
}
