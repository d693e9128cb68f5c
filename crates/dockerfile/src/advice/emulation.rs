//! Builds for other platforms: steps that are emulated though they need not be, and output of the builder's own platform
//! that ends up in an image for another.

use super::reader::{Reader, Step};
use super::shell::base;
use super::tools::verb;
use super::{Advice, Edit, Topic};
use crate::ast::Stage;

/// Emulated though it could run natively.
pub(super) const EMULATED: Topic =
    Topic { name: "emulated", title: "a step is emulated that could run on the build platform" };
/// Native where it must not be.
pub(super) const NATIVE: Topic = Topic {
    name: "native-output",
    title: "native output of a stage on the build platform is copied into another platform",
};

pub(super) fn check(reader: &Reader<'_>, out: &mut Vec<Advice>) {
    let multi = multi_platform(reader);
    for stage in &reader.file.stages {
        if !reader.is_copied(stage) || reader.parent(stage).is_some() {
            continue;
        }
        let steps = reader.steps(stage);
        let on_builder = stage.platform.as_deref().is_some_and(|p| p.contains("BUILDPLATFORM"));
        let found = steps.iter().find_map(|s| Some((s, s.commands.iter().find_map(|c| compiles(c))?)));
        let Some((step, output)) = found else { continue };
        match (on_builder, output) {
            (true, Output::Go | Output::Native) if !crosses(reader, stage) => {
                out.push(native(reader, stage, step, output));
            }
            (false, Output::Go | Output::Portable) if stage.platform.is_none() && multi => {
                out.push(emulated(reader, stage, step, output));
            }
            _ => {}
        }
    }
}

/// What a compiler makes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Output {
    /// The same for all platforms.
    Portable,
    /// For the platform it runs on, unless told otherwise by two variables.
    Go,
    /// For the platform it runs on.
    Native,
}

fn compiles(words: &[String]) -> Option<Output> {
    match (base(words.first()?), verb(words)) {
        ("go", "build" | "install") => Some(Output::Go),
        ("npm" | "pnpm" | "yarn", "run" | "build") if words.iter().any(|w| w == "build") => Some(Output::Portable),
        ("mvn" | "mvnw" | "gradle" | "gradlew", verb) if !verb.is_empty() => Some(Output::Portable),
        ("cargo", "build" | "install") | ("gcc" | "g++" | "cc" | "clang" | "make" | "cmake", _) => Some(Output::Native),
        _ => None,
    }
}

/// Tells whether the file or the build is meant for several platforms.
fn multi_platform(reader: &Reader<'_>) -> bool {
    let words = ["TARGETPLATFORM", "TARGETARCH", "TARGETOS", "BUILDPLATFORM"];
    reader.context.foreign
        || reader.lines.iter().any(|l| !l.trim_start().starts_with('#') && words.iter().any(|w| l.contains(w)))
}

/// Tells whether a stage looks at what is built for.
fn crosses(reader: &Reader<'_>, stage: &Stage) -> bool {
    let words = ["TARGETARCH", "TARGETPLATFORM", "TARGETOS", "GOARCH", "--target", "CROSS", "xx-"];
    stage.instructions.iter().any(|i| words.iter().any(|w| reader.text(i).contains(w)))
}

/// Adds the variables by which Go builds for another platform.
fn cross_go(reader: &Reader<'_>, stage: &Stage, step: &Step<'_>) -> Vec<Edit> {
    let text = reader.text(step.instruction);
    let new = text.replacen("go build", "GOOS=$TARGETOS GOARCH=$TARGETARCH go build", 1);
    let declared = stage.instructions.iter().any(|i| i.code.contains("TARGETARCH"));
    let mut edits = Vec::new();
    if !declared {
        edits.push(Edit::dockerfile(step.instruction.lines.first, 0, "ARG TARGETOS TARGETARCH"));
    }
    if !text.contains("GOARCH") {
        edits.push(Reader::replace(step.instruction, &new));
    }
    edits
}

fn emulated(reader: &Reader<'_>, stage: &Stage, step: &Step<'_>, output: Output) -> Advice {
    let from = reader.lines.get(stage.lines.first as usize - 1).cloned().unwrap_or_default();
    let new = from.replacen(&stage.base, &format!("--platform=$BUILDPLATFORM {}", stage.base), 1);
    let mut edits = vec![Edit::dockerfile(stage.lines.first, 1, &new)];
    if output == Output::Go {
        edits.extend(cross_go(reader, stage, step));
    }
    Advice {
        topic: &EMULATED,
        lines: step.instruction.lines,
        reason: format!(
            "for another platform this stage runs emulated, many times slower; {}, so it can run on the build platform",
            if output == Output::Go {
                "Go builds for any platform"
            } else {
                "what it makes is the same for all platforms"
            }
        ),
        edits,
        ready: false,
    }
}

fn native(reader: &Reader<'_>, stage: &Stage, step: &Step<'_>, output: Output) -> Advice {
    let edits = match output {
        Output::Go => cross_go(reader, stage, step),
        _ => {
            let from = reader.lines.get(stage.lines.first as usize - 1).cloned().unwrap_or_default();
            vec![Edit::dockerfile(stage.lines.first, 1, &from.replacen("--platform=$BUILDPLATFORM ", "", 1))]
        }
    };
    Advice {
        topic: &NATIVE,
        lines: step.instruction.lines,
        reason:
            "this stage runs on the build platform and compiles for it, and a stage for the target platform copies \
                 the result; built for another platform the image holds programs that do not start there"
                .to_owned(),
        edits,
        ready: false,
    }
}
