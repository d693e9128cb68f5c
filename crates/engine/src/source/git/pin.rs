//! From the name of a reference to the commit it leads to now.

use kiln_stdx::ErrorClass;
use serde::{Deserialize, Serialize};

use super::command::Git;
use super::identifier::{GitSource, is_commit};
use crate::error::EngineError;

/// What a reference leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitPin {
    /// Its whole name, `refs/heads/main`, or the commit itself.
    pub reference: String,
    /// The object: a commit, or an annotated tag.
    pub object: String,
    /// The commit behind an annotated tag.
    pub commit: Option<String>,
}

impl GitPin {
    /// Returns the commit that the key is made of: that behind a tag, unless the tag itself is part of the result.
    pub fn commit(&self, keep_git_dir: bool) -> &str {
        match &self.commit {
            Some(commit) if !keep_git_dir => commit,
            _ => &self.object,
        }
    }
}

/// Returns what the reference of `source` leads to where the source itself says that.
///
/// # Errors
/// It contradicts itself.
pub fn given(source: &GitSource) -> Result<Option<GitPin>, EngineError> {
    if is_commit(&source.git_ref) {
        if let Some(wanted) = &source.checksum
            && !source.git_ref.starts_with(wanted.as_str())
        {
            let text = format!("expected checksum to match {wanted}, got {}", source.git_ref);
            return Err(EngineError::user(text));
        }
        let (reference, object) = (source.git_ref.clone(), source.git_ref.clone());
        return Ok(Some(GitPin { reference, object, commit: None }));
    }
    if let (true, Some(commit)) = (source.fetch_by_commit, &source.checksum) {
        let reference = match source.git_ref.as_str() {
            "" => commit.clone(),
            name if name.starts_with("refs/") => name.to_owned(),
            name => format!("refs/heads/{name}"),
        };
        return Ok(Some(GitPin { reference, object: commit.clone(), commit: None }));
    }
    Ok(None)
}

/// Finds what the reference of `source` leads to. Asks the remote unless it is a commit.
///
/// # Errors
/// The remote cannot be asked, has no such reference, or leads elsewhere than the checksum says.
pub async fn pin(git: &Git, source: &GitSource) -> Result<GitPin, EngineError> {
    if let Some(given) = given(source)? {
        return Ok(given);
    }
    let name = match source.git_ref.as_str() {
        "" => default_branch(git, source).await?,
        name => name.to_owned(),
    };
    let peeled = format!("{name}^{{}}");
    let listing = git.run(&["ls-remote", "--", &source.remote, &name, &peeled]).await;
    let listing = listing.map_err(|e| failed(source, &e))?;
    let pin = choose(&String::from_utf8_lossy(&listing), &name)
        .ok_or_else(|| EngineError::user(format!("repository does not contain ref {name}")))?;
    checked(source, pin)
}

/// Returns what was found if it is what the checksum names.
///
/// # Errors
/// It is not.
pub fn checked(source: &GitSource, pin: GitPin) -> Result<GitPin, EngineError> {
    match &source.checksum {
        Some(wanted)
            if !pin.object.starts_with(wanted.as_str())
                && !pin.commit.as_ref().is_some_and(|c| c.starts_with(wanted.as_str())) =>
        {
            let got = pin.commit.as_ref().unwrap_or(&pin.object);
            Err(EngineError::user(format!("expected checksum to match {wanted}, got {got}")))
        }
        _ => Ok(pin),
    }
}

/// Says of an error which remote it is about.
pub fn failed(source: &GitSource, error: &EngineError) -> EngineError {
    match error.class() {
        ErrorClass::Canceled | ErrorClass::Environment => error.clone(),
        class => EngineError::new(class, format!("failed to fetch remote {}: {error}", source.shown())),
    }
}

async fn default_branch(git: &Git, source: &GitSource) -> Result<String, EngineError> {
    let listing = git.run(&["ls-remote", "--symref", "--", &source.remote, "HEAD"]).await;
    let listing = listing.map_err(|e| {
        let text = format!("error fetching default branch for repository {}: {e}", source.shown());
        EngineError::new(e.class(), text)
    })?;
    let listing = String::from_utf8_lossy(&listing);
    let branch = listing.lines().find_map(|line| line.strip_prefix("ref: ")?.strip_suffix("\tHEAD"));
    match branch {
        Some(branch) if !branch.starts_with('-') => Ok(branch.to_owned()),
        _ => Err(EngineError::user(format!("could not find default branch for repository: {}", source.shown()))),
    }
}

/// Picks of the listed references the one that `name` means: a full name, then a branch, then a tag.
fn choose(listing: &str, name: &str) -> Option<GitPin> {
    let lines: Vec<(&str, &str)> = listing.lines().filter_map(|line| line.split_once('\t')).collect();
    let find = |wanted: &str| {
        let (id, _) = lines.iter().find(|(id, name)| *name == wanted && is_commit(id))?;
        Some((*id).to_owned())
    };
    let below = |prefix: &str| format!("{prefix}{}", name.strip_prefix(prefix).unwrap_or(name));
    for reference in [below("refs/"), below("refs/heads/"), below("refs/tags/")] {
        if let Some(object) = find(&reference) {
            let commit = find(&format!("{reference}^{{}}"));
            return Some(GitPin { reference, object, commit });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    #[test]
    fn a_branch_goes_before_a_tag() {
        let listing = format!("{A}\trefs/tags/x\n{B}\trefs/heads/x\n");
        assert_eq!(choose(&listing, "x").unwrap().object, B);
        assert_eq!(choose(&listing, "refs/tags/x").unwrap().object, A);
        assert_eq!(choose(&listing, "y"), None);
    }

    #[test]
    fn a_signed_tag_leads_to_its_commit() {
        let listing = format!("{A}\trefs/tags/v1\n{B}\trefs/tags/v1^{{}}\n");
        let pin = choose(&listing, "v1").unwrap();
        assert_eq!((pin.commit(false), pin.commit(true)), (B, A));
        assert_eq!(pin.reference, "refs/tags/v1");
    }

    #[test]
    fn names_of_other_places_do_not_match() {
        let listing = format!("{A}\trefs/pull/x\n{A}\trefs/remotes/origin/x\n");
        assert_eq!(choose(&listing, "x"), None);
    }
}
