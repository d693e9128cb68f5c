//! Git addresses in Dockerfiles and build commands: which texts are meant for git, and their query parameters.

use kiln_llb::builder::GitOptions;
use kiln_llb::{GitUrl, GitUrlError};

use crate::gofmt::parse_bool;

/// A git address with everything its fragment and query say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GitRef {
    /// The address without fragment and query.
    pub remote: String,
    /// Branch, tag or commit; empty for the default branch.
    pub reference: String,
    pub subdir: String,
    /// The commit it must be, or a prefix of it; empty for any.
    pub checksum: String,
    /// `github.com/…` without a scheme: a context address, but a path to `ADD`.
    pub looks_local: bool,
    pub keep_git_dir: Option<bool>,
    pub submodules: Option<bool>,
    /// `checkout` or `commit`.
    pub mtime: Option<String>,
    pub fetch_by_commit: bool,
}

impl GitRef {
    /// Returns the source options it stands for, without `keep_git_dir` and `mtime`.
    pub(crate) fn options(&self) -> GitOptions {
        let given = |text: &String| Some(text.clone()).filter(|t| !t.is_empty());
        GitOptions {
            git_ref: given(&self.reference),
            subdir: given(&self.subdir),
            checksum: given(&self.checksum),
            skip_submodules: self.submodules == Some(false),
            fetch_by_commit: self.fetch_by_commit,
            ..GitOptions::default()
        }
    }
}

/// Reads an address. None when the text is not meant for git: HTTP addresses must end in `.git` before the fragment.
///
/// # Errors
/// A git address with unknown, repeated or contradicting parameters.
pub fn parse(text: &str) -> Result<Option<GitRef>, String> {
    if text.starts_with("./") || text.starts_with("../") {
        return Ok(None);
    }
    let looks_local = text.starts_with("github.com/");
    let url = if looks_local { GitUrl::parse(&format!("https://{text}")) } else { GitUrl::parse(text) };
    let url = match url {
        Ok(url) => url,
        Err(GitUrlError::UnknownProtocol | GitUrlError::InvalidProtocol(_) | GitUrlError::Malformed(_)) => {
            return Ok(None);
        }
    };
    if !looks_local && matches!(url.scheme.as_str(), "http" | "https") && !url.path.ends_with(".git") {
        return Ok(None);
    }
    let remote = match looks_local {
        true => url.remote.trim_start_matches("https://").to_owned(),
        false => url.remote.clone(),
    };
    let mut git = GitRef { remote, reference: url.git_ref, subdir: url.subdir, looks_local, ..GitRef::default() };
    git.apply_query(&url.query)?;
    Ok(Some(git))
}

impl GitRef {
    fn apply_query(&mut self, query: &[(String, String)]) -> Result<(), String> {
        let (mut tag, mut branch) = (None, None);
        for (i, (key, value)) in query.iter().enumerate() {
            if query[..i].iter().any(|(k, _)| k == key) {
                return Err(format!("query {key:?} has multiple values"));
            }
            let flag = matches!(key.as_str(), "submodules" | "keep-git-dir" | "fetch-by-commit");
            if value.is_empty() && !flag {
                return Err(format!("query {key:?} has no value"));
            }
            match key.as_str() {
                "ref" => agree("ref", &mut self.reference, value)?,
                "subdir" => agree("subdir", &mut self.subdir, value)?,
                "tag" => tag = Some(qualified("refs/tags/", value)),
                "branch" => branch = Some(qualified("refs/heads/", value)),
                "checksum" | "commit" => self.checksum.clone_from(value),
                "keep-git-dir" => self.keep_git_dir = Some(flag_value(key, value)?),
                "submodules" => self.submodules = Some(flag_value(key, value)?),
                "fetch-by-commit" => self.fetch_by_commit = flag_value(key, value)?,
                "mtime" if matches!(value.as_str(), "checkout" | "commit") => self.mtime = Some(value.clone()),
                "mtime" => {
                    return Err(format!("invalid mtime value: {value:?} (must be \"checkout\" or \"commit\")"));
                }
                _ => return Err(format!("unexpected query {key:?}")),
            }
        }
        if tag.is_some() && branch.is_some() {
            return Err("branch conflicts with tag".into());
        }
        match tag.or(branch) {
            Some(name) => agree("ref", &mut self.reference, &name),
            None => Ok(()),
        }
    }
}

fn qualified(prefix: &str, name: &str) -> String {
    if name.starts_with(prefix) { name.to_owned() } else { format!("{prefix}{name}") }
}

fn agree(what: &str, slot: &mut String, value: &str) -> Result<(), String> {
    if !slot.is_empty() && slot != value {
        return Err(format!("{what} conflicts: {slot:?} vs {value:?}"));
    }
    value.clone_into(slot);
    Ok(())
}

fn flag_value(key: &str, value: &str) -> Result<bool, String> {
    if value.is_empty() {
        return Ok(true);
    }
    parse_bool(value).ok_or_else(|| format!("invalid {key} value: {value:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_meant_for_git() {
        for text in
            ["https://h.test/a/b.git", "git://h.test/a", "ssh://git@h.test/a", "git@h.test:a/b", "github.com/a/b"]
        {
            assert!(parse(text).unwrap().is_some(), "{text}");
        }
        for text in ["https://h.test/a.tgz", "./x.git", "../x", "dir/file", "ftp://h/x.git", "http://[", "a b"] {
            assert_eq!(parse(text).unwrap(), None, "{text}");
        }
    }

    #[test]
    fn parameters_are_read() {
        let git =
            parse("https://h.test/a.git?tag=v1&subdir=d&submodules=false&keep-git-dir&commit=abc").unwrap().unwrap();
        assert_eq!((git.reference.as_str(), git.subdir.as_str(), git.checksum.as_str()), ("refs/tags/v1", "d", "abc"));
        assert_eq!((git.submodules, git.keep_git_dir), (Some(false), Some(true)));
        assert_eq!(git.remote, "https://h.test/a.git");
    }

    #[test]
    fn contradictions_are_errors() {
        for (query, want) in [
            ("ref=a#b", "ref conflicts: \"b\" vs \"a\""),
            ("tag=a&branch=b", "branch conflicts with tag"),
            ("nope=1", "unexpected query \"nope\""),
            ("ref=", "query \"ref\" has no value"),
            ("mtime=now", "invalid mtime value: \"now\" (must be \"checkout\" or \"commit\")"),
            ("ref=a&ref=a", "query \"ref\" has multiple values"),
        ] {
            assert_eq!(parse(&format!("https://h.test/a.git?{query}")).unwrap_err(), want, "{query}");
        }
    }
}
