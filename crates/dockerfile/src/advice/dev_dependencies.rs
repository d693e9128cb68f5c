//! Development dependencies are installed in the stage that is shipped.

use super::reader::{Reader, Step};
use super::shell::base;
use super::tools::{self, requirements, verb};
use super::{Advice, Topic};
use crate::ast::{Kind, Stage};

/// See the module.
pub(super) const TOPIC: Topic =
    Topic { name: "dev-dependencies", title: "development dependencies are in the runtime stage" };

pub(super) fn check(reader: &Reader<'_>, out: &mut Vec<Advice>) {
    let Some(stage) = reader.last() else { return };
    if !stage.instructions.iter().any(|i| matches!(i.kind, Kind::Cmd(_) | Kind::Entrypoint(_))) {
        return;
    }
    for step in reader.steps(stage) {
        for command in &step.commands {
            let Some((what, old, new)) = wanting(reader, stage, &step, command) else { continue };
            let text = reader.text(step.instruction);
            let edits = match text.contains(&old) {
                true => vec![Reader::replace(step.instruction, &text.replacen(&old, &new, 1))],
                false => Vec::new(),
            };
            out.push(Advice {
                topic: &TOPIC,
                lines: step.instruction.lines,
                reason: format!("{what} are installed in the stage that is shipped, and nothing there runs them"),
                ready: !edits.is_empty(),
                edits,
            });
        }
    }
}

/// Returns what is too much, and how the command is to be changed.
fn wanting(
    reader: &Reader<'_>,
    stage: &Stage,
    step: &Step<'_>,
    command: &[String],
) -> Option<(String, String, String)> {
    let text = |name: &str| reader.context.texts.get(name).map_or("", String::as_str);
    let has = |flags: &[&str]| command.iter().any(|w| flags.iter().any(|f| w.starts_with(f)));
    let name = command.first().map_or("", |w| base(w));
    let call = format!("{name} {}", verb(command)).trim_end().to_owned();
    let add = |what: &str, flag: &str| Some((what.to_owned(), call.clone(), format!("{call} {flag}")));
    match tools::of(command)?.name {
        "npm" | "pnpm" | "yarn" => {
            let json: serde_json::Value = serde_json::from_str(text("package.json")).unwrap_or_default();
            let some = json["devDependencies"].as_object().is_some_and(|d| !d.is_empty());
            let production = sets(stage, "NODE_ENV", "production") || has(&["--omit", "--production", "--prod", "-P"]);
            if !some || production || builds(reader, stage, step.index) {
                return None;
            }
            let flag = match name {
                "npm" => "--omit=dev",
                "pnpm" => "--prod",
                _ => "--production",
            };
            add("the devDependencies of package.json", flag)
        }
        "composer" if text("composer.json").contains("\"require-dev\"") && !has(&["--no-dev"]) => {
            add("the packages of require-dev", "--no-dev")
        }
        "poetry" if !has(&["--only", "--without", "--no-dev"]) => {
            let dev = text("pyproject.toml").contains("[tool.poetry.group.dev")
                || text("pyproject.toml").contains("dev-dependencies");
            if dev { add("the packages of the dev group", "--only main") } else { None }
        }
        "uv" if verb(command) == "sync" && !has(&["--no-dev", "--no-default-groups"]) => {
            let dev = text("pyproject.toml").contains("[dependency-groups]")
                || text("pyproject.toml").contains("dev-dependencies");
            if dev { add("the packages of the dev group", "--no-dev") } else { None }
        }
        "pip" => {
            let dev = requirements(command).into_iter().find(|f| {
                f.split(['.', '-', '_', '/']).any(|p| matches!(p, "dev" | "test" | "tests" | "development"))
            })?;
            let with = format!(" -r {dev}");
            Some((format!("the packages of {dev}"), with, String::new()))
        }
        "bundler" => {
            let gemfile = text("Gemfile");
            let groups = gemfile.contains("group :development") || gemfile.contains("group :test");
            let without = stage.instructions.iter().any(|i| i.code.contains("BUNDLE_WITHOUT")) || has(&["--without"]);
            let call = "bundle install".to_owned();
            let new = "BUNDLE_WITHOUT=development:test bundle install".to_owned();
            (groups && !without).then(|| ("the gems of the development and test groups".to_owned(), call, new))
        }
        _ => None,
    }
}

/// Tells whether a stage sets a variable.
fn sets(stage: &Stage, name: &str, value: &str) -> bool {
    stage.instructions.iter().any(|i| match &i.kind {
        Kind::Env(pairs) => pairs.iter().any(|p| p.key == name && p.value.trim_matches('"') == value),
        _ => false,
    })
}

/// Tells whether something after the install runs scripts of the project, which may need everything.
fn builds(reader: &Reader<'_>, stage: &Stage, after: usize) -> bool {
    let script = |c: &Vec<String>| {
        let name = c.first().map_or("", |w| base(w));
        name == "npx" || matches!(name, "npm" | "pnpm" | "yarn") && tools::of(c).is_none()
    };
    let runs = reader.steps(stage).iter().any(|s| s.index >= after && s.commands.iter().any(script));
    let started = stage.instructions.iter().any(|i| match &i.kind {
        Kind::Cmd(c) | Kind::Entrypoint(c) => {
            let text = c.args.join(" ");
            text.contains("run dev") || text.starts_with("npx") || text.contains("nodemon")
        }
        _ => false,
    });
    runs || started
}
