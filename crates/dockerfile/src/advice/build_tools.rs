//! Compilers and headers are left in the final stage.

use super::reader::{Reader, Step};
use super::shell::base;
use super::tools::verb;
use super::{Advice, Edit, Topic};
use crate::ast::{Kind, Stage};

/// See the module.
pub(super) const TOPIC: Topic = Topic { name: "build-tools", title: "build tools are left in the final stage" };

/// Packages that build software.
const PACKAGES: [&str; 22] = [
    "autoconf",
    "automake",
    "bison",
    "build-base",
    "build-essential",
    "cargo",
    "clang",
    "cmake",
    "default-jdk",
    "flex",
    "g++",
    "gcc",
    "golang",
    "golang-go",
    "libtool",
    "make",
    "maven",
    "gradle",
    "meson",
    "ninja-build",
    "pkg-config",
    "rustc",
];
/// Images that hold a whole toolchain.
const BASES: [&str; 7] = ["golang", "rust", "maven", "gradle", "sdk", "gcc", "buildpack-deps"];

pub(super) fn check(reader: &Reader<'_>, out: &mut Vec<Advice>) {
    let Some(stage) = reader.last() else { return };
    // A stage without a command to run is not what is shipped.
    if !stage.instructions.iter().any(|i| matches!(i.kind, Kind::Cmd(_) | Kind::Entrypoint(_))) {
        return;
    }
    for step in reader.steps(stage) {
        let removed = |c: &Vec<String>| matches!(verb(c), "purge" | "remove" | "autoremove" | "del");
        let names = installed(&step);
        if names.is_empty() || step.commands.iter().any(removed) {
            continue;
        }
        out.push(Advice {
            topic: &TOPIC,
            lines: step.instruction.lines,
            reason: format!(
                "the image that is shipped keeps what only building needs ({}); build in a stage of its own and copy what \
                 was built",
                names.join(", ")
            ),
            edits: vec![
                Edit::dockerfile(stage.lines.first, 0, &build_stage(reader, stage, &step)),
                Reader::replace(
                    step.instruction,
                    &format!("COPY --from={} /path/of/what/was/built /usr/local/bin/", free_name(reader)),
                ),
            ],
            ready: false,
        });
    }
    compiled_in_place(reader, stage, out);
}

/// Returns the build tools that a step installs.
fn installed(step: &Step<'_>) -> Vec<String> {
    let mut out = Vec::new();
    for command in &step.commands {
        let name = command.first().map_or("", |w| base(w));
        let installs = matches!(
            (name, verb(command)),
            ("apt-get" | "apt" | "dnf" | "microdnf" | "yum", "install") | ("apk", "add")
        );
        if !installs {
            continue;
        }
        let tool = |w: &&String| {
            let bare = w.split(['=', '~', '<', '>']).next().unwrap_or(w);
            PACKAGES.contains(&bare) || bare.ends_with("-dev") || bare.ends_with("-devel") || bare.ends_with("-jdk")
        };
        out.extend(command.iter().skip(2).filter(tool).cloned());
    }
    out
}

fn build_stage(reader: &Reader<'_>, stage: &Stage, step: &Step<'_>) -> String {
    let text = reader.text(step.instruction);
    let name = free_name(reader);
    format!("{} {} AS {name}\n{text}\n# … copy the sources and build here\n", stage.keyword, stage.base)
}

/// Returns a name that no stage has.
fn free_name(reader: &Reader<'_>) -> &'static str {
    if reader.stage("build").is_none() { "build" } else { "build-tools" }
}

/// A toolchain's own image is the base of what is shipped.
fn compiled_in_place(reader: &Reader<'_>, stage: &Stage, out: &mut Vec<Advice>) {
    let name = stage.base.split(['@', ':']).next().map_or("", base);
    if !BASES.contains(&name) || reader.parent(stage).is_some() {
        return;
    }
    let compiles = |c: &Vec<String>| {
        matches!(
            (c.first().map_or("", |w| base(w)), verb(c)),
            ("go" | "cargo", "build" | "install")
                | ("dotnet", "publish" | "build")
                | ("mvn" | "gradle", _)
                | ("gcc" | "g++" | "make" | "cc", _)
        )
    };
    let Some(step) = reader.steps(stage).into_iter().find(|s| s.commands.iter().any(compiles)) else { return };
    let command = stage.instructions.iter().find(|i| matches!(i.kind, Kind::Cmd(_) | Kind::Entrypoint(_)));
    let from = reader.lines.get(stage.lines.first as usize - 1).cloned().unwrap_or_default();
    let named = if stage.alias.is_some() { from } else { format!("{from} AS build") };
    let build = stage.name.as_deref().unwrap_or("build");
    let runtime = match name {
        "golang" | "rust" | "gcc" => "debian:stable-slim",
        "sdk" => "mcr.microsoft.com/dotnet/aspnet:VERSION",
        _ => "eclipse-temurin:VERSION-jre",
    };
    let mut edits = vec![Edit::dockerfile(stage.lines.first, stage.lines.last + 1 - stage.lines.first, &named)];
    if let Some(command) = command {
        let text = format!("\nFROM {runtime}\nCOPY --from={build} /path/of/what/was/built /usr/local/bin/");
        edits.push(Edit::dockerfile(command.lines.first, 0, &text));
    }
    out.push(Advice {
        topic: &TOPIC,
        lines: stage.lines,
        reason: format!(
            "the image that is shipped holds all of {name}, which line {} needs to build and nothing needs to run; copy \
             what was built into a smaller base",
            step.instruction.lines.first
        ),
        edits,
        ready: false,
    });
}
