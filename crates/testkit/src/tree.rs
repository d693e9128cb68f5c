//! Small file trees from a list of lines, the form that tests are easiest to read in.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Makes files below `dir`. A path that ends in `/` is a directory, `a -> b` is a symbolic link, anything else is a
/// file with the given text; a leading `#!` makes it executable.
///
/// # Panics
/// Something cannot be made.
pub fn write_tree(dir: &Path, entries: &[(&str, &str)]) {
    std::fs::create_dir_all(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    for (path, text) in entries {
        if let Some((link, target)) = path.split_once(" -> ") {
            std::os::unix::fs::symlink(target, dir.join(link)).unwrap_or_else(|e| panic!("{link}: {e}"));
            continue;
        }
        let full = dir.join(path);
        if path.ends_with('/') {
            std::fs::create_dir_all(&full).unwrap_or_else(|e| panic!("{path}: {e}"));
            continue;
        }
        if let Some(parent) = full.parent() {
            std::fs::create_dir_all(parent).unwrap_or_else(|e| panic!("{path}: {e}"));
        }
        std::fs::write(&full, text).unwrap_or_else(|e| panic!("{path}: {e}"));
        let mode = if text.starts_with("#!") { 0o755 } else { 0o644 };
        std::fs::set_permissions(&full, std::fs::Permissions::from_mode(mode))
            .unwrap_or_else(|e| panic!("{path}: {e}"));
    }
}
