//! Git repositories as sources, by the host's `git` program in an environment of its own.
//!
//! A reference is pinned to a commit first, which is the key. What has to be fetched goes into a bare repository that
//! stays in the store for the next build of the same address; the files are checked out of it.

mod checkout;
mod command;
mod identifier;
mod pin;
mod repository;

pub use checkout::checkout;
pub use command::{Git, GitLog};
pub use identifier::GitSource;
pub use pin::{GitPin, pin};
pub use repository::Repository;
