//! Checks of the repository itself: the crate graph against `layers.toml`, and the house rules for source files.

pub mod features;
pub mod layers;
pub mod rules;
pub mod source;
pub mod tidy;

use std::path::{Path, PathBuf};

/// Returns the root of the checkout that this crate was built in.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}
