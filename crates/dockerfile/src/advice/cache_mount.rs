//! Dependencies are installed without a cache mount: each time the step runs, everything is downloaded again.

use super::reader::{Reader, Step};
use super::tools::{self, Tool};
use super::{Advice, Topic};
use crate::lex::csv;

/// See the module.
pub(super) const TOPIC: Topic =
    Topic { name: "cache-mount", title: "dependencies are installed without a cache mount" };

/// What is left out beside a cache mount: it would empty the cache, or keep the tool from using it.
const CLEANUPS: [&str; 8] = [
    r"rm\s+-rf?\s+/var/lib/apt/lists/?\*?",
    r"rm\s+-rf?\s+/var/cache/apk/\*",
    r"apt-get\s+(?:-y\s+)?clean",
    r"(?:micro)?dnf\s+(?:-y\s+)?clean\s+all",
    r"yum\s+(?:-y\s+)?clean\s+all",
    r"npm\s+cache\s+clean\s+--force",
    r"yarn\s+cache\s+clean",
    r"composer\s+clear-cache",
];

pub(super) fn check(reader: &Reader<'_>, out: &mut Vec<Advice>) {
    for stage in &reader.file.stages {
        for step in reader.steps(stage) {
            let mut wanting: Vec<&'static Tool> = Vec::new();
            for tool in step.commands.iter().filter_map(|c| tools::of(c)) {
                if !wanting.contains(&tool) && !has_cache(&step, tool) {
                    wanting.push(tool);
                }
            }
            // Packages that are removed again in the same step, or an install without network, gain as well.
            if wanting.is_empty() || inherits_cache(&step) {
                continue;
            }
            let user = reader.user(stage, step.index);
            let names: Vec<&str> = wanting.iter().map(|t| t.name).collect();
            out.push(Advice {
                topic: &TOPIC,
                lines: step.instruction.lines,
                reason: format!(
                    "{} downloads everything again whenever this step runs; a cache mount keeps the downloads between \
                     builds and out of the image",
                    names.join(" and ")
                ),
                edits: vec![Reader::replace(step.instruction, &with_mounts(reader, &step, &wanting, user))],
                ready: user.is_none() && step.run.command.shell && step.run.command.heredocs.is_empty(),
            });
        }
    }
}

/// Tells whether a step has a mount for the tool's downloads, or one that no tool is known for.
fn has_cache(step: &Step<'_>, tool: &Tool) -> bool {
    let path = |spec: &str| spec.split(',').next().unwrap_or(spec).trim_start_matches('~').to_owned();
    let known = |tool: &Tool, target: &str| tool.caches.iter().any(|c| target.ends_with(&path(c)));
    targets(step).iter().any(|target| {
        known(tool, target) || target.contains(tool.name) || !tools::TOOLS.iter().any(|t| known(t, target))
    })
}

/// A step without network has what it needs.
fn inherits_cache(step: &Step<'_>) -> bool {
    step.run.network == crate::ast::Network::None
}

/// Returns the targets of the step's cache mounts.
fn targets(step: &Step<'_>) -> Vec<String> {
    let mut out = Vec::new();
    for mount in &step.run.mounts {
        let fields = csv::fields(&mount.text).unwrap_or_default();
        if !fields.iter().any(|f| f == "type=cache") {
            continue;
        }
        let target = fields.iter().find_map(|f| {
            let (key, value) = f.split_once('=')?;
            matches!(key, "target" | "dst" | "destination").then(|| value.trim_end_matches('/').to_owned())
        });
        out.extend(target);
    }
    out
}

/// Returns the step's text with the mounts added and what works against them removed.
fn with_mounts(reader: &Reader<'_>, step: &Step<'_>, tools: &[&Tool], user: Option<&str>) -> String {
    let text = mounted(&reader.text(step.instruction), tools, user, reader.file.escape);
    if tools.contains(&&tools::APT) { keep_archives(&text) } else { text }
}

/// Adds the tools' mounts to the text of a `RUN`.
pub(super) fn mounted(text: &str, tools: &[&Tool], user: Option<&str>, escape: char) -> String {
    let (keyword, rest) = split_keyword(text);
    let rest = tools.iter().fold(without_cleanups(rest), |rest, tool| settled(&rest, tool));
    let home = user.map_or_else(|| "/root".to_owned(), |u| format!("/home/{u}"));
    let owner =
        user.map(|u| if u.bytes().all(|b| b.is_ascii_digit()) { format!(",uid={u}") } else { ",uid=1000".into() });
    let mounts: Vec<String> = tools
        .iter()
        .flat_map(|t| t.caches)
        .map(|c| format!("--mount=type=cache,target={}{}", c.replace('~', &home), owner.as_deref().unwrap_or_default()))
        .collect();
    match mounts.as_slice() {
        [one] if one.len() + rest.lines().next().map_or(0, str::len) < 110 => format!("{keyword}{one} {rest}"),
        _ => {
            let indent = " ".repeat(4);
            let lines: Vec<String> = mounts.iter().map(|m| format!("{m} {escape}\n{indent}")).collect();
            format!("{keyword}{}{rest}", lines.concat())
        }
    }
}

/// Splits a text after its first word and the blanks behind it.
fn split_keyword(text: &str) -> (&str, &str) {
    let indent = text.len() - text.trim_start().len();
    let end = text[indent..].find(char::is_whitespace).map_or(text.len(), |at| indent + at);
    let rest = text[end..].trim_start_matches([' ', '\t']);
    text.split_at(text.len() - rest.len())
}

fn without_cleanups(text: &str) -> String {
    let mut out = text.to_owned();
    for cleanup in CLEANUPS {
        // The operator before it goes with it, and the line break before that.
        let before = format!(r"\s*(?:[\\`]\s*\n\s*)?(?:&&|;)\s*(?:[\\`]\s*\n\s*)?{cleanup}");
        if let Ok(pattern) = regex::Regex::new(&before) {
            out = pattern.replace_all(&out, "").into_owned();
        }
    }
    out
}

/// Changes the flags of a tool so that it uses its cache.
fn settled(text: &str, tool: &Tool) -> String {
    match tool.name {
        "pip" => text.replace(" --no-cache-dir", ""),
        "apk" if text.contains("apk update") => text.replace(" --no-cache", ""),
        "apk" => text.replace(" --no-cache", " --update-cache"),
        "dnf" | "yum" if !text.contains("keepcache") => {
            text.replacen(&format!("{} ", tool.name), &format!("{} --setopt=keepcache=1 ", tool.name), 1)
        }
        _ => text.to_owned(),
    }
}

/// Debian's images delete archives after each install; the cache is to keep them.
fn keep_archives(text: &str) -> String {
    if text.contains("docker-clean") {
        return text.to_owned();
    }
    let first = ["apt-get update", "apt update", "apt-get ", "apt "].iter().find_map(|w| text.find(w));
    match first {
        Some(at) => format!("{}rm -f /etc/apt/apt.conf.d/docker-clean && {}", &text[..at], &text[at..]),
        None => text.to_owned(),
    }
}
