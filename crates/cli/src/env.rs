//! The environment of the command, read once at the start and passed down, so that what depends on it can be tested.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Variables, working directory and user of the command.
#[derive(Clone, Debug, Default)]
pub struct Env {
    vars: BTreeMap<String, OsString>,
    cwd: PathBuf,
    uid: u32,
}

impl Env {
    /// Reads the environment of the process.
    pub fn of_process() -> Env {
        let vars = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect();
        // A deleted working directory only matters once a relative path is used; that then fails by itself.
        let cwd = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
        Env { vars, cwd, uid: rustix::process::geteuid().as_raw() }
    }

    /// Returns an environment made of the given parts.
    #[cfg(test)]
    pub fn of(vars: &[(&str, &str)], cwd: &Path) -> Env {
        let vars = vars.iter().map(|(k, v)| ((*k).to_owned(), OsString::from(v))).collect();
        Env { vars, cwd: cwd.to_owned(), uid: 0 }
    }

    /// Returns a variable, when it is set and is text.
    pub fn var(&self, name: &str) -> Option<&str> {
        self.vars.get(name)?.to_str()
    }

    /// Returns a variable as it is.
    pub fn var_os(&self, name: &str) -> Option<&OsString> {
        self.vars.get(name)
    }

    /// Returns all variables whose names are text, in order.
    pub fn all(&self) -> impl Iterator<Item = (&str, &OsString)> {
        self.vars.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Returns a variable that is set and not empty as a path.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.vars.get(name).filter(|v| !v.is_empty()).map(PathBuf::from)
    }

    /// Returns whether a variable holds one of the words for true.
    pub fn flag(&self, name: &str) -> bool {
        self.var(name).and_then(parse_bool).unwrap_or(false)
    }

    /// Returns the working directory.
    pub fn cwd(&self) -> &Path {
        &self.cwd
    }

    /// Returns the effective user id.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Returns the directory of the docker client's configuration (`DOCKER_CONFIG`, else `~/.docker`).
    pub fn docker_config(&self) -> Option<PathBuf> {
        self.path("DOCKER_CONFIG").or_else(|| Some(self.path("HOME")?.join(".docker")))
    }
}

/// Parses a word for true or false: `1 t T TRUE true True 0 f F FALSE false False`.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}
