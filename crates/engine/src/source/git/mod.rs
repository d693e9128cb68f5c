//! Git repositories as sources, by the host's `git` program in an environment of its own.
//!
//! A reference is pinned to a commit first, which is the key. What has to be fetched goes into a bare repository that
//! stays in the store for the next build of the same address; the files are checked out of it. A bundle is unpacked into such
//! a repository first, and then stands for the remote.

mod bundle;
mod checkout;
mod command;
mod identifier;
mod pin;
mod repository;

pub use checkout::checkout;
pub use command::{Git, GitLog};
pub use identifier::GitSource;
pub use pin::GitPin;
pub use repository::Repository;

use kiln_solver::OpContext;

use super::offline::missing;
use super::pins::Pins;
use crate::error::EngineError;
use crate::parts::Parts;

/// Finds what the reference of `source` leads to: in its bundle, or by asking the remote unless it is a commit. Offline it is
/// what the remote said last.
///
/// # Errors
/// The remote cannot be asked, the bundle cannot be had; there is no such reference, or it leads elsewhere than the checksum
/// says.
pub async fn pin(parts: &Parts, cx: &OpContext, git: &Git, source: &GitSource) -> Result<GitPin, EngineError> {
    match &source.bundle {
        Some(bundle) => bundle::pin(parts, cx, git, source, bundle).await,
        None => remote_pin(parts, git, source).await,
    }
}

async fn remote_pin(parts: &Parts, git: &Git, source: &GitSource) -> Result<GitPin, EngineError> {
    if let Some(given) = pin::given(source)? {
        return Ok(given);
    }
    let (pins, key) = (Pins::new(&parts.store), source.memory_key(git.identity()));
    if git.is_offline() {
        let name = match source.git_ref.as_str() {
            "" => "the default branch".to_owned(),
            name => format!("ref {name}"),
        };
        let found = pins.git(&key).ok_or_else(|| missing(format!("{name} of {}", source.shown())))?;
        return pin::checked(source, found);
    }
    let found = pin::pin(git, source).await?;
    pins.set_git(&key, &found);
    Ok(found)
}
