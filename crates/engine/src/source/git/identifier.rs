//! What a git source names: the identifier `git://HOST/PATH#REF:SUBDIR` and its attributes (features 2.4).

use kiln_llb::GitUrl;
use kiln_llb::attr;
use kiln_llb::op::SourceOp;
use kiln_stdx::{Digest, StableHasher};

use crate::error::EngineError;
use crate::source::blob::BlobSource;

/// A git source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GitSource {
    /// What to hand to git.
    pub remote: String,
    /// Branch, tag or commit; empty is the default branch.
    pub git_ref: String,
    /// The part of the tree that is wanted, without leading slash.
    pub subdir: String,
    pub keep_git_dir: bool,
    /// The commit, or the beginning of it, that the reference must lead to.
    pub checksum: Option<String>,
    pub skip_submodules: bool,
    /// Files get the time of the commit instead of that of the checkout.
    pub commit_time: bool,
    /// Asks the server for the commit of `checksum` and no name.
    pub fetch_by_commit: bool,
    /// The history comes from this file and not from the remote; `checksum` is given then.
    pub bundle: Option<BlobSource>,
    /// The result is one file, `bundle`, with the history of the commit.
    pub as_bundle: bool,
    /// Secrets with the credentials, without the host's suffix.
    pub header_secret: Option<String>,
    pub token_secret: Option<String>,
    /// Public keys of ssh servers; any is accepted when absent.
    pub known_hosts: Option<String>,
    /// The forwarded agent.
    pub ssh: Option<String>,
}

impl GitSource {
    /// Reads identifier and attributes.
    ///
    /// # Errors
    /// A malformed address or attribute, or one that asks for what this engine cannot check.
    pub fn new(op: &SourceOp) -> Result<Self, EngineError> {
        let name = op.split().map_or(op.identifier.as_str(), |(_, rest)| rest);
        let url = GitUrl::parse(&with_scheme(name)).map_err(|e| EngineError::user(format!("{name}: {e}")))?;
        let flag = |key: &str| op.attr(key) == Some("true");
        let text = |key: &str| op.attr(key).map(str::to_owned);
        let this = Self {
            remote: op.attr(attr::GIT_FULL_URL).map_or(url.remote, with_scheme),
            git_ref: url.git_ref,
            subdir: url.subdir,
            keep_git_dir: flag(attr::GIT_KEEP_DIR),
            checksum: text(attr::GIT_CHECKSUM),
            skip_submodules: flag(attr::GIT_SKIP_SUBMODULES),
            commit_time: op.attr(attr::GIT_MTIME) == Some("commit"),
            fetch_by_commit: flag(attr::GIT_FETCH_BY_COMMIT),
            bundle: op.attr(attr::GIT_BUNDLE).filter(|b| !b.is_empty()).map(|b| BlobSource::new(b, op)).transpose()?,
            as_bundle: flag(attr::GIT_CHECKOUT_BUNDLE),
            header_secret: text(attr::GIT_AUTH_HEADER_SECRET),
            token_secret: text(attr::GIT_AUTH_TOKEN_SECRET),
            known_hosts: text(attr::GIT_KNOWN_SSH_HOSTS),
            ssh: text(attr::GIT_MOUNT_SSH_SOCK),
        };
        this.check(op)?;
        Ok(this)
    }

    fn check(&self, op: &SourceOp) -> Result<(), EngineError> {
        // What begins with a dash would be an option to git.
        if self.git_ref.starts_with('-') {
            return Err(EngineError::user(format!("invalid git ref {:?}", self.git_ref)));
        }
        if self.remote.starts_with('-') {
            return Err(EngineError::user(format!("invalid git address {:?}", self.remote)));
        }
        if let Some(sum) = &self.checksum
            && !sum.bytes().all(|b| b.is_ascii_hexdigit())
        {
            return Err(EngineError::user(format!("invalid checksum {sum} for Git URL, expected hex commit hash")));
        }
        if let Some(mode) = op.attr(attr::GIT_MTIME)
            && !matches!(mode, "commit" | "checkout")
        {
            return Err(EngineError::user(format!("invalid git mtime {mode:?}, expected \"checkout\" or \"commit\"")));
        }
        if self.as_bundle && self.keep_git_dir {
            return Err(EngineError::user("git checkout bundle cannot be combined with keepgitdir"));
        }
        if self.as_bundle && !self.subdir.is_empty() {
            return Err(EngineError::user("git checkout bundle cannot be combined with a subdir"));
        }
        if self.bundle.is_some() && self.checksum.as_ref().is_none_or(String::is_empty) {
            return Err(EngineError::user("git.bundle requires git.checksum to be set"));
        }
        if op.attr(attr::GIT_SIG_PUBKEY).is_some() {
            // Building without the check that was asked for would be worse than not building.
            return Err(EngineError::user("signatures of git commits cannot be checked by this engine"));
        }
        if self.fetch_by_commit && !is_commit(&self.git_ref) {
            match &self.checksum {
                None => {
                    return Err(EngineError::user("fetch-by-commit requires a checksum or a commit SHA ref"));
                }
                Some(sum) if !is_commit(sum) => {
                    let text = format!("fetch-by-commit requires a full commit SHA checksum, got {sum:?}");
                    return Err(EngineError::user(text));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Returns the identifier in the one form that policies are written for.
    pub fn identifier(&self) -> String {
        let place = GitUrl::parse(&self.remote).map_or_else(|_| self.remote.clone(), |url| url.host_and_path());
        let mut text = format!("git://{place}");
        if !self.git_ref.is_empty() || !self.subdir.is_empty() {
            text.push_str(&format!("#{}", self.git_ref));
        }
        if !self.subdir.is_empty() {
            text.push_str(&format!(":{}", self.subdir));
        }
        text
    }

    /// Names what is remembered of the reference. Answers to other credentials are not for this one.
    pub fn memory_key(&self, identity: Option<Digest>) -> Digest {
        StableHasher::new("kiln.git.pin.v1")
            .str("remote", &self.remote)
            .str("reference", &self.git_ref)
            .str("login", &identity.map(|login| login.to_string()).unwrap_or_default())
            .finish()
    }

    /// Returns the address for messages, without credentials.
    pub fn shown(&self) -> String {
        redact(&self.remote)
    }

    /// Returns the key of the files at a commit; `reference` is the name by which it was found.
    pub fn key(&self, commit: &str, reference: &str) -> String {
        let mut key = commit.to_owned();
        if self.keep_git_dir {
            key.push_str(".git");
            if !reference.is_empty() {
                key.push_str(&format!("#{reference}"));
            }
        }
        if !self.subdir.is_empty() {
            key.push_str(&format!(":{}", self.subdir));
        }
        for (wanted, mark) in [
            (self.skip_submodules, "(skip-submodules)"),
            (self.commit_time, "(mtime=commit)"),
            (self.as_bundle, "(bundle)"),
        ] {
            if wanted {
                key.push_str(mark);
            }
        }
        key
    }
}

fn with_scheme(text: &str) -> String {
    if kiln_llb::is_git_transport(text) { text.to_owned() } else { format!("https://{text}") }
}

/// Tells whether a text is a whole commit id.
pub fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Returns an address without user and password.
pub fn redact(remote: &str) -> String {
    match remote.split_once("://") {
        Some((scheme, rest)) => {
            let end = rest.find('/').unwrap_or(rest.len());
            match rest[..end].rfind('@') {
                Some(at) if scheme != "ssh" => format!("{scheme}://{}", &rest[at + 1..]),
                _ => remote.to_owned(),
            }
        }
        None => remote.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn source(id: &str, attrs: &[(&str, &str)]) -> Result<GitSource, EngineError> {
        let attrs: BTreeMap<_, _> = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        GitSource::new(&SourceOp { identifier: id.to_owned(), attrs })
    }

    const BUNDLE: &str = "oci-layout+blob://a@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    #[test]
    fn identifier_and_attributes() {
        let git = source("git://forge.test/a/b.git#v2:docs", &[]).unwrap();
        assert_eq!(git.remote, "https://forge.test/a/b.git");
        assert_eq!((git.git_ref.as_str(), git.subdir.as_str()), ("v2", "docs"));
        let git = source("git://forge.test/a/b.git", &[("git.fullurl", "git@forge.test:a/b.git")]).unwrap();
        assert_eq!(git.remote, "git@forge.test:a/b.git");
        let git = source("git://forge.test/a/b.git", &[("git.bundle", BUNDLE), ("git.checksum", "abc")]).unwrap();
        assert_eq!(git.bundle.map(|bundle| bundle.is_local()), Some(true));
    }

    #[test]
    fn what_cannot_be_right_is_refused() {
        for (id, attrs, word) in [
            ("git://h/x#--upload-pack=evil", vec![], "invalid git ref"),
            ("git://h/x", vec![("git.checksum", "xyz")], "invalid checksum"),
            ("git://h/x", vec![("git.fetchbycommit", "true")], "requires a checksum"),
            ("git://h/x", vec![("git.fetchbycommit", "true"), ("git.checksum", "abc")], "full commit SHA"),
            ("git://h/x", vec![("git.sig.pubkey", "k")], "signatures"),
            ("git://h/x#:sub", vec![("git.checkoutbundle", "true")], "subdir"),
            ("git://h/x", vec![("git.bundle", BUNDLE)], "requires git.checksum"),
            ("git://h/x", vec![("git.bundle", "https://h/b"), ("git.checksum", "abc")], "invalid blob"),
        ] {
            let error = source(id, &attrs).unwrap_err();
            assert!(error.to_string().contains(word), "{id}: {error}");
        }
    }

    #[test]
    fn keys_tell_apart_what_gives_other_files() {
        let plain = source("git://h/x", &[]).unwrap();
        let kept = source("git://h/x#:sub", &[("git.keepgitdir", "true"), ("git.skipsubmodules", "true")]).unwrap();
        assert_eq!(plain.key("c0ffee", "refs/heads/main"), "c0ffee");
        assert_eq!(kept.key("c0ffee", "refs/heads/main"), "c0ffee.git#refs/heads/main:sub(skip-submodules)");
    }

    #[test]
    fn what_is_remembered_is_for_one_reference_and_login() {
        let key = |id: &str, login: Option<&str>| source(id, &[]).unwrap().memory_key(login.map(Digest::of));
        let plain = key("git://h/x#main", None);
        assert_eq!(plain, key("git://h/x#main:sub", None));
        for other in [key("git://h/x", None), key("git://h/y#main", None), key("git://h/x#main", Some("me"))] {
            assert_ne!(plain, other);
        }
    }

    #[test]
    fn credentials_are_not_shown() {
        assert_eq!(redact("https://tok:en@h:1/p@q.git"), "https://h:1/p@q.git");
        assert_eq!(redact("ssh://git@h/p"), "ssh://git@h/p");
        assert_eq!(redact("git@h:p"), "git@h:p");
    }
}
