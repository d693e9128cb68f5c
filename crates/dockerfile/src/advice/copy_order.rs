//! All sources are copied before dependencies are installed: each edit of a source file installs them again.

use super::projects::{self, Before};
use super::reader::{Reader, Step};
use super::tools::{self, First, Tool};
use super::{Advice, Edit, Topic, cache_mount};
use crate::ast::{Instruction, Kind, Stage, Transfer};

/// See the module.
pub(super) const TOPIC: Topic =
    Topic { name: "copy-before-install", title: "sources are copied before dependencies are installed" };

pub(super) fn check(reader: &Reader<'_>, out: &mut Vec<Advice>) {
    for stage in &reader.file.stages {
        let whole = stage.instructions.iter().enumerate().find_map(|(i, instruction)| {
            Some(Whole { index: i, instruction, transfer: Reader::copies_all(instruction)? })
        });
        let Some(whole) = whole else { continue };
        let steps = reader.steps(stage);
        out.extend(steps.iter().find_map(|step| system_packages(reader, stage, &whole, step)));
        let found = |step: &Step<'_>| {
            let (place, tool) = step
                .commands
                .iter()
                .enumerate()
                .find_map(|(n, c)| tools::of(c).filter(|t| t.first != First::Never).map(|t| (n, t)))?;
            // What was installed before the sources came is found in place.
            let before = |s: &Step<'_>| s.index < whole.index && s.commands.iter().any(|c| tools::of(c) == Some(tool));
            let binds = step.run.mounts.iter().any(|m| m.text.contains("type=bind"));
            (step.index > whole.index && !binds && !steps.iter().any(before)).then_some((place, tool))
        };
        let Some((step, (place, tool))) = steps.iter().find_map(|s| Some((s, found(s)?))) else { continue };
        out.push(advice(reader, stage, &whole, step, place, tool));
    }
}

/// Packages of the system need no sources at all.
fn system_packages(reader: &Reader<'_>, stage: &Stage, whole: &Whole<'_>, step: &Step<'_>) -> Option<Advice> {
    let installs = |c: &Vec<String>| tools::of(c).is_some_and(|t| t.first == First::Never);
    let tidies = |c: &Vec<String>| {
        let name = c.first().map_or("", String::as_str);
        matches!(name, "apt-get" | "apt" | "apk" | "dnf" | "microdnf" | "yum" | "set")
            || name == "rm" && c.iter().skip(1).all(|w| w.starts_with(['-', '/']))
    };
    if step.index < whole.index || !step.commands.iter().any(installs) {
        return None;
    }
    let alone = step.commands.iter().all(|c| installs(c) || tidies(c));
    let local =
        step.commands.iter().filter(|c| installs(c)).flatten().any(|w| w.starts_with("./") || w.ends_with(".deb"));
    let between = &stage.instructions[whole.index + 1..step.index];
    let simple =
        between.iter().all(|i| matches!(&i.kind, Kind::Run(_) | Kind::Workdir(_) | Kind::Label(_) | Kind::Expose(_)));
    let text = reader.text(step.instruction);
    (alone && !local).then(|| Advice {
        topic: &TOPIC,
        lines: step.instruction.lines,
        reason: format!(
            "line {} copies all files, so that every edit of one of them installs these packages again, which need none \
             of them",
            whole.instruction.lines.first
        ),
        edits: vec![
            Edit::dockerfile(whole.instruction.lines.first, 0, &text),
            Reader::replace(step.instruction, ""),
        ],
        ready: simple && !text.contains('$'),
    })
}

/// The instruction that copies everything.
struct Whole<'a> {
    index: usize,
    instruction: &'a Instruction,
    transfer: &'a Transfer,
}

fn advice(
    reader: &Reader<'_>,
    stage: &Stage,
    whole: &Whole<'_>,
    step: &Step<'_>,
    place: usize,
    tool: &'static Tool,
) -> Advice {
    let mut reason = format!(
        "line {} copies all files, so that every edit of one of them runs {} again; with only {} copied before it, it \
         runs again when these change",
        whole.instruction.lines.first,
        tool.name,
        if tool.manifests.is_empty() { "its lists of dependencies" } else { tool.manifests[0] },
    );
    let words = &step.commands[place];
    let (manifests, complete) = manifests(reader, tool, words);
    let between = &stage.instructions[whole.index + 1..step.index];
    let simple = between
        .iter()
        .all(|i| matches!(&i.kind, Kind::Env(_) | Kind::Arg(_) | Kind::Label(_) | Kind::Expose(_) | Kind::Shell(_)));
    let mut ready = complete && simple && step.run.command.shell && step.run.command.heredocs.is_empty();
    if let Some(script) = install_script(reader, tool) {
        ready = false;
        reason.push_str(&format!("; its `{script}` script runs on install, and may need sources"));
    }
    let copy = copy_line(whole.instruction, whole.transfer, &manifests);
    let special = match tool.name {
        "cargo" => projects::cargo(reader.context, words),
        "nuget" => projects::dotnet(reader.context),
        _ => None,
    };
    let edits = match (&tool.first, &special) {
        (First::ByHand(_), Some(before)) => {
            ready = simple && step.run.command.shell && step.run.command.heredocs.is_empty();
            install_before(reader, whole, step, words, before, tool)
        }
        (First::Itself, _) => match split(reader, step, place) {
            Some((install, rest)) => move_sources(reader, whole, step, &copy, &install, &rest),
            None => {
                ready = false;
                Vec::new()
            }
        },
        (First::Fetch(command), _) => {
            let keyword = &step.instruction.keyword;
            let run = cache_mount::mounted(&format!("{keyword} {command}"), &[tool], None, reader.file.escape);
            vec![Edit::dockerfile(whole.instruction.lines.first, 0, &format!("{copy}\n{run}"))]
        }
        (First::ByHand(what), None) => {
            reason.push_str(&format!("; {what}"));
            ready = false;
            Vec::new()
        }
        (First::Never, _) => Vec::new(),
    };
    Advice { topic: &TOPIC, lines: step.instruction.lines, reason, edits, ready }
}

/// Installs from some files before the sources come, in a step of its own.
fn install_before(
    reader: &Reader<'_>,
    whole: &Whole<'_>,
    step: &Step<'_>,
    words: &[String],
    before: &Before,
    tool: &Tool,
) -> Vec<Edit> {
    let copy = copy_line(whole.instruction, whole.transfer, &before.files);
    let keyword = &step.instruction.keyword;
    let run = cache_mount::mounted(&format!("{keyword} {}", before.command), &[tool], None, reader.file.escape);
    let mut edits = vec![Edit::dockerfile(whole.instruction.lines.first, 0, &format!("{copy}\n{run}"))];
    let text = reader.text(step.instruction);
    let start = words.iter().take(2).map(String::as_str).collect::<Vec<_>>().join(" ");
    if let (Some(prepare), Some(at)) = (&before.prepare, text.find(&start)) {
        let text = format!("{}{prepare} && {}", &text[..at], &text[at..]);
        edits.push(Reader::replace(step.instruction, &text));
    }
    edits
}

/// Copies the manifests first, then installs, then copies the rest.
fn move_sources(
    reader: &Reader<'_>,
    whole: &Whole<'_>,
    step: &Step<'_>,
    copy: &str,
    install: &str,
    rest: &str,
) -> Vec<Edit> {
    let sources = reader.text(whole.instruction);
    let after = if rest.is_empty() { sources } else { format!("{sources}\n{rest}") };
    vec![Reader::replace(whole.instruction, copy), Reader::replace(step.instruction, &format!("{install}\n{after}"))]
}

/// Returns the instruction that copies the manifests alone, with the flags and the keyword of the one that copies all.
fn copy_line(instruction: &Instruction, transfer: &Transfer, manifests: &[String]) -> String {
    let flags: Vec<&str> = instruction
        .code
        .split_whitespace()
        .skip(1)
        .take_while(|w| w.starts_with("--"))
        .filter(|f| !f.starts_with("--exclude"))
        .collect();
    let dest = match transfer.dest.as_str() {
        "." | "./" => "./".to_owned(),
        dest if dest.ends_with('/') => dest.to_owned(),
        dest => format!("{dest}/"),
    };
    let mut words = vec!["COPY"];
    words.extend(flags);
    words.extend(manifests.iter().map(String::as_str));
    words.push(&dest);
    words.join(" ")
}

/// Returns the files that the tool needs, and whether these are all.
fn manifests(reader: &Reader<'_>, tool: &Tool, words: &[String]) -> (Vec<String>, bool) {
    let context = reader.context;
    if tool.name == "pip" {
        let files = tools::requirements(words);
        let complete =
            !files.is_empty() && files.iter().all(|f| !f.contains(['$', '/']) && (!context.known || context.has(f)));
        let nested = files.iter().filter_map(|f| context.texts.get(f)).any(|t| {
            t.lines().any(|l| l.trim_start().starts_with("-r") || l.trim_start().starts_with("-e") || l.contains("./"))
        });
        let files = if files.is_empty() { vec!["requirements.txt".to_owned()] } else { files };
        return (files, complete && !nested);
    }
    let mut out: Vec<String> = tool.manifests.iter().map(|m| (*m).to_owned()).collect();
    if !context.known {
        out.extend(tool.optional.iter().take(1).map(|m| (*m).to_owned()));
        return (out, false);
    }
    let complete = out.iter().all(|m| context.has(m));
    out.extend(tool.optional.iter().filter(|m| context.has(m)).map(|m| (*m).to_owned()));
    let any = !out.is_empty();
    (out, complete && any && !workspace(reader, tool))
}

/// Tells whether the manifests at the root name others below it.
fn workspace(reader: &Reader<'_>, tool: &Tool) -> bool {
    let text = |name: &str| reader.context.texts.get(name).map_or("", String::as_str);
    match tool.name {
        "npm" | "pnpm" | "yarn" => {
            let json: serde_json::Value = serde_json::from_str(text("package.json")).unwrap_or_default();
            let local = json.to_string();
            !json["workspaces"].is_null() || local.contains("\"file:") || reader.context.has("pnpm-workspace.yaml")
        }
        "maven" => text("pom.xml").contains("<modules>"),
        "gradle" => text("settings.gradle").contains("include") || text("settings.gradle.kts").contains("include"),
        "go" => text("go.mod").contains("=> ./") || text("go.mod").contains("=> ../"),
        "bundler" => text("Gemfile").contains("path:") || text("Gemfile").contains("gemspec"),
        "uv" | "poetry" => text("pyproject.toml").contains("path ="),
        "composer" => text("composer.json").contains("\"path\""),
        _ => false,
    }
}

/// Returns the script that a package of Node runs when its dependencies are installed.
fn install_script(reader: &Reader<'_>, tool: &Tool) -> Option<&'static str> {
    if !matches!(tool.name, "npm" | "pnpm" | "yarn") {
        return None;
    }
    let json: serde_json::Value = serde_json::from_str(reader.context.texts.get("package.json")?).ok()?;
    ["preinstall", "install", "postinstall", "prepare"].into_iter().find(|name| !json["scripts"][*name].is_null())
}

/// Splits a step into the part that installs and what comes after it. None when something comes before that needs
/// sources.
fn split(reader: &Reader<'_>, step: &Step<'_>, place: usize) -> Option<(String, String)> {
    let text = reader.text(step.instruction);
    if step.commands.iter().all(|c| tools::of(c).is_some()) {
        return Some((text, String::new()));
    }
    let harmless =
        |c: &Vec<String>| c.first().is_some_and(|w| matches!(w.as_str(), "set" | "corepack" | "npm" | "pip"));
    if place > 0 && !step.commands[..place].iter().all(harmless) || text.contains([';', '|', '(', '\'', '"']) {
        return None;
    }
    let at = text.match_indices("&&").nth(place)?.0;
    let install = text[..at].trim_end().trim_end_matches(reader.file.escape).trim_end();
    let rest = text[at + 2..].trim_start().trim_start_matches(reader.file.escape).trim_start();
    Some((install.to_owned(), format!("{} {rest}", step.instruction.keyword)))
}
