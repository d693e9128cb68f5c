//! `kiln version`.

use crate::error::CliError;

/// Prints the version of this binary.
pub fn run() -> Result<(), CliError> {
    crate::print(&format!("kiln {}\n", env!("CARGO_PKG_VERSION")))
}
