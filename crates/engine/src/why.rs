//! Why steps ran, in words for people and as data for programs.

use std::time::{Duration, UNIX_EPOCH};

use kiln_solver::{FieldChange, MissReason, Renamed};
use kiln_stdx::Digest;
use serde::{Deserialize, Serialize};

use crate::provenance;

/// Media type of the list of reasons that is kept with a build's record: JSON, an array of [`StepReason`].
pub const REASONS_TYPE: &str = "application/vnd.kiln.reasons.v1+json";

/// Words in names of variables whose values are not shown.
const SECRET: &[&str] =
    &["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];

/// Why one step ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepReason {
    /// The step's vertex.
    pub vertex: Digest,
    /// The step's name.
    pub name: String,
    /// The reason in a line.
    pub text: String,
    /// The step that the reason goes back to, when that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<RootCause>,
    /// All that is known.
    pub reason: MissReason,
}

/// Where a cascade began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootCause {
    /// The step's name.
    pub name: String,
    /// Why it ran, in a line.
    pub text: String,
}

/// What a build says of its cache, for reasons that follow from it.
#[derive(Debug, Clone, Default)]
pub struct Circumstances {
    /// The option by which steps were asked to run, `--no-cache` or `--no-cache-filter`.
    pub no_cache: Option<String>,
    /// Caches that could not be read, and why.
    pub unreadable: Vec<String>,
}

impl StepReason {
    /// Returns the reason of a step, in the circumstances of its build.
    pub fn new(vertex: Digest, name: String, reason: MissReason, around: &Circumstances) -> Self {
        let (path, root) = reason.root();
        let root_text = text(root, around);
        let root = path.last().map(|name| RootCause { name: (*name).to_owned(), text: root_text.clone() });
        let text = match (&reason, &root) {
            (_, None) => root_text,
            (MissReason::InputChanged { .. }, Some(root)) => format!("{} ran: {}", root.name, root.text),
            (_, Some(root)) => format!("{}; {} ran: {}", text(&reason, around), root.name, root.text),
        };
        Self { vertex, name, text, root, reason }
    }
}

fn text(reason: &MissReason, around: &Circumstances) -> String {
    match reason {
        MissReason::IgnoreCache => {
            format!("asked for by {}", around.no_cache.as_deref().unwrap_or("the definition of the build"))
        }
        MissReason::NoRecord if !around.unreadable.is_empty() => {
            format!("{reason}, and a cache could not be read: {}", around.unreadable.join("; "))
        }
        MissReason::Evicted { eviction: Some(eviction) } => {
            format!("{reason}, at {}", utc(eviction.at))
        }
        MissReason::OpChanged { renamed: Some(Renamed { old, new }), .. } if words(old) != words(new) => {
            format!("instruction changed: {} -> {}", words(old), words(new))
        }
        MissReason::OpChanged { changes, renamed: Some(_) } => {
            text(&MissReason::OpChanged { changes: changes.clone(), renamed: None }, around)
        }
        MissReason::InputChanged { name, was: Some(was), .. } if words(name) != words(was) => {
            format!("it follows `{}` now, not `{}`", words(name), words(was))
        }
        // All else follows from it.
        MissReason::OpChanged { changes, .. } if changes.iter().any(is_platform) => {
            changes.iter().filter(|change| is_platform(change)).map(ToString::to_string).collect()
        }
        // A tag that points elsewhere.
        MissReason::OpChanged { changes, .. } if changes.iter().any(|change| change.field == "digest") => {
            let value = |field: &str| changes.iter().find(|change| change.field == field);
            let image = value("image").and_then(|change| change.new.as_deref()).map(|name| {
                let name = name.split_once('@').map_or(name, |(name, _)| name);
                format!(" {name}")
            });
            let moved = value("digest").map(base).unwrap_or_default();
            format!("base image{} changed: {moved}", image.unwrap_or_default())
        }
        other => other.to_string(),
    }
}

/// Returns a step's name without its place, which moves with every step that comes or goes before it.
fn words(name: &str) -> &str {
    let rest = name.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    rest.map_or(name, |(_, words)| words.trim_start())
}

fn utc(seconds: i64) -> String {
    provenance::seconds(UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

fn is_platform(change: &FieldChange) -> bool {
    change.field == "platform"
}

fn base(change: &FieldChange) -> String {
    let none = || "none".to_owned();
    format!("{} -> {}", change.old.clone().unwrap_or_else(none), change.new.clone().unwrap_or_else(none))
}

/// Returns whether a variable's name says that its value is a secret.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_lowercase();
    name.split(|c: char| !c.is_alphanumeric()).any(|word| SECRET.contains(&word))
}

#[cfg(test)]
mod tests {
    use kiln_solver::{Difference, Eviction, Part, VertexDigest};

    use super::*;

    fn changed(field: &str, old: &str, new: &str) -> MissReason {
        let change = FieldChange { field: field.to_owned(), old: Some(old.to_owned()), new: Some(new.to_owned()) };
        MissReason::OpChanged { changes: vec![change], renamed: None }
    }

    fn moved() -> MissReason {
        let change = |field: &str, old: &str, new: &str| FieldChange {
            field: field.to_owned(),
            old: Some(old.to_owned()),
            new: Some(new.to_owned()),
        };
        let image = change("image", "layout://base@sha256:1", "layout://base@sha256:2");
        MissReason::OpChanged { changes: vec![change("digest", "sha256:1", "sha256:2"), image], renamed: None }
    }

    fn renamed(old: &str, new: &str) -> MissReason {
        let MissReason::OpChanged { changes, .. } = changed("user", "a", "b") else { unreachable!() };
        let renamed = Some(Renamed { old: old.to_owned(), new: new.to_owned() });
        MissReason::OpChanged { changes, renamed }
    }

    fn follows(name: &str, was: &str) -> MissReason {
        let vertex = VertexDigest(Digest::of(name));
        let was = Some(was.to_owned());
        MissReason::InputChanged { input: 0, vertex, name: name.to_owned(), was, cause: None }
    }

    fn after(name: &str, cause: MissReason) -> MissReason {
        let vertex = VertexDigest(Digest::of(name));
        MissReason::InputChanged { input: 0, vertex, name: name.to_owned(), was: None, cause: Some(Box::new(cause)) }
    }

    fn told(reason: MissReason, around: &Circumstances) -> StepReason {
        StepReason::new(Digest::of("step"), "step".to_owned(), reason, around)
    }

    #[test]
    fn each_reason_has_its_words() {
        let plain = Circumstances::default();
        let flag =
            Circumstances { no_cache: Some("--no-cache".to_owned()), unreadable: vec!["reg/x: not found".into()] };
        let content = |cause| MissReason::ContentChanged {
            input: 0,
            vertex: VertexDigest(Digest::of("c")),
            name: "[a 1/2] COPY . .".to_owned(),
            old: Digest::of("1"),
            new: Digest::of("2"),
            difference: Some(Difference { parts: vec![Part { name: "x".into(), what: "mode".into() }], more: 2 }),
            cause,
        };
        let eviction = Some(Eviction { rule: "rule 2".to_owned(), at: 86_400 });
        let table = [
            (MissReason::NoRecord, &plain, "first build of this step"),
            (MissReason::NoRecord, &flag, "first build of this step, and a cache could not be read: reg/x: not found"),
            (MissReason::IgnoreCache, &plain, "asked for by the definition of the build"),
            (MissReason::IgnoreCache, &flag, "asked for by --no-cache"),
            (changed("variable A", "1", "2"), &plain, "variable A changed: 1 -> 2"),
            (changed("digest", "a", "b"), &plain, "base image changed: a -> b"),
            (changed("platform", "linux/amd64", "linux/arm64"), &plain, "platform changed: linux/amd64 -> linux/arm64"),
            (MissReason::TooOld { seconds: 604_800 }, &plain, "the earlier result is older than 1w"),
            (moved(), &plain, "base image layout://base changed: sha256:1 -> sha256:2"),
            (renamed("[a 2/3] RUN x", "[a 2/4] RUN y"), &plain, "instruction changed: RUN x -> RUN y"),
            (renamed("[a 2/3] RUN x", "[a 2/4] RUN x"), &plain, "user changed: a -> b"),
            (follows("[a 2/4] RUN x", "[a 2/3] RUN x"), &plain, "`[a 2/4] RUN x` is another one"),
            (follows("[a 2/4] RUN x", "[a 2/3] RUN y"), &plain, "it follows `RUN x` now, not `RUN y`"),
            (content(None), &plain, "content changed: x (mode) and 2 more"),
            (content(Some(Box::new(MissReason::NoRecord))), &plain, "content changed: x (mode) and 2 more"),
            (
                content(Some(Box::new(changed("user", "a", "b")))),
                &plain,
                "content changed: x (mode) and 2 more; [a 1/2] COPY . . ran: user changed: a -> b",
            ),
            (
                MissReason::Evicted { eviction },
                &plain,
                "the earlier result was removed: rule 2, at 1970-01-02T00:00:00Z",
            ),
        ];
        for (reason, around, want) in table {
            assert_eq!(told(reason, around).text, want);
        }
    }

    #[test]
    fn a_cascade_names_where_it_began() {
        let reason = told(after("third", after("second", changed("user", "a", "b"))), &Circumstances::default());
        assert_eq!(reason.text, "second ran: user changed: a -> b");
        assert_eq!(reason.root.map(|root| root.name), Some("second".to_owned()));
    }

    #[test]
    fn names_of_secrets() {
        for (name, secret) in [("NPM_TOKEN", true), ("KEYBOARD", false), ("aws-secret", true), ("VERSION", false)] {
            assert_eq!(is_secret(name), secret, "{name}");
        }
    }
}
