//! File changes: copy, mkfile, mkdir, rm, symlink, chained into one operation.

use bytes::Bytes;

use super::Output;
use crate::git_url::clean_path;
use crate::op::CopyMode;

/// A chain of changes for [`super::Builder::file`]. Relative paths are under the working directory, `/` at first.
#[derive(Debug, Clone)]
pub struct FileActions {
    cwd: String,
    pub(super) list: Vec<Action>,
}

#[derive(Debug, Clone)]
pub(super) enum Action {
    Copy { from: Output, src: String, dest: String, options: Box<CopyOptions> },
    Mkfile { path: String, mode: u32, data: Bytes, options: FileOptions },
    Mkdir { path: String, mode: u32, options: MkdirOptions },
    Rm { path: String, options: RmOptions },
    Symlink { target: String, link: String, options: FileOptions },
}

/// User and group given by name or number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OwnerSpec {
    pub user: Option<NameOrId>,
    pub group: Option<NameOrId>,
}

/// A name, looked up in the base's user database, or a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameOrId {
    Name(String),
    Id(u32),
}

impl OwnerSpec {
    /// Reads `user[:group]`; `root` and numbers need no look-up.
    pub fn parse(text: &str) -> Self {
        let one = |part: &str| match part {
            "root" => NameOrId::Id(0),
            // Up to 31 bits: as in BuildKit, a larger number is taken as a name.
            _ => match part.parse::<i32>() {
                Ok(id) => NameOrId::Id(id.cast_unsigned()),
                Err(_) if part.is_empty() => NameOrId::Id(0),
                Err(_) => NameOrId::Name(part.to_owned()),
            },
        };
        match text.split_once(':') {
            Some((user, group)) => Self { user: Some(one(user)), group: Some(one(group)) },
            None => Self { user: Some(one(text)), group: None },
        }
    }
}

/// Settings of a new file or link.
#[derive(Debug, Clone, Default)]
pub struct FileOptions {
    pub owner: Option<OwnerSpec>,
    /// Unix nanoseconds.
    pub timestamp: Option<i64>,
}

/// Settings of a new directory.
#[derive(Debug, Clone, Default)]
pub struct MkdirOptions {
    pub parents: bool,
    pub owner: Option<OwnerSpec>,
    /// Unix nanoseconds.
    pub timestamp: Option<i64>,
}

/// Settings of a removal.
#[derive(Debug, Clone, Copy, Default)]
pub struct RmOptions {
    pub allow_not_found: bool,
    pub allow_wildcard: bool,
}

/// Settings of a copy (features 2.3).
#[derive(Debug, Clone, Default)]
pub struct CopyOptions {
    pub owner: Option<OwnerSpec>,
    pub mode: Option<CopyMode>,
    pub follow_symlinks: bool,
    pub dir_contents_only: bool,
    pub unpack: bool,
    pub create_dest_path: bool,
    pub allow_wildcard: bool,
    pub allow_empty_wildcard: bool,
    /// Unix nanoseconds.
    pub timestamp: Option<i64>,
    pub include_patterns: Vec<String>,
    pub exclude_patterns: Vec<String>,
    pub required_paths: Vec<String>,
    pub always_replace: bool,
}

impl Default for FileActions {
    fn default() -> Self {
        Self::new()
    }
}

impl FileActions {
    /// Returns an empty chain.
    pub fn new() -> Self {
        Self { cwd: "/".into(), list: Vec::new() }
    }

    /// Sets what relative paths of the following changes are under.
    #[must_use]
    pub fn cwd(mut self, dir: &str) -> Self {
        self.cwd = absolute(&self.cwd, dir);
        self
    }

    /// Tells whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Copies `src` of another file system to `dest`. A trailing `/` or `/.` of `dest` is kept.
    #[must_use]
    pub fn copy(mut self, from: Output, src: &str, dest: &str, options: CopyOptions) -> Self {
        self.list.push(Action::Copy {
            from,
            src: absolute("/", src),
            dest: destination(&self.cwd, dest),
            options: Box::new(options),
        });
        self
    }

    /// Creates a file with these permission bits.
    #[must_use]
    pub fn mkfile(mut self, path: &str, mode: u32, data: impl Into<Bytes>, options: FileOptions) -> Self {
        let path = absolute(&self.cwd, path);
        self.list.push(Action::Mkfile { path, mode: mode & 0o777, data: data.into(), options });
        self
    }

    /// Creates a directory with these permission bits.
    #[must_use]
    pub fn mkdir(mut self, path: &str, mode: u32, options: MkdirOptions) -> Self {
        let path = absolute(&self.cwd, path);
        self.list.push(Action::Mkdir { path, mode: mode & 0o777, options });
        self
    }

    /// Removes a path.
    #[must_use]
    pub fn rm(mut self, path: &str, options: RmOptions) -> Self {
        let path = absolute(&self.cwd, path);
        self.list.push(Action::Rm { path, options });
        self
    }

    /// Creates a symbolic link at `link` that says `target`. Neither path is changed.
    #[must_use]
    pub fn symlink(mut self, target: &str, link: &str, options: FileOptions) -> Self {
        self.list.push(Action::Symlink { target: target.into(), link: link.into(), options });
        self
    }
}

/// Cleans `path`, putting a relative one under `parent`.
fn absolute(parent: &str, path: &str) -> String {
    if path.starts_with('/') { clean_path(path) } else { clean_path(&format!("/{parent}/{path}")) }
}

/// As `absolute`, but a trailing `/` or `/.` says that a directory is meant, and stays.
fn destination(parent: &str, path: &str) -> String {
    let mut clean = absolute(parent, path);
    if path.ends_with('/') && !clean.ends_with('/') {
        clean.push('/');
    } else if path.ends_with("/.") {
        if clean != "/" {
            clean.push('/');
        }
        clean.push('.');
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_keep_their_directory_mark() {
        for (parent, given, want) in [
            ("/w", "a", "/w/a"),
            ("/w", "a/", "/w/a/"),
            ("/w", "./", "/w/"),
            ("/", "/", "/"),
            ("/w", "/x/.", "/x/."),
            ("/w", "/.", "/."),
            ("/w", ".", "/w"),
        ] {
            assert_eq!(destination(parent, given), want, "{given}");
        }
    }

    #[test]
    fn owners_are_names_or_numbers() {
        let owner = OwnerSpec::parse("root:adm");
        assert_eq!(owner.user, Some(NameOrId::Id(0)));
        assert_eq!(owner.group, Some(NameOrId::Name("adm".into())));
        assert_eq!(OwnerSpec::parse("7"), OwnerSpec { user: Some(NameOrId::Id(7)), group: None });
        assert_eq!(OwnerSpec::parse("4294967295").user, Some(NameOrId::Name("4294967295".into())));
    }
}
