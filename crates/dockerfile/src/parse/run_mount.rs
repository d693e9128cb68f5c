//! `RUN --mount`: five types, nineteen keys. Values are read twice: `from` at once, since stages depend on it; all of
//! them when the instruction is lowered, with variables replaced.

use crate::ast::RunMount;
use crate::diag::{Fault, Outcome};
use crate::gofmt::{parse_bool, quote};
use crate::lex::csv;

/// What a mount shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum MountType {
    #[default]
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

/// Who else may use a cache mount at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CacheSharing {
    Shared,
    Private,
    Locked,
}

/// A mount with its values expanded and checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Mount {
    pub kind: MountType,
    pub from: String,
    pub source: String,
    pub target: String,
    pub readonly: bool,
    /// Bytes, 0 for no limit.
    pub size: i64,
    pub id: String,
    pub sharing: Option<CacheSharing>,
    pub required: bool,
    pub env: Option<String>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

const TYPES: [(&str, MountType); 5] = [
    ("bind", MountType::Bind),
    ("cache", MountType::Cache),
    ("tmpfs", MountType::Tmpfs),
    ("secret", MountType::Secret),
    ("ssh", MountType::Ssh),
];

const SHARING: [(&str, CacheSharing); 3] =
    [("shared", CacheSharing::Shared), ("private", CacheSharing::Private), ("locked", CacheSharing::Locked)];

impl MountType {
    fn name(self) -> &'static str {
        TYPES.iter().find(|(_, kind)| *kind == self).map_or("bind", |(name, _)| name)
    }
}

fn fields(text: &str) -> Outcome<Vec<String>> {
    csv::fields(text).map_err(|e| Fault::new(format!("failed to parse csv mounts: {e}")).word(text))
}

/// Reads what must be known before variables are.
pub(super) fn scan(text: &str) -> Outcome<RunMount> {
    let mut from = None;
    for field in fields(text)? {
        let Some((key, value)) = field.split_once('=') else { continue };
        if !key.eq_ignore_ascii_case("from") {
            continue;
        }
        if value.find('$').is_some_and(|at| at + 1 < value.len()) {
            let message = format!("'{key}' doesn't support variable expansion, define alias stage instead");
            return Err(Fault::new(message)
                .word(&field)
                .hint(format!("write FROM {value} AS deps at the top, with a global ARG, and from=deps here")));
        }
        from = Some(value.to_owned()).filter(|v| !v.is_empty());
    }
    Ok(RunMount { text: text.to_owned(), from })
}

/// Reads a mount; `expand` replaces variables.
pub(crate) fn parse(text: &str, mut expand: impl FnMut(&str) -> Outcome<String>) -> Outcome<Mount> {
    let mut mount = Mount::default();
    let mut readonly = None;
    for field in fields(text)? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(expand(value)?)),
            None => (field.to_lowercase(), None),
        };
        match (key.as_str(), value) {
            ("readonly" | "ro", value) => readonly = Some(truth(&key, value)?),
            ("readwrite" | "rw", value) => readonly = Some(!truth(&key, value)?),
            ("required", value) => {
                if !matches!(mount.kind, MountType::Secret | MountType::Ssh) {
                    return Err(unexpected(&key, mount.kind, &field));
                }
                mount.required = truth(&key, value)?;
            }
            (_, None) => {
                return Err(Fault::new(format!("invalid field '{key}' must be a key=value pair")).word(&field));
            }
            (key, Some(value)) => mount.set(key, value, &field)?,
        }
    }
    mount.finish(readonly)
}

fn truth(key: &str, value: Option<String>) -> Outcome<bool> {
    let Some(value) = value else { return Ok(true) };
    parse_bool(&value).ok_or_else(|| Fault::new(format!("invalid value for {key}: {value}")).word(value))
}

fn unexpected(key: &str, kind: MountType, field: &str) -> Fault {
    Fault::new(format!("unexpected key '{key}' for mount type '{}'", kind.name())).word(field)
}

fn number(key: &str, value: &str, radix: u32) -> Outcome<Option<u32>> {
    let plain = !value.starts_with('+');
    let number = u32::from_str_radix(value, radix).ok().filter(|_| plain);
    number.map(Some).ok_or_else(|| Fault::new(format!("invalid value {value} for {key}")).word(value))
}

impl Mount {
    fn set(&mut self, key: &str, value: String, field: &str) -> Outcome<()> {
        match key {
            "type" => self.kind = choose("mount type", &value, &TYPES)?,
            "from" => self.from = value,
            "source" | "src" => self.source = value,
            "target" | "dst" | "destination" => self.target = value,
            "size" if self.kind != MountType::Tmpfs => return Err(unexpected(key, self.kind, field)),
            "size" => {
                self.size = crate::gofmt_size::parse(&value)
                    .ok_or_else(|| Fault::new(format!("invalid value for size: {value}")).word(field))?;
            }
            "id" => self.id = value,
            "sharing" => self.sharing = Some(choose("sharing value", &value, &SHARING)?),
            "mode" => self.mode = number(key, &value, 8)?,
            "uid" => self.uid = number(key, &value, 10)?,
            "gid" => self.gid = number(key, &value, 10)?,
            "env" => self.env = Some(value),
            _ => {
                return Err(Fault::new(format!("unexpected key '{key}' in '{field}'"))
                    .did_you_mean(key, KEYS)
                    .hint(format!("known keys: {}", KEYS.join(", ")))
                    .word(field));
            }
        }
        Ok(())
    }

    /// Applies defaults and checks that the keys go together.
    fn finish(mut self, readonly: Option<bool>) -> Outcome<Self> {
        if matches!(self.kind, MountType::Bind | MountType::Tmpfs) {
            for (key, given) in [("mode", self.mode), ("uid", self.uid), ("gid", self.gid)] {
                if given.is_some() {
                    return Err(Fault::new(format!("{key} not allowed for {} type mounts", quote(self.kind.name()))));
                }
            }
        }
        self.readonly = readonly.unwrap_or(!matches!(self.kind, MountType::Cache | MountType::Tmpfs));
        if self.kind == MountType::Secret {
            let problem = if !self.from.is_empty() {
                Some("secret mount should not have a from")
            } else if self.sharing.is_some() {
                Some("secret mount should not define sharing")
            } else if self.source.is_empty() && self.target.is_empty() && self.id.is_empty() {
                Some("invalid secret mount. one of source, target required")
            } else if !self.source.is_empty() && !self.id.is_empty() {
                Some("both source and id can't be set")
            } else {
                None
            };
            if let Some(problem) = problem {
                return Err(Fault::new(problem));
            }
        }
        if self.sharing.is_some() && self.kind != MountType::Cache {
            return Err(Fault::new(format!("invalid cache sharing set for {} mount", self.kind.name())));
        }
        Ok(self)
    }
}

fn choose<T: Copy>(what: &str, value: &str, choices: &[(&'static str, T)]) -> Outcome<T> {
    let lower = value.to_lowercase();
    choices.iter().find(|(name, _)| *name == lower).map(|(_, choice)| *choice).ok_or_else(|| {
        let message = format!("unsupported {what} {}", quote(value));
        // Half a name is far from the whole one, and yet it is clear what was meant.
        let begun = choices.iter().find(|(name, _)| lower.len() > 2 && name.starts_with(&lower));
        let fault = match begun {
            Some((name, _)) => Fault::new(format!("{message} (did you mean {name}?)")),
            None => Fault::new(message).did_you_mean(value, choices.iter().map(|(name, _)| *name)),
        };
        fault.word(value)
    })
}

#[cfg(test)]
#[path = "run_mount_tests.rs"]
mod tests;
