//! The floor: an empty tree of the places that every sandbox mounts something on. It lies under all layers of a step's
//! root, so that none of these has to be made in an image that lacks it, and taken away again, at every step.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::{Store, disk};

const DIRS: [&str; 5] = ["", "proc", "dev", "sys", "etc"];
const FILES: [&str; 2] = ["etc/hosts", "etc/resolv.conf"];

impl Store {
    /// Returns the directory, making what is missing of it; `None` if that fails, for a root can do without.
    pub fn floor(&self) -> Option<PathBuf> {
        let floor = self.0.layout.floor();
        for name in DIRS {
            let path = floor.join(name);
            if !fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
                disk::ensure_dir(&path).ok()?;
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).ok()?;
            }
        }
        for name in FILES {
            let path = floor.join(name);
            if !fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file()) {
                disk::remove_tree(&path).ok()?;
                fs::File::create_new(&path).ok()?;
                fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).ok()?;
            }
        }
        Some(floor)
    }
}
